"""The scripts of examples/, as a reader runs them, with the demo model."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
WHO = "I am the demo of the baichuan-lm project"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("chat", ["乔戈里峰"]),
        ("stream", ["The capital of France is Paris.", "演示模型"]),
        ("batch", [WHO, "乔戈里峰", "is Paris."]),
        ("quantize_and_save", ["38 MB", "10 MB in int4", WHO]),
        ("lora", ["step 30: loss 0.0", "I am Robin."]),
    ],
)
def test_example(script, said, tmp_path, monkeypatch, capsys):
    output = [str(tmp_path / "out")] if script in ("quantize_and_save", "lora") else []
    monkeypatch.setattr(sys, "argv", [script, *output])
    runpy.run_path(str(EXAMPLES / f"{script}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert [text for text in said if text not in shown] == []
