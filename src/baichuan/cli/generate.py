"""`baichuan generate`: one prompt in, plain text out, made for pipes."""

from __future__ import annotations

import sys
from typing import Any

from baichuan.cli.loading import load_draft, load_model
from baichuan.errors import UsageError
from baichuan.hub import is_model_name
from baichuan.language import translate


def run_generate(
    name: str | None,
    prompt: str | None,
    system: str | None,
    raw: bool,
    settings: dict[str, Any],
    *,
    speculate: bool | None = None,
    draft: str | None = None,
    **where: Any,
) -> None:
    """Stream the answer to stdout and a line break behind it.

    Args:
        name: the checkpoint, or None for the demo.
        prompt: the question; None or `-` reads standard input to its end.
        system: text put before it.
        raw: continue the prompt as it stands, without the chat format.
        settings: sampling parameters that replace the checkpoint's.
        speculate: as `Engine` takes it.
        draft: checkpoint of a draft model, or None.
        where: further arguments of `baichuan.load`.

    Raises:
        UsageError: an empty prompt, one that is not UTF-8, or `system` with `raw`.
        ContextLengthError: prompt and answer are longer than the model's context.
    """
    if raw and system:
        raise UsageError("--raw has no chat format to hold a --system text; leave one of them out.")
    if prompt is None and name is not None and not is_model_name(name):
        raise UsageError(
            "{name!r} is neither a directory on this machine nor a hub name. If it is the "
            "question, put -p before it: baichuan generate -p {name!r}",
            name=name,
        )
    prompt = _read_all() if prompt is None or prompt == "-" else _checked(prompt)
    if not prompt.strip():
        raise UsageError("The prompt is empty; give one with -p TEXT or on standard input.")
    if system:
        _checked(system)
    model, tokenizer = load_model(name, **where)
    small = load_draft(draft, tokenizer, where.get("device"))
    guesses: dict[str, Any] = {"speculate": speculate, "draft": small}
    if raw:
        from baichuan.engine.sampling import SamplingParams

        ids = tokenizer.encode(prompt, verbose=False)
        params = SamplingParams.from_generation_config(model.generation_config, **settings)
        params = params.within(model.config.context_length, len(ids), settings.get("max_tokens"))
        steps = model.engine(tokenizer, **guesses).generate(ids, params)
    else:
        from baichuan.chat import Conversation

        steps = Conversation(model, tokenizer, system, **guesses, **settings).say(prompt)
    from baichuan.cli.markdown import visible

    clean = visible if sys.stdout.isatty() else str
    for step in steps:
        print(clean(step.text), end="", flush=True)
    print(flush=True)


def _read_all() -> str:
    """Read standard input to its end, as UTF-8 with or without a byte order mark."""
    if sys.stdin.isatty():
        note = translate("Type the prompt; Ctrl+D ends it.")
        print(note, file=sys.stderr)
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            "Standard input is not UTF-8 ({reason}); convert it first.", reason=error
        ) from error


def _checked(argument: str) -> str:
    """Refuse what the shell passed as bytes that are no text."""
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError("The text given is not UTF-8; convert it first.") from error
    return argument
