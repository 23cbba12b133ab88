"""What the README of Baichuan-13B says about speed and memory, to set our figures beside.

Measured there on one A100-SXM4-80G, PyTorch 2.0.0, transformers 4.29.1, float16, batch size 1,
generation length 2,048.
"""

#: Baichuan-13B and LLaMA-13B, tokens per second.
TOKENS_PER_SECOND = {"Baichuan-13B": 25.4, "LLaMA-13B": 19.4}
#: Per cent by which, it says, Baichuan-13B is faster for its ALiBi. The two speeds give 30.9.
ALIBI_GAIN = 31.6
#: GPU memory in GB; what it has as bf16 / fp16 is bf16 here.
MEMORY_GB = {"bf16": 26.0, "int8": 15.8, "int4": 9.7}
