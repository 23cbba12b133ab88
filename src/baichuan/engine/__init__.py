"""Caches, sampling, detokenizing and the one decode loop; knows no network."""
