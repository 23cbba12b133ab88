"""A digest is of what files hold, not of where they are or when they were written."""

import os
import shutil
import subprocess

import pytest

from baichuan.checkpoint.load import DEMO
from baichuan.digest import checkpoint_digest, file_digest, files_digest
from baichuan.errors import CheckpointError


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(DEMO, tmp_path / "copy")


def test_the_standards_own_example(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_digest(tmp_path / "f") == digest
    listed = subprocess.run(
        ["sh", "-c", "sha256sum f | sha256sum"], cwd=tmp_path, capture_output=True, text=True
    )
    assert files_digest([tmp_path / "f"]) == listed.stdout.split()[0]


def test_more_than_one_chunk(tmp_path):
    (tmp_path / "zeros").write_bytes(bytes(3 * 2**20 + 5))
    listed = subprocess.run(
        ["sha256sum", tmp_path / "zeros"], capture_output=True, text=True, check=True
    )
    assert file_digest(tmp_path / "zeros") == listed.stdout.split()[0]


def test_a_copy_is_the_same_checkpoint(copy):
    for file in copy.iterdir():
        os.utime(file, ns=(1, 1))
    (copy / "result.json").write_text("{}")
    (copy / "optimizer.pt").write_bytes(b"state")
    (copy / "checkpoint-4").mkdir()
    assert checkpoint_digest(copy) == checkpoint_digest(DEMO)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "generation_config.json", "tokenizer.model"],
)
def test_one_bit_makes_another_checkpoint(copy, name):
    before = checkpoint_digest(copy)
    path = copy / name
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # neither size nor time tells
    assert checkpoint_digest(copy) != before


@pytest.mark.parametrize("name", ["added_tokens.json", "chat_template.jinja", "tokenizer.json"])
def test_a_file_that_joins_makes_another_checkpoint(copy, name):
    before = checkpoint_digest(copy)
    (copy / name).write_text("{}")
    assert checkpoint_digest(copy) != before


def test_pickles_beside_safetensors_are_not_loaded_and_do_not_count(copy):
    before = checkpoint_digest(copy)
    (copy / "pytorch_model.bin").write_bytes(b"older")
    assert checkpoint_digest(copy) == before
    (copy / "model.safetensors").unlink()
    assert checkpoint_digest(copy) != before


def test_adapters(tmp_path):
    digests = set()
    for content in (b"one", b"two"):
        (tmp_path / "adapter_config.json").write_text("{}")
        (tmp_path / "adapter_model.bin").write_bytes(content)
        digests.add(checkpoint_digest(tmp_path))
    assert len(digests) == 2


def test_what_is_no_checkpoint(tmp_path, copy):
    with pytest.raises(CheckpointError, match="holds no checkpoint and no adapter"):
        checkpoint_digest(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="holds no checkpoint and no adapter"):
        checkpoint_digest(tmp_path)
