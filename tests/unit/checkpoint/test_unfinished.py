"""A target is checked before the work, and what others have there is not touched."""

import json
from pathlib import Path

import pytest
from tests.conftest import tiny_config

import baichuan
from baichuan.checkpoint.gguf.to_gguf import gguf_from_checkpoint
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.checkpoint.unfinished import check_target
from baichuan.errors import CheckpointError, UsageError
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("source")
    baichuan.BaichuanForCausalLM(tiny_config()).save_pretrained(directory)
    return directory


@pytest.fixture(params=["checkpoint", "gguf"])
def write(request, source):
    """Write a result to a target."""
    if request.param == "gguf":
        return lambda target: gguf_from_checkpoint(source, target, tokenizer=False)
    return lambda target: quantize_checkpoint(source, target, Plan(Scheme(8, None)))


def contents(directory):
    return {
        str(path.relative_to(directory)): path.is_symlink() or path.is_dir() or path.read_bytes()
        for path in directory.rglob("*")
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("target.partial/notes.txt", "mine"),
        ("target.partial/config.json", "{}"),  # without a journal
        ("target.partial/model-00001-of-00001.safetensors", "mine"),
        ("target.partial", "a file"),
        ("target.partial.lock", "mine"),
    ],
)
def test_files_of_others_are_refused_and_stay(write, tmp_path, name, content):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    before = contents(tmp_path)
    with pytest.raises((UsageError, CheckpointError), match=r"target\.partial.*another|elsewhere"):
        write(tmp_path / "target")
    assert contents(tmp_path) == before


def test_a_stranger_among_our_files_is_named(write, tmp_path):
    (tmp_path / "target.partial").mkdir()
    for name in ("journal.json", "config.json", "thesis.tex"):
        (tmp_path / "target.partial" / name).write_text("{}")
    with pytest.raises(UsageError, match=r"target\.partial/thesis\.tex is not of an unfinished"):
        write(tmp_path / "target")
    assert len(contents(tmp_path)) == 4


@pytest.mark.parametrize("content", ["", "[]", "[1, 2", '{"settings": 1, "sums": []}', "\x00" * 9])
def test_a_journal_of_garbage_begins_anew(write, tmp_path, content):
    (tmp_path / "target.partial").mkdir()
    (tmp_path / "target.partial" / "journal.json").write_text(content)
    write(tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("name", ["target", "target.partial"])
@pytest.mark.parametrize("to", ["gone", "."])
def test_a_symbolic_link_is_refused_before_any_work(tmp_path, name, to):
    (tmp_path / name).symlink_to(to)
    with pytest.raises(UsageError, match=r"exists; give a name that is free|Move it away"):
        check_target(tmp_path / "target")
    assert (tmp_path / name).is_symlink()


def test_a_target_in_a_directory_of_someone_else_is_refused(unprivileged):
    (unprivileged / "locked").mkdir(mode=0o000)
    (unprivileged / "read").mkdir(mode=0o500)
    for parent in ("locked", "locked/deeper", "read"):
        with pytest.raises(CheckpointError, match=r"cannot be made .*Give a target elsewhere"):
            check_target(unprivileged / parent / "target")


def test_a_target_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"target\.partial cannot be made .*elsewhere"):
        check_target(tmp_path / "file" / "target")


@pytest.mark.parametrize("name", [".", "..", "/", "x" * 250, "x" * 300])
def test_a_name_that_cannot_be_is_a_sentence(write, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        (UsageError, CheckpointError), match=r"exists; give|Give a target elsewhere"
    ):
        write(Path(name))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_leaves_beside_a_whole_result_is_removed(write, tmp_path):
    target = tmp_path / "target"
    write(target)
    whole = contents(tmp_path)
    (tmp_path / "target.partial.lock").touch()
    if target.is_dir():
        digest, name = (target / "SHA256SUMS").read_text().split()
        journal = {"settings": {}, "sums": {name: digest}}
        (target / "journal.json").write_text(json.dumps(journal))
    else:
        (tmp_path / "target.partial").mkdir()
        (tmp_path / "target.partial" / "journal.json").touch()
    with pytest.raises(UsageError, match="exists"):
        check_target(target)
    assert contents(tmp_path) == whole


def test_a_journal_of_someone_else_in_a_directory_stays(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "journal.json").write_text('{"sums": {}}')
    with pytest.raises(UsageError, match="exists"):
        check_target(tmp_path / "target")
    assert (tmp_path / "target" / "journal.json").exists()
