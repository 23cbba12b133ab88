"""Files are written whole or not at all, and as readable as was asked for."""

import fcntl
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from baichuan.files import read_text, weights_by_umask, write_at_one_stroke


def test_whole(tmp_path):
    target = tmp_path / "f"
    write_at_one_stroke(target, b"one")
    write_at_one_stroke(target, b"two")
    assert target.read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_the_mode_is_the_umasks_unless_private_or_there_already(tmp_path, umask):
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(0o604)
    before = os.umask(umask)
    try:
        write_at_one_stroke(tmp_path / "new", b"")
        write_at_one_stroke(tmp_path / "private", b"", private=True)
        write_at_one_stroke(tmp_path / "old", b"", private=True)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"new": 0o666 & ~umask, "private": 0o600, "old": 0o604}


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


def test_what_a_killed_process_left_is_removed_and_what_lives_is_not(tmp_path):
    for name in (".f.0123abcd", ".f.0123abcg", ".g.0123abcd", ".f.0123abcd.txt"):
        (tmp_path / name).touch()
    with (tmp_path / ".f.89abcdef").open("wb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        write_at_one_stroke(tmp_path / "f", b"one")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"f", ".f.0123abcg", ".g.0123abcd", ".f.0123abcd.txt", ".f.89abcdef"}


@pytest.mark.parametrize("there", [False, True])
def test_a_symbolic_link_stays_one(tmp_path, there):
    (tmp_path / "d").mkdir()
    if there:
        (tmp_path / "d" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("d/file")
    write_at_one_stroke(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "d" / "file").read_bytes() == b"new"


def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as threads:
        read = threads.submit((tmp_path / "pipe").read_bytes)
        write_at_one_stroke(tmp_path / "pipe", b"content")
        assert read.result() == b"content"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_stale_safetensors_are_removed_unless_someone_saves(tmp_path):
    header = (2).to_bytes(8, "little") + b"{}"
    (tmp_path / ".tmpAb12Cd").write_bytes(header)
    (tmp_path / ".tmpAb12Ce").write_text("notes of someone else")
    with weights_by_umask(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".tmpAb12Ce"]
        (tmp_path / ".tmpAb12Cf").write_bytes(header)
        with weights_by_umask(tmp_path):
            assert (tmp_path / ".tmpAb12Cf").exists()
