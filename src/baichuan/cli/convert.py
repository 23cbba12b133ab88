"""`baichuan convert`: a checkpoint to a GGUF file, or a GGUF file to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baichuan.cli.options import Group
from baichuan.errors import UsageError
from baichuan.language import translate

_SUFFIX = ".gguf"

HELP = translate(
    "Write a checkpoint as a GGUF file for llama.cpp, or a GGUF file as a checkpoint.\n\n"
    "The tokenizer goes with it. int8 becomes Q8_0 and int4 Q4_0 without a further loss."
)


def convert(
    source: Annotated[
        str, typer.Argument(help=translate("A GGUF file, or a checkpoint's directory or hub name."))
    ],
    target: Annotated[
        Path, typer.Argument(help=translate("To make: a directory, or a file ending in .gguf."))
    ],
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            help=translate(
                "To GGUF: f32, f16, bf16, q8_0, q4_0 or q4_k; by default what the checkpoint has."
            ),
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option(help=translate("From GGUF: 8, 4 or 3 quantizes anew."))
    ] = None,
    group_size: Group = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help=translate("From GGUF: float32, bfloat16 or float16; chosen if not given.")
        ),
    ] = None,
) -> None:
    """Run `baichuan convert`."""
    if source.endswith(_SUFFIX) == (target.suffix == _SUFFIX):
        raise UsageError(
            "{source} and {target}: one of them must be a GGUF file, whose name ends in .gguf, the "
            "other a checkpoint.",
            source=source,
            target=target,
        )
    if target.suffix == _SUFFIX:
        _refuse("--bits, --group-size, --dtype", bits, group_size, dtype)
        _to_gguf(source, target, kind)
    else:
        _refuse("--type", kind)
        _from_gguf(Path(source), target, bits, group_size, dtype)


def _refuse(names: str, *given: object) -> None:
    if any(value is not None for value in given):
        raise UsageError(
            "{names} cannot be given here; see `baichuan convert --help`.", names=names
        )


def _to_gguf(source: str, target: Path, kind: str | None) -> None:
    from baichuan.checkpoint.gguf.to_gguf import gguf_from_checkpoint
    from baichuan.checkpoint.unfinished import check_target
    from baichuan.cli.rewriting import watched
    from baichuan.hub import local_directory

    check_target(target)  # before anything is fetched
    directory = local_directory(source)
    with watched(kind or "gguf", resumes=False) as advance:
        gguf_from_checkpoint(directory, target, kind, advance)
    print(f"{target}: {target.stat().st_size / 1e9:.2f} GB")


def _from_gguf(
    source: Path, target: Path, bits: int | None, group_size: int | None, dtype: str | None
) -> None:
    from baichuan.checkpoint.gguf.from_gguf import checkpoint_from_gguf
    from baichuan.cli.rewriting import watched
    from baichuan.quant.plan import Plan
    from baichuan.quant.scheme import Scheme

    if bits is None:
        _refuse("--group-size", group_size)
    plan = None if bits is None else Plan(Scheme.of_bits(bits, group_size))
    with watched("gguf" if bits is None else f"int{bits}") as advance:
        checkpoint_from_gguf(source, target, plan, dtype, advance)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    print(f"{target}: {size / 1e9:.2f} GB")
