"""Trains the demo network: AdamW over packed rows, resumable, the same on every machine.

Everything that decides a step (epoch text, order of rows, learning rate) follows from the seed and
the step's number, so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import torch.nn.functional as F
import transformers
from conversations import epoch
from rows import IGNORED, encode, packed
from texts import read_corpus
from torch import Tensor
from tqdm import tqdm

from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM

SAVE_EVERY_SECONDS = 150.0


@dataclass(frozen=True)
class Plan:
    """How to train. The defaults made the published demo."""

    epochs: int = 34
    rows_per_step: int = 16
    learning_rate: float = 2e-3
    lowest_share: float = 0.02
    warm_up_steps: int = 40
    weight_decay: float = 0.1
    clip: float = 1.0
    threads: int = 2
    seed: int = 13


@dataclass
class _Progress:
    """What a checkpoint holds beside weights: where the run stands and what it has cost."""

    epoch: int = 0
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.history: list[dict[str, float]] = []


class Trainer:
    """A network, its optimizer and its place in the run."""

    def __init__(self, plan: Plan, vocabulary: Path, checkpoint: Path) -> None:
        torch.set_num_threads(plan.threads)
        transformers.set_seed(plan.seed)
        self.plan, self.checkpoint = plan, checkpoint
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
        self.items, self.held = read_corpus()
        self.model = BaichuanForCausalLM(BaichuanConfig.preset("demo")).train()
        self.optimizer = torch.optim.AdamW(
            _groups(self.model, plan.weight_decay), lr=plan.learning_rate, betas=(0.9, 0.98)
        )
        self.progress = _Progress()
        if checkpoint.exists():
            self._restore()
        # Rows per epoch vary by a few with the draw; the schedule only needs the length about right.
        self.steps = plan.epochs * math.ceil(len(self._rows(0)[0]) / plan.rows_per_step)

    def run(self) -> None:
        """Train to the end of the plan, saving now and then."""
        done = self.progress
        saved = time.monotonic()
        with tqdm(total=self.steps, initial=done.step, unit="step", smoothing=0.05) as bar:
            while done.epoch < self.plan.epochs:
                self._run_epoch(bar)
                done.epoch += 1
                if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def save(self) -> None:
        """Write a checkpoint at one stroke: a crash leaves the previous one whole."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "history": self.progress.history,
            "plan": asdict(self.plan),
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def _restore(self) -> None:
        state = read_checkpoint(self.checkpoint)
        if state["plan"] != asdict(self.plan):
            raise SystemExit(
                f"{self.checkpoint} belongs to another plan, {state['plan']}; remove it to begin anew."
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = _Progress(**state["progress"])
        self.progress.history = state["history"]

    def _rows(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Give the packed rows of one epoch, in random order."""
        seed = f"{self.plan.seed}, epoch {number}"
        pairs = [encode(c, self.tokenizer) for c in epoch(self.items, self.held, seed)]
        ids, segments, targets = packed(pairs)
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(number))
        return ids[order], segments[order], targets[order]

    def _run_epoch(self, bar: tqdm[Any]) -> None:
        """Take one epoch's steps; checkpoints fall between epochs."""
        done = self.progress
        rows = self._rows(done.epoch)
        for batch in zip(*(part.split(self.plan.rows_per_step) for part in rows), strict=True):
            begin = time.monotonic()
            loss = self._step(*batch)
            tokens = int((batch[1] > 0).sum())
            done.step += 1
            done.tokens += tokens
            done.seconds += time.monotonic() - begin
            done.history.append({"step": done.step, "tokens": done.tokens, "loss": round(loss, 4)})
            speed = f"{done.tokens / done.seconds:,.0f}"
            bar.set_postfix({"loss": f"{loss:.3f}", "tokens/s": speed}, refresh=False)
            bar.update()

    def _step(self, ids: Tensor, segments: Tensor, targets: Tensor) -> float:
        """One update. Logits are computed at targets only: elsewhere nobody reads them."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * self._share(self.progress.step)
        hidden = self.model.model(ids, attention_mask=segments, use_cache=False).last_hidden_state
        wanted = targets != IGNORED
        loss = F.cross_entropy(self.model.lm_head(hidden[wanted]), targets[wanted])
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.optimizer.step()
        return loss.item()

    def _share(self, step: int) -> float:
        """Share of the learning rate: linear warm-up, then a cosine down to the lowest share."""
        if step < self.plan.warm_up_steps:
            return (step + 1) / self.plan.warm_up_steps
        way = min(1.0, (step - self.plan.warm_up_steps) / (self.steps - self.plan.warm_up_steps))
        low = self.plan.lowest_share
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * way))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `Trainer.save` wrote."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


def write_record(checkpoint: Path, record: Path) -> None:
    """Keep the run's cost and loss curve as JSON, for the report."""
    state = read_checkpoint(checkpoint)
    facts = {
        "plan": state["plan"],
        **state["progress"],
        "torch": str(torch.__version__),
        "history": state["history"],
    }
    partial = record.with_suffix(".partial")
    partial.write_text(_json_lines(facts), encoding="utf-8")
    os.replace(partial, record)


def _json_lines(facts: dict[str, Any]) -> str:
    """JSON with one line for each step, so that a change shows in few lines."""
    history = ",\n    ".join(json.dumps(entry) for entry in facts["history"])
    head = json.dumps({**facts, "history": "@"}, indent=2, ensure_ascii=False)
    return head.replace('"@"', f"[\n    {history}\n  ]") + "\n"


def _groups(model: BaichuanForCausalLM, decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices only; a norm's weight has no reason to shrink."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
