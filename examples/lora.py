"""Train a LoRA adapter in a plain PyTorch loop: python examples/lora.py OUTPUT [CHECKPOINT]

`baichuan train` does this and more: data formats, packing, resuming, DeepSpeed.
"""

import sys

import torch
from peft import LoraConfig, get_peft_model

import baichuan

output, *checkpoint = sys.argv[1:]
model, tokenizer = baichuan.load(*checkpoint)
config = LoraConfig(r=8, lora_alpha=16, target_modules=["W_pack", "o_proj"], task_type="CAUSAL_LM")
model = get_peft_model(model, config).train()

conversation = [{"role": "user", "content": "Who are you?"}]
prompt = tokenizer.apply_chat_template(conversation, add_generation_prompt=True)["input_ids"]
answer = [*tokenizer.encode("I am Robin."), tokenizer.eos_token_id]
input_ids = torch.tensor([prompt + answer])
labels = torch.tensor([[-100] * len(prompt) + answer])  # the loss is on the answer alone

optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
for step in range(30):
    loss = model(input_ids=input_ids, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        print(f"step {step + 1}: loss {loss:.3f}")

model.save_pretrained(output)
model, tokenizer = baichuan.load(*checkpoint, adapter=output)
print(model.chat(tokenizer, conversation, temperature=0))
