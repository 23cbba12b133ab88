"""Rules of the house that no linter knows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import baichuan

ROOT = Path(__file__).parents[2]
CODE = sorted(
    path
    for folder in ("src", "tests", "benchmarks", "demo")
    for path in (ROOT / folder).rglob("*.py")
    if ".venv" not in path.parts
)
#: Names that say nothing of what is inside, and begin import circles.
NOTHING = {"utils", "util", "common", "helpers", "helper", "misc", "constants"}


def test_no_file_is_named_after_nothing():
    assert not [path for path in CODE if NOTHING & {*path.parts, path.stem}]


def blocks(document: str, language: str) -> list[str]:
    """Code blocks without their comments, which are in the document's language."""
    text = (ROOT / document).read_text("utf-8")
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [re.sub(r"\s+#.*", "", block) for block in found]


@pytest.mark.parametrize("language", ["python", "bash"])
def test_both_readmes_show_the_same_code(language):
    ours, theirs = blocks("README.md", language), blocks("README_zh.md", language)
    assert ours
    assert [re.sub('".*?[?？]"', '"?"', b) for b in ours] == [
        re.sub('".*?[?？]"', '"?"', b) for b in theirs
    ]


def test_the_documents_say_what_the_benchmarks_measured():
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_dir_shows_the_public_names():
    assert set(baichuan.__all__) <= set(dir(baichuan))
