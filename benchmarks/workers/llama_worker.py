"""Runs llama.cpp for benchmarks/compare.py, through llama-cpp-python's binding of its C interface.

Greedy, with both kinds of attention: each has a context of its own on the same weights.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
import serving
from gguf import GGUFReader

#: Prompt tokens per pass; as many as our engine takes.
_BATCH = 512
#: ggml_log_level of lines about each node of the graph.
_DEBUG = 1
#: Lines that say where the weights went: to AMX's layout, to a repacked one, or left as mapped.
_NOTED = "buffer size"


class Attention:
    """One context: a cache of keys and values, and the tokens that it holds."""

    def __init__(self, model: Any, positions: int, threads: int, flash: int) -> None:
        params = llama.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = positions, _BATCH, _BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = flash
        self.context = llama.llama_init_from_model(model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp made no context of {positions} positions.")
        self.memory = llama.llama_get_memory(self.context)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self.batch = llama.llama_batch_init(_BATCH, 0, 1)
        self.held = 0

    def truncate(self, length: int) -> None:
        """Forget every position from `length` on."""
        llama.llama_memory_seq_rm(self.memory, 0, length, -1)
        self.held = length

    def run(self, tokens: list[int]) -> np.ndarray[Any, Any]:
        """Append tokens and give the logits [vocabulary] behind the last one."""
        for first in range(0, len(tokens), _BATCH):
            part = tokens[first : first + _BATCH]
            last = first + len(part) == len(tokens)
            for i, token in enumerate(part):
                self.batch.token[i], self.batch.pos[i] = token, self.held + i
                self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0
                self.batch.logits[i] = last and i == len(part) - 1
            self.batch.n_tokens = len(part)
            failed = llama.llama_decode(self.context, self.batch)
            if failed:
                raise SystemExit(f"llama_decode gave {failed}.")
            self.held += len(part)
        pointer = llama.llama_get_logits_ith(self.context, -1)  # waits for the result
        return np.ctypeslib.as_array(pointer, (self.vocabulary,))


class Worker:
    """A loaded model with up to two contexts."""

    def __init__(self, file: Path, positions: int, threads: int) -> None:
        self.file, self.positions, self.threads = file, positions, threads
        self.notes: list[str] = []
        self._callback = llama.llama_log_callback(self._log)  # kept: C holds only its address
        llama.llama_log_set(self._callback, ctypes.c_void_p(0))
        llama.llama_backend_init()
        begin = time.perf_counter()
        params = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(file).encode(), params)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {file}; see its words above.")
        self.load_seconds = time.perf_counter() - begin
        self.contexts: dict[int, Attention] = {}

    def _log(self, level: int, text: bytes, _data: Any) -> None:
        line = text.decode("utf-8", "replace").rstrip()
        if level != _DEBUG:
            print(line, file=sys.stderr)
        if _NOTED in line:
            self.notes.append(line)

    def attention(self, flash: int) -> Attention:
        """Give the context with flash attention off (0) or on (1)."""
        if flash not in self.contexts:
            self.contexts[flash] = Attention(self.model, self.positions, self.threads, flash)
        return self.contexts[flash]

    def info(self) -> dict[str, Any]:
        """Name the engine, how it was built and what it reads."""
        tensors = GGUFReader(self.file).tensors
        return {
            "engine": f"llama.cpp of llama-cpp-python {llama.__version__}",
            "system": llama.llama_print_system_info().decode(),
            "threads": self.threads,
            "load_seconds": self.load_seconds,
            "buffers": self.notes,
            # A token reads one row of the embedding and all of the rest.
            "weight_bytes": sum(int(t.n_bytes) for t in tensors if t.name != "token_embd.weight"),
        }

    def prefill(self, tokens: int, flash: int = 0) -> dict[str, float]:
        """Run a prompt up to its first token."""
        attention = self.attention(flash)
        attention.truncate(0)
        prompt = serving.prompt(tokens, attention.vocabulary)
        begin = time.perf_counter()
        attention.run(prompt).argmax()
        return {"seconds": time.perf_counter() - begin}

    def decode(self, context: int, tokens: int, flash: int = 0) -> dict[str, float]:
        """Time `tokens` passes of one token, behind `context` positions."""
        attention = self.attention(flash)
        prompt = serving.prompt(context + 1, attention.vocabulary)
        if attention.held < context:
            attention.truncate(0)
            attention.run(prompt[:context])
        attention.truncate(context)
        token = int(attention.run(prompt[context:]).argmax())
        begin = time.perf_counter()
        for _ in range(tokens):
            token = int(attention.run([token]).argmax())
        return {"seconds": (time.perf_counter() - begin) / tokens}

    def logits(self, tokens: int, flash: int = 0) -> dict[str, list[float]]:
        """Give the logits behind a prompt."""
        attention = self.attention(flash)
        attention.truncate(0)
        return {"logits": attention.run(serving.prompt(tokens, attention.vocabulary)).tolist()}


def main() -> None:
    """Load the file and answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--positions", type=int, default=768, help="room in each cache")
    arguments = parser.parse_args()
    worker = Worker(arguments.model, arguments.positions, arguments.threads)
    serving.serve(
        {
            "info": worker.info,
            "prefill": worker.prefill,
            "decode": worker.decode,
            "logits": worker.logits,
            "memory": serving.memory,
        }
    )


if __name__ == "__main__":
    main()
