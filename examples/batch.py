"""Answer several questions in one padded batch: python examples/batch.py [CHECKPOINT]"""

import sys

import baichuan

model, tokenizer = baichuan.load(*sys.argv[1:])
questions = ["Who are you?", "世界上第二高的山峰是哪座", "What is the capital of France?"]
conversations = [[{"role": "user", "content": question}] for question in questions]
batch = tokenizer.apply_chat_template(
    conversations, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
)
sequences = model.generate(**batch.to(model.device), max_new_tokens=64, do_sample=False)
answers = sequences[:, batch["input_ids"].shape[1] :]  # prompts are padded on their left
for question, answer in zip(questions, answers, strict=True):
    print(f"{question} → {tokenizer.decode(answer, skip_special_tokens=True)}")
