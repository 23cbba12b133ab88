"""Speed and memory of fine-tuning: `baichuan train` against the network as it was published.

    python benchmarks/finetuning.py small CHECKPOINT --data DIRECTORY
    python benchmarks/finetuning.py wide CHECKPOINT --data DIRECTORY
    python benchmarks/finetuning.py qlora CHECKPOINT --data DIRECTORY

small, wide: the same random weights (CHECKPOINT is written, unless it is there) and the same texts,
alternating, each run a process of its own: ours as `baichuan train` runs, packed to 2,048 tokens;
the published network under transformers' own Trainer (and peft), loaded in the same dtype, in
padded batches of 8. qlora: optimizer steps of an adapter beside a quantized checkpoint. --data has
alpaca_*_demo.json; the tokenizer is the demo model's. Writes results/finetuning_WHAT.json.

Memory is the most that was resident: the process's own, and the pages of mapped weight files that
it read.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from random_checkpoint import write_random_checkpoint
from transformers import Trainer, TrainerCallback, set_seed
from workers.published import Published

from baichuan.checkpoint.load import DEMO
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.train.arguments import parse
from baichuan.train.data import Collator, load
from baichuan.train.process import prepare_process
from baichuan.train.recipe import Recipe
from baichuan.train.run import make_trainer

_LENGTH, _ROUNDS, _PADDED = 2048, 3, 8
#: Texts of one run: four padded batches, or six packed rows.
_TEXTS = 32
_SMALL = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
}
_CASES = {
    "small": ("103M parameters, 12 layers, full, bfloat16 over float32", _SMALL),
    "wide": ("2 layers of the 13B, LoRA rank 8, bfloat16", {"num_hidden_layers": 2}),
}
_METHODS = {"small": "full", "wide": "lora", "qlora": "lora"}
_WAYS = ("ours", "published")
_TARGETS = ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]
_QLORA = "13B geometry, int4, random weights; LoRA rank 8 on all layers, rows of 2,048, bfloat16"


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=_METHODS)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=_ROUNDS)
    parser.add_argument("--one", choices=_WAYS, help="measure one way, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_measured(arguments.one, arguments)))
    elif arguments.what == "qlora":
        figures = {"what": _QLORA, **_measured("ours", arguments)}
        machine.save("finetuning_qlora", figures)
    else:
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    what, shape = _CASES[arguments.what]
    write_random_checkpoint(arguments.checkpoint, BaichuanConfig.preset("13b", **shape))
    for file in DEMO.glob("tokenizer*"):
        shutil.copy(file, arguments.checkpoint)
    runs: dict[str, list[Any]] = {way: [] for way in _WAYS}
    for _ in range(arguments.rounds):
        for way in _WAYS:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--one", way],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    machine.save(
        f"finetuning_{arguments.what}",
        {"what": what, "length": _LENGTH, "runs": runs, **_ratios(runs)},
    )


def _ratios(ways: dict[str, list[Any]]) -> dict[str, Any]:
    """Compare the runs round by round; medians."""
    pairs = list(zip(ways["ours"], ways["published"], strict=True))
    speed = [ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in pairs]
    memory = [ours["peak_memory_gb"] / theirs["peak_memory_gb"] for ours, theirs in pairs]
    return {"speed_ratio": statistics.median(speed), "memory_ratio": statistics.median(memory)}


def _measured(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train over the texts once, in their order."""
    with tempfile.TemporaryDirectory() as directory:
        recipe = _recipe(way, arguments, Path(directory))
        begin = time.perf_counter()
        trainer = (_ours if way == "ours" else _published)(recipe, arguments.checkpoint)
        loaded = time.perf_counter() - begin
        clock = Clock(trainer)
        trainer.add_callback(clock)
        loss = trainer.train().training_loss
    return {
        "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "load_seconds": loaded,
        **clock.figures(),
        "peak_memory_gb": machine.memory_gb("VmHWM"),
        "loss": loss,
    }


def _recipe(way: str, arguments: argparse.Namespace, directory: Path) -> Recipe:
    """Give what both sides are told; the texts are written to the directory."""
    files = sorted(arguments.data.glob("alpaca_*_demo.json"))
    every = [row for file in files for row in json.loads(file.read_text("utf-8"))]
    chosen = np.random.default_rng(0).permutation(len(every))[:_TEXTS]
    texts = directory / "texts.json"
    texts.write_text(json.dumps([every[index] for index in chosen]), encoding="utf-8")
    flags = {
        "model_name_or_path": arguments.checkpoint,
        "dataset": texts,
        "output_dir": directory / "out",
        "finetuning_type": _METHODS[arguments.what],
        "cutoff_len": _LENGTH,
        "packing": way == "ours",
        "per_device_train_batch_size": 1 if way == "ours" else _PADDED,
        "gradient_checkpointing": arguments.what == "qlora",
        "max_steps": 3 if arguments.what == "qlora" else -1,
        "bf16": True,
        "num_train_epochs": 1,
        "learning_rate": 1e-4,
        "save_strategy": "no",
        "train_sampling_strategy": "sequential",
    }
    return parse([word for name, value in flags.items() for word in (f"--{name}", str(value))])


def _ours(recipe: Recipe, checkpoint: Path) -> Trainer:
    """Do what `run` does, which starts with this, too."""
    prepare_process()
    tokenizer = BaichuanTokenizer.from_pretrained(checkpoint)
    splits = load(recipe, tokenizer)
    set_seed(0)
    return make_trainer(recipe, checkpoint, tokenizer, splits)


def _published(recipe: Recipe, checkpoint: Path) -> Trainer:
    tokenizer = BaichuanTokenizer.from_pretrained(checkpoint)
    rows = load(recipe, tokenizer).train
    set_seed(0)
    lora = recipe.method.finetuning_type == "lora"
    dtype = torch.bfloat16 if lora else torch.float32
    network = Published.from_pretrained(checkpoint, dtype=dtype)
    if lora:
        network = get_peft_model(network, LoraConfig(r=8, lora_alpha=16, target_modules=_TARGETS))
    recipe.training.remove_unused_columns = False
    collator = Collator(tokenizer)
    return Trainer(network, recipe.training, data_collator=collator, train_dataset=rows)


class Clock(TrainerCallback):  # type: ignore[misc]  # untyped base
    """Times each optimizer step, and counts its tokens, without padding."""

    def __init__(self, trainer: Trainer) -> None:
        self.seconds: list[float] = []
        self._tokens: list[int] = []
        self._begin = 0.0
        self._collate, trainer.data_collator = trainer.data_collator, self._counted

    def _counted(self, batch: list[dict[str, Any]]) -> Any:
        self._tokens.append(sum(len(row["input_ids"]) for row in batch))
        return self._collate(batch)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self._begin = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Take it."""
        self.seconds.append(time.perf_counter() - self._begin)

    def figures(self) -> dict[str, Any]:
        """Give speed; the first step, which warms up, is not counted."""
        timed = self.seconds[1:]
        return {
            "steps": len(self.seconds),
            "tokens_per_second": sum(self._tokens[1 : len(self.seconds)]) / sum(timed),
            "seconds_per_step": statistics.mean(timed),
        }


if __name__ == "__main__":
    main()
