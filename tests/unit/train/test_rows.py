"""Files of rows: every kind is read, and every kind of damage is named with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from baichuan.errors import DataError
from baichuan.train.registry import find
from baichuan.train.rows import rows_of

ROWS = [{"instruction": "问", "output": "a\u2028b"}, {"instruction": "q", "output": 'x, "y"\nz'}]


def read(path: Path) -> list[tuple[str, object]]:
    (source,) = find([str(path)], "nowhere")
    return list(rows_of(source))


def test_an_array_of_rows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS, ensure_ascii=False), "utf-8-sig")
    assert read(path) == [(f"{path}, row {n}", row) for n, row in enumerate(ROWS, 1)]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_row_in_each_line(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    path.write_text("\n\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS), "utf-8")
    assert read(path) == [(f"{path}, line 1", ROWS[0]), (f"{path}, line 3", ROWS[1])]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ({"data": ROWS}, ROWS),
        ({"version": "1", "data": ROWS, "splits": [{"name": "train"}]}, ROWS),
        (ROWS[0], ROWS[:1]),
        (5, [5]),
        (
            {"messages": [{"role": "user"}], "data": None},
            [{"messages": [{"role": "user"}], "data": None}],
        ),
        ({"rows": ROWS}, [{"rows": ROWS}]),
    ],
)
def test_one_object_in_a_file(tmp_path, content, rows, indent):
    path = tmp_path / "rows.json"
    path.write_bytes(b"\n" + json.dumps(content, indent=indent).replace("\n", "\r\n").encode())
    assert [row for _, row in read(path)] == rows


def test_csv(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes('instruction,output\r\n问,a\u2028b\r\nq,"x, ""y""\nz"\r\n'.encode())
    assert read(path) == [(f"{path}, line 2", ROWS[0]), (f"{path}, line 4", ROWS[1])]


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert read(path) == [(f"{path}, row {n}", row) for n, row in enumerate(ROWS, 1)]


def test_each_line_of_a_text_is_a_document(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("一\r\n\n二".encode())
    assert read(path) == [(f"{path}, line 1", {"text": "一"}), (f"{path}, line 3", {"text": "二"})]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.json", b'[{"instruction": ', "a.json is not JSON: Expecting value"),
        (
            "a.json",
            b'{"data": [\n{}, {"q"]}',
            "a.json is not JSON: Expecting ':' delimiter: line 2",
        ),
        ("a.jsonl", b'{}\n{"instr', "a.jsonl, line 2: this is not JSON"),
        ("a.jsonl", b'{"instr\n{}', "a.jsonl, line 1: this is not JSON"),
        ("a.csv", b'x,y\n1,"2"z\n', "a.csv, line 2: this is not CSV"),
        ("a.parquet", b"PAR1 not", "a.parquet is not Parquet"),
        ("a.json", '[\n"问"]'.encode("gbk"), "a.json, line 2: this is not UTF-8"),
        ("a.xlsx", b"", "a.xlsx cannot be read; files of rows end in .json"),
    ],
)
def test_damaged_files(tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        read(path)
