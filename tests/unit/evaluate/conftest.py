"""Small data sets in the files' own layouts; every question in them is invented."""

import csv
from pathlib import Path

import pytest

HEADERS = {
    "ceval": ["id", "question", "A", "B", "C", "D", "answer", "explanation"],
    "cmmlu": ["", "Question", "A", "B", "C", "D", "Answer"],
    "mmlu": None,
}
NAMES = {"ceval": "{s}_{split}.csv", "mmlu": "{s}_{split}.csv", "cmmlu": "{s}.csv"}


def write_rows(path: Path, header, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(([header] if header else []) + rows)


def row(benchmark, subject, split, number):
    """Questions of different lengths, with answers that follow no pattern of the letters."""
    text = f"{subject} {split} 第{number}题：" + "数一数" * (number % 4) + f"，{number * 7 % 10}？"
    body = [text, f"{number}", f"{number + 1}只", "以上都不对", f"第 {number} 种"]
    answer = "ABCD"[(number * number + len(subject)) % 4]
    if benchmark == "mmlu":
        return [*body, answer]
    cells = [str(number), *body, answer]
    if benchmark == "ceval":
        cells = cells[: 6 if split == "test" else 7] + (["因为"] if split == "dev" else [])
    return cells


def header_of(benchmark, split):
    header = HEADERS[benchmark]
    if benchmark == "ceval":
        return header[: {"dev": 8, "val": 7, "test": 6}[split]]
    return header


@pytest.fixture
def make_data(tmp_path):
    """Write the dev and question files of some subjects and give their folder."""

    def make(benchmark, subjects, *, split=None, questions=6):
        split = split or {"ceval": "val"}.get(benchmark, "test")
        folder = tmp_path / f"{benchmark}-data"
        for subject in subjects:
            for part, count in (("dev", 5), (split, questions)):
                name = NAMES[benchmark].format(s=subject, split=part)
                rows = [row(benchmark, subject, part, number) for number in range(count)]
                write_rows(folder / part / name, header_of(benchmark, part), rows)
        return folder

    return make
