"""`baichuan quantize`: a checkpoint on disk to a smaller one, with a bar."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from baichuan.checkpoint.calibrate import calibration_rows
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.checkpoint.sensitivity import plan_within
from baichuan.checkpoint.unfinished import check_target
from baichuan.cli.rewriting import watched
from baichuan.errors import UsageError
from baichuan.hub import local_directory
from baichuan.language import translate
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme

_UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


def run_quantize(
    source: str,
    target: Path,
    bits: int | None,
    group_size: int | None,
    *,
    calibrate: bool = False,
    texts: Sequence[Path] = (),
    budget: str | None = None,
) -> None:
    """Quantize and say what came out; interrupted, say how to go on."""
    check_target(target)  # before anything is fetched
    if budget is not None and (bits, group_size) != (None, None):
        raise UsageError(
            "--budget was given with --bits or --group-size; it chooses these itself, for each "
            "matrix. Give one or the other."
        )
    room = None if budget is None else _bytes(budget)
    plan = Plan(Scheme.of_bits(4 if bits is None else bits, group_size))
    directory = local_directory(source)
    wanted = calibrate or texts or room is not None
    ids = calibration_rows(directory, texts) if wanted else None
    if room is not None and ids is not None:
        with watched(translate("what each matrix loses"), resumes=False) as advance:
            plan = plan_within(directory, ids, room, advance)
    with watched(f"int{plan.scheme.bits}" if room is None else target.name) as advance:
        quantize_checkpoint(directory, target, plan, advance, ids=ids)
    size = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    print(f"{target}: {size / 1e9:.2f} GB")


def _bytes(budget: str) -> float:
    """Read a size such as 6GB, 850 MB or 6G.

    Raises:
        UsageError: it is none, or has no unit.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])?B?", budget.strip(), re.IGNORECASE)
    if found is None or found[2] is None:
        raise UsageError(
            "--budget is {given!r}; give the size of the result with its unit, such as 6GB or "
            "850MB.",
            given=budget,
        )
    return float(found[1]) * _UNITS[found[2].upper()]
