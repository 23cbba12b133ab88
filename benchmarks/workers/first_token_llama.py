"""The shortest program from nothing to a first token, with llama.cpp: MODEL THREADS PROMPT..."""

import sys

from llama_cpp import Llama

model, threads, *prompt = sys.argv[1:]
count = int(threads)
engine = Llama(model, n_ctx=512, n_threads=count, n_threads_batch=count, verbose=False)
engine.eval([int(token) for token in prompt])
print(engine.sample(temp=0.0), flush=True)
