"""Files are written whole or not at all."""

import pytest

from baichuan.files import write_at_one_stroke


def test_whole(tmp_path):
    target = tmp_path / "f"
    write_at_one_stroke(target, b"one")
    write_at_one_stroke(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_nothing_is_left_of_a_failure(tmp_path):
    with pytest.raises(OSError):
        write_at_one_stroke(tmp_path / "gone" / "f", b"one")
    (tmp_path / "directory").mkdir()
    with pytest.raises(OSError):
        write_at_one_stroke(tmp_path / "directory", b"one")
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]
