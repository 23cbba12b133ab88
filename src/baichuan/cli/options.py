"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from baichuan.errors import UsageError
from baichuan.language import translate

Model = Annotated[
    str | None,
    typer.Argument(
        help=translate("Directory or hub name of a checkpoint; the small demo model if not given."),
        show_default=False,
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
