"""Print an answer as it grows, then ask on: python examples/stream.py [CHECKPOINT]"""

import sys

import baichuan

model, tokenizer = baichuan.load(*sys.argv[1:])
messages = [{"role": "system", "content": "Answer in one sentence."}]
for question in ("What is the capital of France?", "你是谁"):
    messages.append({"role": "user", "content": question})
    answer = ""
    for text in model.chat(tokenizer, messages, stream=True, temperature=0):  # the text so far
        print(text[len(answer) :], end="", flush=True)
        answer = text
    print()
    messages.append({"role": "assistant", "content": answer})
