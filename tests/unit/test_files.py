"""Files are written whole or not at all."""

import pytest

from baichuan.files import read_text, write_at_one_stroke


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


def test_a_byte_order_mark_is_no_text(tmp_path):
    for content, text in (
        ("\ufeff你好\n".encode(), "你好\n"),
        (b"plain", "plain"),
        ("a\ufeffb".encode(), "a\ufeffb"),
    ):
        (tmp_path / "f").write_bytes(content)
        assert read_text(tmp_path / "f") == text
