"""Measuring speed and memory in every precision; knows no terminal and no option."""
