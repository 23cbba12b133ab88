"""Measures `baichuan serve` under load, alone and beside llama.cpp's server, by the same client.

    python benchmarks/serving.py --directory DIRECTORY --figures demo wide prefix
    python benchmarks/serving.py --directory DIRECTORY --figures llama llama_long \
        --peers PYTHON --llama-server PROGRAM

DIRECTORY takes the models: four layers of the 13B at full width with random weights, in int4 for us
and Q4_0 for llama.cpp. PYTHON is the interpreter of a virtual environment with llama-cpp-python and
gguf; PROGRAM is built from llama.cpp's sources (see compare.py on GCC 12 and AMX). Each figure is
written to results/serving_FIGURE.json.

demo, wide   200 requests of mixed lengths, 16 at a time and one after another: the same answers?
llama        rounds of requests, 8 at a time, at both servers in turn
llama_long   the same with prompts of up to a thousand tokens
prefix       time to the first token where 1,000 tokens of the prompt were computed before
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import machine
import psutil
import torch
from workers import load
from workers.models import Models
from workers.process import Worker
from workers.servers import Server
from workers.serving import prompt

from baichuan.checkpoint.load import DEMO
from baichuan.model.prompt import Message, encode_chat
from baichuan.model.tokenizer import BaichuanTokenizer

_LAYERS = 4
_REQUESTS, _AT_A_TIME = 200, 16
_Bounds = tuple[int, int]
#: Tokens of prompts and most tokens of answers, from and to.
_WIDE = ((8, 128), (8, 32))
#: Questions that the demo model was not trained on, and earlier turns before them, from 0 on.
_QUESTIONS = Path(__file__).parents[1] / "demo" / "heldout.jsonl"
_TURNS, _DEMO_TOKENS = 6, 128
_SLOTS = 8
#: Requests of a round, their tokens, and the tokens that llama.cpp's server has for each.
_SHORT_ROUND = (48, _WIDE, 512)
_LONG_ROUND = (24, ((16, 1024), (8, 32)), 1536)
_PREFIX, _REST = 1000, 24
#: Least correlation of our bfloat16 logits and llama.cpp's with Q8_0.
_SAME = 0.98


@dataclass(frozen=True)
class Setting:
    """What one run measures with."""

    models: Models
    peers: Path
    llama_server: Path | None
    threads: int
    rounds: int

    @property
    def vocabulary(self) -> int:
        """Of the wide network."""
        return self.models.config.vocab_size

    def wide(self, *options: object) -> Server:
        """Serve the wide network as the documentation does."""
        model = self.models.quantized(4)
        return Server.baichuan(model, self.threads, "--huge-pages", *options)


def demo(setting: Setting) -> dict[str, Any]:
    """Load the demo model."""
    start = partial(Server.baichuan, None, setting.threads)
    return {"what": "the demo model, float32, conversations", **_load(start, _conversations())}


def _conversations() -> list[load.Ask]:
    """Make chats of one turn or several from held-out questions and their answers."""
    tokenizer = BaichuanTokenizer.from_pretrained(DEMO)
    lines = _QUESTIONS.read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    order = random.Random(0)
    asks = []
    for number in range(_REQUESTS):
        *earlier, last = order.sample(rows, 1 + number % _TURNS)
        messages: list[Message] = []
        for row in earlier:
            messages.append({"role": "user", "content": row["question"]})
            messages.append({"role": "assistant", "content": row["answer"]})
        messages.append({"role": "user", "content": last["question"]})
        ids = encode_chat(tokenizer, messages, user_token_id=195, assistant_token_id=196)
        asks.append(load.Ask(ids, _DEMO_TOKENS))
    return asks


def wide(setting: Setting) -> dict[str, Any]:
    """Load the wide network."""
    asks = load.mixed(_REQUESTS, setting.vocabulary, *_WIDE)
    what = f"{_LAYERS} layers of the 13B at full width, random weights, int4"
    return {"what": what, **_load(setting.wide, asks)}


def _load(start: Callable[[], Server], asks: list[load.Ask]) -> dict[str, Any]:
    """Ask side by side and one after another; each at a new server, which has nothing cached."""
    with start() as server:
        together = load.run(server.port, asks, _AT_A_TIME)
        held = server.figures()["baichuan_kv_tokens"]
    with start() as server:
        alone = load.run(server.port, asks, 1)
    pairs = zip(together.answers, alone.answers, strict=True)
    differ = [i for i, (one, other) in enumerate(pairs) if one.text != other.text]
    ratio = together.tokens_per_second / alone.tokens_per_second
    return {
        "prompt_tokens": [len(ask.prompt) for ask in asks],
        "together": {"at_a_time": _AT_A_TIME, **together.figures()},
        "one_after_another": alone.figures(),
        "answers_that_differ": differ,
        "held_positions_afterwards": held,
        "bars": [
            _bar("times one after another", ratio, 3.0),
            _bar("answers equal to the lone ones", len(asks) - len(differ), len(asks)),
        ],
    }


def llama(setting: Setting) -> dict[str, Any]:
    """Ask our server and llama.cpp's in turn."""
    return _beside_llama(setting, *_SHORT_ROUND)


def llama_long(setting: Setting) -> dict[str, Any]:
    """Do the same with longer prompts."""
    return _beside_llama(setting, *_LONG_ROUND)


