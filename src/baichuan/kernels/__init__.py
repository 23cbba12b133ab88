"""Arithmetic on quantized weights: one spec in plain torch, and native code that equals it."""
