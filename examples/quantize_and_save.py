"""Quantize to int4, save, load again: python examples/quantize_and_save.py OUTPUT [CHECKPOINT]"""

import sys

import baichuan

output, *checkpoint = sys.argv[1:]
model, tokenizer = baichuan.load(*checkpoint)
print(f"{model.get_memory_footprint() / 1e6:,.0f} MB")
model = model.quantize(4)
print(f"{model.get_memory_footprint() / 1e6:,.0f} MB in int4")
model.save_pretrained(output)
tokenizer.save_pretrained(output)

model, tokenizer = baichuan.load(output)
print(model.chat(tokenizer, [{"role": "user", "content": "Who are you?"}], temperature=0))
