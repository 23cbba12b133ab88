"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
        help=translate("8 or 4: quantize while loading. A quantized checkpoint needs no --bits.")
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
