"""The figures of evaluation that documentation shows."""

from __future__ import annotations

from typing import Any

from tables import hardware, read, table_rows


def evaluation_demo(chinese: bool) -> str:
    """CMMLU with the demo model, beside one prompt at a time."""
    f = read("evaluation_demo")
    seconds = (f"{f[key]:.0f} s" for key in ("seconds", "seconds_one_by_one"))
    head = ("CMMLU", "baichuan eval", "transformers", "", "same predictions")
    row = (f"{f['questions']:,}", *seconds, f"{f['times_as_fast']:.1f}x", f"{f['agreement']:.2%}")
    return table_rows(head, row) + hardware(f, chinese)


def evaluation_lm_eval(chinese: bool) -> str:
    """Some subjects of CMMLU with the demo model, beside lm-evaluation-harness."""
    f = read("evaluation_lm_eval")
    seconds = (f"{f[key]:.1f} s" for key in ("seconds", "seconds_lm_eval"))
    head = ("CMMLU", "baichuan eval", f"lm-eval {f['lm_eval']}", "")
    row = (f"{f['questions']:,}", *seconds, f"{f['times_as_fast']:.1f}x")
    return table_rows(head, row) + hardware(f, chinese)


def evaluation_smollm(chinese: bool) -> str:
    """MMLU with SmolLM2: float32, int8 and int4, and what another scorer says of float32."""
    f = read("evaluation_smollm")
    columns = f["columns"]
    head = ("MMLU", *columns["float32"], "difference", "p", "same predictions")
    body = [
        (name, *(f"{100 * x:.2f}" for x in values.values()), *_beside(f["quantized"].get(name)))
        for name, values in columns.items()
    ]
    body.insert(0, _one_by_one(f, len(columns["float32"])))
    apart = [abs(margin) for one in f["disagreements"] for margin in one["margins"]]
    judged = (
        f"\n{f['questions']:,} questions. Between the first two rows, no letter's logit is more "
        f"than {f['largest_difference_of_logits']:.1g} apart"
    )
    if apart:
        judged += f"; where predictions differ, the two letters are within {max(apart):.1g}"
    return table_rows(head, *body) + judged + ".\n" + hardware(f, chinese)


def _beside(pair: dict[str, Any] | None) -> tuple[str, str, str]:
    if pair is None:
        return "", "", ""
    low, value, high = (100 * x for x in pair["difference"])
    same = f"{pair['same_prediction']:.1%}"
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})", f"{pair['mcnemar_p']:.2g}", same


def _one_by_one(f: dict[str, Any], columns: int) -> tuple[str, ...]:
    empty = [""] * (columns - 1)
    average, same = f"{100 * f['accuracy_one_by_one']:.2f}", f"{f['agreement']:.2%}"
    return ("transformers, one by one", *empty, average, "", "", same)
