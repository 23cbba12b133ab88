"""Speed and memory of fine-tuning: this package against the network as it was published.

    python benchmarks/finetuning.py small --data DIRECTORY --tokenizer DIRECTORY
    python benchmarks/finetuning.py wide --data DIRECTORY --tokenizer DIRECTORY
    python benchmarks/finetuning.py qlora CHECKPOINT --data DIRECTORY --tokenizer DIRECTORY

small, wide: transformers' Trainer (and peft) over the same rows, alternating, each run a process of
its own: ours packed to 2,048 tokens, the published network in padded batches of 8. qlora: optimizer
steps of an adapter beside a quantized checkpoint. --data has alpaca_*_demo.json; --tokenizer has
tokenizer.model. Writes results/finetuning_WHAT.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from workers.published import Published

from baichuan.model.adapters import with_quantized
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.train.arguments import parse
from baichuan.train.data import Collator, load
from baichuan.train.packing import pack

_LENGTH, _STEPS, _ROUNDS, _PADDED = 2048, 6, 3, 8
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
_WAYS = ("ours", "published")
_TARGETS = ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]

Rows = list[dict[str, Any]]


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=(*_CASES, "qlora"))
    parser.add_argument("checkpoint", nargs="?", type=Path, help="for qlora: quantized weights")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=_STEPS)
    parser.add_argument("--one", choices=_WAYS, help="measure one way, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_compare_one(arguments.one, arguments)))
    elif arguments.what == "qlora":
        _qlora(arguments)
    else:
        _compare(arguments)


def _compare(arguments: argparse.Namespace) -> None:
    runs: dict[str, list[Any]] = {way: [] for way in _WAYS}
    for _ in range(_ROUNDS):
        for way in _WAYS:
            command = [sys.executable, __file__, arguments.what, "--one", way]
            command += ["--data", str(arguments.data), "--tokenizer", str(arguments.tokenizer)]
            command += ["--steps", str(arguments.steps)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[way].append(json.loads(done.stdout.splitlines()[-1]))
    figures = {"what": _CASES[arguments.what][0], "length": _LENGTH, "runs": runs, **_ratios(runs)}
    machine.save(f"finetuning_{arguments.what}", figures)


def _ratios(ways: dict[str, list[Any]]) -> dict[str, Any]:
    """Compare the runs round by round; medians."""
    pairs = list(zip(ways["ours"], ways["published"], strict=True))
    speed = [ours["tokens_per_second"] / theirs["tokens_per_second"] for ours, theirs in pairs]
    memory = [ours["peak_memory_gb"] / theirs["peak_memory_gb"] for ours, theirs in pairs]
    return {"speed_ratio": statistics.median(speed), "memory_ratio": statistics.median(memory)}


def _compare_one(way: str, arguments: argparse.Namespace) -> dict[str, float]:
    set_seed(0)
    config = BaichuanConfig.preset("13b", **_CASES[arguments.what][1])
    network: Any = (BaichuanForCausalLM if way == "ours" else Published)(config).train()
    if arguments.what == "wide":
        network.to(torch.bfloat16)
        network = get_peft_model(network, LoraConfig(r=8, lora_alpha=16, target_modules=_TARGETS))
    packed, single = _rows(arguments)
    if way == "ours":
        return _train(network, packed, 1, arguments)
    return _train(network, single, _PADDED, arguments)


def _rows(arguments: argparse.Namespace) -> tuple[Rows, Rows]:
    """Give packed rows, one a step, and the rows that they hold."""
    names = ",".join(str(path) for path in sorted(arguments.data.glob("alpaca_*_demo.json")))
    recipe = parse(["--dataset", names, "--cutoff_len", str(_LENGTH), "--packing", "false"])
    tokenizer = BaichuanTokenizer.from_pretrained(arguments.tokenizer)
    every = load(recipe, tokenizer).train.shuffle(seed=0)
    total, count = 0, 0
    while total < arguments.steps * _LENGTH:
        total += len(every[count]["input_ids"])
        count += 1
    chosen = every.select(range(count))
    columns = pack({name: list(chosen[name]) for name in ("input_ids", "labels")}, _LENGTH)
    packed = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return packed, [{n: row[n] for n in ("input_ids", "labels")} for row in chosen]


class Clock(TrainerCallback):  # type: ignore[misc]  # untyped base
    """Times each optimizer step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self._begin = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Take it."""
        self.seconds.append(time.perf_counter() - self._begin)


def _train(network: Any, rows: Rows, size: int, arguments: Any, **flags: Any) -> dict[str, float]:
    """Train over the rows once, in their order; the first step, which warms up, is not counted."""
    tokenizer = BaichuanTokenizer.from_pretrained(arguments.tokenizer)
    clock, counts = Clock(), []
    collate = Collator(tokenizer)

    def counted(batch: Rows) -> dict[str, Any]:
        counts.append(sum(len(row["input_ids"]) for row in batch))
        return collate(batch)

    with tempfile.TemporaryDirectory() as directory:
        training = TrainingArguments(
            directory,
            per_device_train_batch_size=size,
            num_train_epochs=1,
            bf16=True,
            use_cpu=True,
            learning_rate=1e-4,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
            **flags,
        )
        trainer = Trainer(
            network, training, data_collator=counted, train_dataset=rows, callbacks=[clock]
        )
        loss = trainer.train().training_loss
    timed = clock.seconds[1:]
    return {
        "steps": len(clock.seconds),
        "tokens_per_second": sum(counts[1 : len(clock.seconds)]) / sum(timed),
        "seconds_per_step": statistics.mean(timed),
        "peak_memory_gb": machine.peak_memory_gb(),
        "loss": loss,
    }


def _qlora(arguments: argparse.Namespace) -> None:
    begin = time.perf_counter()
    network = BaichuanForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.bfloat16)
    loaded = time.perf_counter() - begin
    config = LoraConfig(r=8, lora_alpha=16, target_modules=_TARGETS, task_type="CAUSAL_LM")
    adapted = get_peft_model(network, with_quantized(config))
    packed, _ = _rows(arguments)
    flags = {"gradient_checkpointing": True}
    figures = _train(adapted.train(), packed[: arguments.steps], 1, arguments, **flags)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    what = "13B geometry, int4, random weights; LoRA rank 8 on all layers, rows of 2,048, bfloat16"
    machine.save(
        "finetuning_qlora",
        {"what": what, "trained": trained, "load_seconds": loaded, **figures},
    )


if __name__ == "__main__":
    main()
