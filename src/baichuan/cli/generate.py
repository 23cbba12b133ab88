"""`baichuan generate`: one prompt in, plain text out, made for pipes."""

from __future__ import annotations

import sys
from typing import Any

from baichuan.checkpoint.load import load
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.errors import UsageError
from baichuan.model.prompt import Message


def run_generate(
    name: str | None,
    prompt: str | None,
    system: str | None,
    raw: bool,
    settings: dict[str, Any],
    **where: Any,
) -> None:
    """Stream the answer to stdout; Ctrl+C ends it cleanly with exit code 130."""
    if prompt is None or prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise UsageError("The prompt is empty; give one with -p TEXT or on standard input.")
    model, tokenizer = load(name, **where)
    if raw:
        params = SamplingParams.from_generation_config(model.generation_config, **settings)
        steps = Engine(model, tokenizer.decode).generate(tokenizer.encode(prompt), params)
    else:
        messages: list[Message] = [{"role": "user", "content": prompt}]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        steps = model.chat_steps(tokenizer, messages, **settings)
    try:
        for step in steps:
            print(step.text, end="", flush=True)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        print(flush=True)
