"""The shortest program from nothing to a first token, with this package: MODEL THREADS PROMPT..."""

import sys

import torch

import baichuan
from baichuan.engine.sampling import SamplingParams

model, threads, *prompt = sys.argv[1:]
torch.set_num_threads(int(threads))
network = baichuan.BaichuanForCausalLM.from_pretrained(model, dtype="bfloat16")
engine = baichuan.Engine(network, str)
step = next(engine.generate([int(token) for token in prompt], SamplingParams(max_tokens=1)))
print(step.token, flush=True)
