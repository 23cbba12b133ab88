"""int8 and int4: rounding, modules, the swap of a network's linears, and the saved format."""
