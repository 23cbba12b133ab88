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
    rows = [("float32", f, ("", "", ""))]
    rows += [(name, q, _beside(q)) for name, q in f["quantized"].items()]
    names = list(f["columns"])
    average, same = f"{100 * f['accuracy_one_by_one']:.2f}", f"{f['agreement']:.2%}"
    body = [("transformers, one by one", *[""] * len(names[1:]), average, "", "", same)]
    for name, q, beside in rows:
        body.append((name, *(f"{100 * q['columns'][column]:.2f}" for column in names), *beside))
    head = (f"MMLU, {f['questions']:,} questions", *names, "difference", "p", "same predictions")
    return table_rows(head, *body) + _judged(f) + hardware(f, chinese)


def _beside(pair: dict[str, Any]) -> tuple[str, str, str]:
    low, value, high = (100 * x for x in pair["difference"])
    same = f"{pair['same_prediction']:.2%}"
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})", f"{pair['mcnemar_p']:.2g}", same


def _judged(f: dict[str, Any]) -> str:
    text = f"No letter's logit is more than {f['largest_difference_of_logits']:.1g} apart between "
    text += "the first two rows"
    if apart := [abs(margin) for one in f["disagreements"] for margin in one["margins"]]:
        text += f"; where they predict different letters, these two are within {max(apart):.1g}"
    return f"\n{text}.\n"