def _beside_llama(
    setting: Setting, count: int, lengths: tuple[_Bounds, _Bounds], slot: int
) -> dict[str, Any]:
    """Send rounds of `count` requests to both; llama.cpp's server has `slot` tokens for each."""
    if setting.llama_server is None:
        sys.exit("The figure llama needs --llama-server and --peers.")
    agreement = _agreement(setting)
    context = ("-c", _SLOTS * slot, "-np", _SLOTS)
    rounds: dict[str, list[load.Run]] = {}
    with (
        setting.wide() as ours,
        Server.llama(
            setting.llama_server, setting.models.gguf("q4_0"), setting.threads, *context
        ) as theirs,
    ):
        servers = {"baichuan": ours, "llama": theirs}
        warm_up = load.mixed(_SLOTS, setting.vocabulary, *lengths, seed=99)
        for server in servers.values():
            load.run(server.port, warm_up, _SLOTS)
        for number in range(setting.rounds):
            # New prompts in each round, so that none is in a cache.
            asks = load.mixed(count, setting.vocabulary, *lengths, seed=number)
            for name, server in servers.items():
                rounds.setdefault(name, []).append(load.run(server.port, asks, _SLOTS))
                print(number, name, rounds[name][-1].figures(), file=sys.stderr)
    figures = {name: [run.figures() for run in runs] for name, runs in rounds.items()}
    speed, p95 = (_ratio(figures, name) for name in ("tokens_per_second", "first_token_p95"))
    return {
        "what": f"{_LAYERS} layers of the 13B at full width, random weights, int4 and Q4_0",
        "at_a_time": _SLOTS,
        "tokens_of_prompts_and_answers": lengths,
        "logits": agreement,
        "rounds": figures,
        "ratio_of_tokens_per_second": speed,
        "ratio_of_first_token_p95": p95,
        "bars": [
            _bar("times llama-server's tokens per second", statistics.median(speed), 1.5),
            _bar(
                "of llama-server's p95 to the first token", statistics.median(p95), 1.0, most=True
            ),
        ],
    }


def _ratio(figures: dict[str, list[dict[str, Any]]], name: str) -> list[float]:
    """Divide ours by theirs, round by round."""
    pairs = zip(figures["baichuan"], figures["llama"], strict=True)
    return [ours[name] / theirs[name] for ours, theirs in pairs]


def _agreement(setting: Setting) -> dict[str, float]:
    """Check that both engines compute the same network, where rounding hides little.

    Raises:
        SystemExit: they do not, so that no speed of the other is worth comparing.
    """
    ours = ["--model", setting.models.plain()]
    theirs = ["--model", setting.models.gguf("q8_0")]
    with Worker("baichuan", Path(sys.executable), setting.threads, *ours) as worker:
        one = torch.tensor(worker.ask("logits", tokens=100)["logits"])
    with Worker("llama", setting.peers, setting.threads, *theirs) as worker:
        other = torch.tensor(worker.ask("logits", tokens=100)["logits"])
    correlation = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
    if not correlation > _SAME:
        sys.exit(f"The logits of the two engines have a correlation of {correlation:.3f} only.")
    return {"correlation_of_bfloat16_and_q8_0": correlation}


def prefix(setting: Setting) -> dict[str, Any]:
    """Time the first token of two prompts that begin alike."""
    rows = []
    with setting.wide() as server:
        for number in range(setting.rounds):
            shared = prompt(_PREFIX, setting.vocabulary, 1000 + number)
            row = {}
            for place, name in enumerate(("first", "second")):
                rest = prompt(_REST, setting.vocabulary, 2000 + 2 * number + place)
                ran = load.run(server.port, [load.Ask([*shared, *rest], 4)], 1)
                row[name] = ran.answers[0].first_seconds
            rows.append(row)
    medians = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    ratio = statistics.median(row["second"] / row["first"] for row in rows)
    return {
        "what": f"prompts of {_PREFIX} shared tokens and {_REST} of their own",
        "first_token_seconds": medians,
        "rows": rows,
        "bars": [_bar("of the first one's time to the first token", ratio, 0.15, most=True)],
    }


def _bar(what: str, measured: float, needed: float, *, most: bool = False) -> dict[str, Any]:
    met = measured <= needed if most else measured >= needed
    what = f"{what}, at most" if most else what
    return {"what": what, "needed": needed, "measured": measured, "met": met}


_FIGURES = {
    "demo": demo,
    "wide": wide,
    "llama": llama,
    "llama_long": llama_long,
    "prefix": prefix,
}


def main() -> None:
    """Measure every figure and write each as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True, help="of the models")
    parser.add_argument("--peers", type=Path, default=Path(sys.executable), help="see above")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server")
    parser.add_argument("--figures", nargs="+", choices=_FIGURES, default=list(_FIGURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--prepare", action="store_true", help="make the models and measure nothing"
    )
    arguments = parser.parse_args()
    models = Models(arguments.directory, False, _LAYERS)
    if arguments.prepare:
        models.quantized(4)
        if arguments.llama_server:
            models.gguf("q4_0")
            models.gguf("q8_0")
        return
    engines = arguments.peers, arguments.llama_server
    setting = Setting(models, *engines, arguments.threads, arguments.rounds)
    for name in arguments.figures:
        print(name, file=sys.stderr)
        before = psutil.cpu_percent(interval=2)
        figures = {"cpu_busy_before_percent": before, **_FIGURES[name](setting)}
        machine.save(f"serving_{name}", figures)


if __name__ == "__main__":
    main()
