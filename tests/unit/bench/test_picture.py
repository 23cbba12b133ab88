"""The picture, drawn for real."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.bench.test_results import SENT

from baichuan.bench.job import Job
from baichuan.bench.memory import Need
from baichuan.bench.picture import draw, require_picture
from baichuan.bench.results import Figures, Report, Row
from baichuan.errors import UsageError

MACHINE = {"cpu": "a processor", "cores": 2, "memory_gb": 24}
BEGINNINGS = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}


def rows(**changes) -> list[Row]:
    return [
        Row("bf16", Need(10**13, 1, 1), 10**10),
        Row("int8", Need(1, 1, 1), 10**10, failure="killed"),
        Row("int4", Need(1, 1, 1), 10**10, figures=Figures.from_dict({**SENT, **changes})),
    ]


@pytest.mark.parametrize("kind", BEGINNINGS)
@pytest.mark.parametrize("changes", [{}, {"positions": None}])
def test_every_kind(tmp_path, kind, changes):
    report = Report("a model", Job(random="13b"), (40, 40), None, MACHINE, rows(**changes))
    draw(report, tmp_path / f"picture{kind}")
    assert [file.name for file in tmp_path.iterdir()] == [f"picture{kind}"]
    assert (tmp_path / f"picture{kind}").read_bytes().startswith(BEGINNINGS[kind])


def test_an_svg_says_what_was_measured(tmp_path, monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text stays text
    draw(Report("a model", Job(random="13b"), (40, 40), None, MACHINE, rows()), tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text("utf-8")
    for said in ("a model", "a processor, 2 cores", "does not fit", "failed", "original README"):
        assert said in text


@pytest.mark.parametrize("name", ["picture", "picture.gif", "figures.json"])
def test_another_ending_is_a_sentence(name):
    with pytest.raises(UsageError, match=r"should end in one of \.png, \.svg, \.pdf"):
        require_picture(Path(name))


def test_a_missing_extra_names_its_own_line(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None; from baichuan.cli.main import main; "
        "sys.argv = ['baichuan', 'bench', '--plot', 'x.png']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 2
    assert "pip install 'baichuan-lm[bench]'" in done.stderr
    assert done.stdout == ""
