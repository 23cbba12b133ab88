"""Runs this package for benchmarks/compare.py: the engine that users have, sampling greedily."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import serving
import torch

from baichuan.engine.cache import Chunk, SequenceCache
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.kernels import native
from baichuan.model.network import BaichuanForCausalLM
from baichuan.quant.plan import use_huge_pages
from baichuan.version import __version__


class Worker:
    """A loaded checkpoint and the caches of the sequences that it decodes."""

    def __init__(self, checkpoint: Path, dtype: str, huge_pages: bool) -> None:
        begin = time.perf_counter()
        self.model = BaichuanForCausalLM.from_pretrained(checkpoint, dtype=dtype).eval()
        if huge_pages:
            use_huge_pages(self.model)
        self.huge_pages = huge_pages
        self.load_seconds = time.perf_counter() - begin
        self.vocabulary = self.model.config.vocab_size
        self.engine = Engine(self.model, str, speculate=False)
        self.caches: list[SequenceCache] = []

    def info(self) -> dict[str, Any]:
        """Name the engine and what it reads."""
        return {
            "engine": f"baichuan {__version__}, torch {torch.__version__}",
            "kernels": native.chosen(),
            "threads": torch.get_num_threads(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "huge_pages": self.huge_pages,
            "load_seconds": self.load_seconds,
            "weight_bytes": self._weight_bytes(),
        }

    def prefill(self, tokens: int) -> dict[str, float]:
        """Run a prompt up to its first token."""
        params = SamplingParams(max_tokens=1, eos_token_ids=())
        *_, last = self.engine.generate(serving.prompt(tokens, self.vocabulary), params)
        return {"seconds": last.usage.prefill_seconds}

    def decode(self, context: int, tokens: int, sequences: int = 1) -> dict[str, float]:
        """Time `tokens` passes of one token of each sequence, behind `context` positions each."""
        self._hold(context, sequences)
        params = SamplingParams(max_tokens=tokens + 1, eos_token_ids=())
        for number in range(sequences):
            prompt = serving.prompt(context + 1, self.vocabulary, seed=number)
            self.engine.add(prompt, params, self.caches[number])
        self.engine.step()  # the prompts' last token
        begin = time.perf_counter()
        while self.engine.running:
            self.engine.step()
            assert not self.engine.failed, self.engine.failed
        return {"seconds": (time.perf_counter() - begin) / tokens}

    def logits(self, tokens: int) -> dict[str, list[float]]:
        """Give the logits behind a prompt."""
        chunk = Chunk(serving.prompt(tokens, self.vocabulary), self.model.new_cache())
        return {"logits": self.model.forward_chunks([chunk])[0][-1].tolist()}

    def _hold(self, context: int, sequences: int) -> None:
        """Fill caches that do not hold their context yet; the engine reuses those that do."""
        params = SamplingParams(max_tokens=1, eos_token_ids=())
        del self.caches[sequences:]
        for number in range(sequences):
            if number == len(self.caches):
                self.caches.append(self.model.new_cache())
            prompt = serving.prompt(context + 1, self.vocabulary, seed=number)
            for _ in self.engine.generate(prompt, params, self.caches[number]):
                pass

    def _weight_bytes(self) -> int:
        """Sum up what each token reads: all but the embedding, of which it reads one row."""
        total = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        return total - self.model.model.embed_tokens.weight.nbytes


def main() -> None:
    """Load the checkpoint and answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint's directory")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dtype", default="bfloat16", help="of activations and cache")
    parser.add_argument("--huge-pages", action="store_true", help="as `baichuan chat` has it")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    worker = Worker(arguments.model, arguments.dtype, arguments.huge_pages)
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
