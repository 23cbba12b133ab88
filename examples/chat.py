"""Ask one question: python examples/chat.py [CHECKPOINT]"""

import sys

import baichuan

model, tokenizer = baichuan.load(*sys.argv[1:])  # without a name, the demo model
messages = [{"role": "user", "content": "世界上第二高的山峰是哪座"}]
print(model.chat(tokenizer, messages))
