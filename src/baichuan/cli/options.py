"""Options that several commands have."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from baichuan.errors import UsageError
from baichuan.language import translate

Model = Annotated[
    str | None,
    typer.Argument(
        help=translate(
            "Directory or hub name of a checkpoint; the small demo model (demo) if not given."
        ),
        metavar="MODEL",
        show_default=False,
    ),
]

_NamedModel = Annotated[
    str | None,
    typer.Option("-m", "--model", help=translate("The same as MODEL."), show_default=False),
]
_NamedFirst = Annotated[
    str | None,
    typer.Option(
        "-m", "--model", help=translate("The same as the first argument."), show_default=False
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help=translate("float32, bfloat16 or float16; the checkpoint's own by default.")),
]
Device = Annotated[
    str | None, typer.Option(help=translate("cpu, cuda, auto, ...; chosen if not given."))
]
System = Annotated[
    str | None, typer.Option(help=translate("System text put before the conversation."))
]
Bits = Annotated[
    int | None,
    typer.Option(
        help=translate("8, 4 or 3: quantize while loading. A quantized checkpoint needs no --bits.")
    ),
]
Group = Annotated[
    int | None,
    typer.Option(
        help=translate("Columns that share a scale: 32, 64, 128 (default for int4) or 256.")
    ),
]
HugePages = Annotated[
    bool,
    typer.Option(
        "--huge-pages",
        help=translate("Copy quantized weights into large pages: starts later, answers faster."),
    ),
]
Speculate = Annotated[
    bool | None,
    typer.Option(
        "--speculate/--no-speculate",
        help=translate(
            "Guess tokens that the text suggests and check several in a pass; by default where no "
            "answer changes (quantized, on a CPU). Elsewhere the last bit may, as in any batch."
        ),
        show_default=False,
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option(
        "--draft",
        help=translate(
            "Small checkpoint of the same vocabulary that guesses where the text suggests nothing; "
            "implies --speculate."
        ),
        show_default=False,
    ),
]
#: torch's generators take 64 bits.
Seed = Annotated[
    int | None, typer.Option(help=translate("Makes sampling repeatable."), min=0, max=2**63 - 1)
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        help=translate(
            "Directory of a LoRA adapter; without a model, the one that it was trained on is used."
        ),
        show_default=False,
    ),
]


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take its argument `model` as -m/--model, too; `demo` is None."""

    @wraps(command)
    def with_option(*, named_model: str | None = None, **given: Any) -> None:
        command(**{**given, "model": one_model(given["model"], named_model)})

    _declare(with_option, command, _NamedModel, after="model")
    return with_option


def takes_model_first(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take its first argument, which it requires, as -m/--model, too.

    `typer_app.ModelFirst`, the class of such a command, moves the option's value to the argument.
    """

    @wraps(command)
    def with_option(*, named_model: None, **given: Any) -> None:
        command(**given)

    first = next(iter(inspect.signature(command).parameters))
    _declare(with_option, command, _NamedFirst, after=first)
    return with_option


def _declare(wrapper: Any, command: Callable[..., None], option: Any, *, after: str) -> None:
    """Set the signature of a wrapper, which typer reads: the command's, and `named_model`."""
    signature = inspect.signature(command, eval_str=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [p.replace(kind=kind) for p in signature.parameters.values()]
    named = inspect.Parameter("named_model", kind, default=None, annotation=option)
    parameters.insert(list(signature.parameters).index(after) + 1, named)
    wrapper.__signature__ = signature.replace(parameters=parameters)
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}


def one_model(model: str | None, named: str | None) -> str | None:
    """Return the model that was given as an argument or as -m, or None for the demo.

    Raises:
        UsageError: both ways were used, for two models.
    """
    if None not in (model, named) and model != named:
        raise UsageError(
            "Two models were given, {model} and -m {named}; leave one of them out.",
            model=model,
            named=named,
        )
    given = model or named
    if given is None:
        return None
    from baichuan.hub import DEMO_NAME  # which takes a moment

    return None if given == DEMO_NAME else given


def load_options(
    adapter: Path | None, bits: int | None, huge_pages: bool, dtype: str | None, device: str | None
) -> dict[str, Any]:
    """Give arguments of `baichuan.load`."""
    given = {"adapter": adapter, "bits": bits, "dtype": dtype, "device": device}
    return {**given, "huge_pages": huge_pages}


def guess_options(speculate: bool | None, draft: str | None) -> dict[str, Any]:
    """Give `speculate` and `draft`, the draft's name.

    Raises:
        UsageError: they contradict each other.
    """
    if draft is not None and speculate is False:
        raise UsageError("--draft and --no-speculate were both given; leave one of them out.")
    return {"speculate": speculate, "draft": draft}
