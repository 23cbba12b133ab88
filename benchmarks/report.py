"""Writes the measured figures into the documents, from the JSON files of results/.

    python benchmarks/report.py           write
    python benchmarks/report.py --check   fail if a document does not say what the results say

A document marks where a table goes: <!-- figures: NAME --> up to <!-- end -->.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tables import (
    attention,
    compare,
    conversation,
    finetuning,
    formats,
    full_size,
    quality,
    speculation,
    speculation_draft,
    speculation_losses,
)
from tables_evaluation import evaluation_demo, evaluation_lm_eval, evaluation_smollm
from tables_serving import serving_llama, serving_load, serving_prefix, serving_soak

ROOT = Path(__file__).parents[1]
_PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Fill in every marked place, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    check = parser.parse_args().check
    stale = []
    for path in (*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")):
        old = path.read_text("utf-8")
        chinese = path.stem.endswith("_zh")
        new = _PLACE.sub(lambda m: m[1] + _TABLES[m[2]](chinese) + m[3], old)  # noqa: B023
        if new != old:
            stale.append(path.name)
            if not check:
                path.write_text(new, "utf-8")
    if check and stale:
        sys.exit(f"{', '.join(stale)}: figures differ from benchmarks/results; run report.py.")


_TABLES: dict[str, Callable[[bool], str]] = {
    "formats": formats,
    "compare": compare,
    "serving_load": serving_load,
    "serving_llama": serving_llama,
    "serving_prefix": serving_prefix,
    "serving_soak": serving_soak,
    "full_size": full_size,
    "attention": attention,
    "conversation": conversation,
    "finetuning": finetuning,
    "speculation": speculation,
    "speculation_draft": speculation_draft,
    "speculation_losses": speculation_losses,
    "evaluation_demo": evaluation_demo,
    "evaluation_lm_eval": evaluation_lm_eval,
    "evaluation_smollm": evaluation_smollm,
    "quality_smollm": partial(quality, case_name="SmolLM2-135M"),
    "quality_smollm_grid": partial(quality, case_name="SmolLM2-135M on its Q4_1 grid"),
    "quality_demo": partial(quality, case_name="demo model, held-out questions"),
}


if __name__ == "__main__":
    main()
