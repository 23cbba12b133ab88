"""JSON that someone else wrote: what it holds, or one sentence."""

import json
import os

import pytest

from baichuan.errors import CheckpointError, DataError
from baichuan.json_files import parse_json, read_json, read_object


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON (Expecting value"),
        (b"\xff\xfe{\x00}\x00", "is not JSON ('utf-8' codec can't decode"),
        (b"[" * 100_000, "is not JSON (nested deeper than 100; 100,000 bytes)"),
        (b'{"a":' * 101 + b"1" + b"}" * 101, "nested deeper than 100"),
        (b"1" * 5_000, "is not JSON"),
        (b'{"a": 1', "is not JSON"),
    ],
    ids=["empty", "utf-16", "deep", "a little too deep", "a long number", "cut"],
)
def test_what_is_not_json_is_refused(tmp_path, content, reason):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as refused:
        read_json(path, DataError)
    assert str(path) in str(refused.value)
    assert reason in str(refused.value)


def test_what_is_json_is_returned(tmp_path):
    path = tmp_path / "a.json"
    deep = '{"a":' * 100 + "1" + "}" * 100
    path.write_text("\ufeff" + deep, encoding="utf-8")
    assert read_json(path) == json.loads(deep)
    assert [parse_json(text) for text in ("1", '"x"', "null", "[]")] == [1, "x", None, []]


def test_size_is_checked_before_the_file_is_read(tmp_path):
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, 100 << 30)  # sparse
    with pytest.raises(CheckpointError, match=r"has 107,374,182,400 bytes; a JSON file of at most"):
        read_json(path)


def test_what_is_no_file_or_no_object_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"pipe cannot be read \(not a regular file\)"):
        read_json(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"absent cannot be read \(No such file"):
        read_json(tmp_path / "absent")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(DataError, match=r"list\.json holds no table of settings"):
        read_object(tmp_path / "list.json", DataError)
