"""What `baichuan convert` takes and shows, in both directions."""

import shutil
from pathlib import Path

import pytest
from tests.conftest import tiny_config

import baichuan
from baichuan.cli.convert import convert
from baichuan.errors import CheckpointError, UsageError


@pytest.fixture
def source(tmp_path, pytestconfig):
    directory = tmp_path / "source"
    baichuan.BaichuanForCausalLM(tiny_config(vocab_size=1000)).save_pretrained(directory)
    shutil.copy(pytestconfig.rootpath / "tests/data/tokenizer/tokenizer.model", directory)
    return str(directory)


def test_there_and_back(source, tmp_path, capsys):
    file, directory = tmp_path / "x.gguf", tmp_path / "back"
    convert(source, file, kind="f16")
    shown = capsys.readouterr()
    assert shown.out == f"{file}: 0.00 GB\n" and "f16" in shown.err and "%" in shown.err
    convert(str(file), directory, bits=4, group_size=32)
    shown = capsys.readouterr()
    assert shown.out == f"{directory}: 0.00 GB\n" and "int4" in shown.err
    model, _ = baichuan.load(directory)
    assert model.is_quantized


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("a", "b"), {}, "a and b: one of them must be a GGUF file"),
        (("a.gguf", "b.gguf"), {}, "one of them must be a GGUF file"),
        (("a.gguf", "b"), {"kind": "f16"}, "--type cannot be given here"),
        (("a.gguf", "b"), {"group_size": 32}, "--group-size cannot be given here"),
        (("a", "b.gguf"), {"dtype": "float32"}, "--dtype cannot be given here"),
        (("a.gguf", "b"), {"bits": 5}, "bits is 5; allowed is 8, 4 or 3"),
    ],
)
def test_what_cannot_be_asked_for(names, options, message):
    with pytest.raises(UsageError, match=message):
        convert(names[0], Path(names[1]), **options)


def test_nothing_is_fetched_or_overwritten_for_a_target_that_exists(tmp_path):
    (tmp_path / "x.gguf").touch()
    with pytest.raises(UsageError, match="exists"):
        convert("no-such/model", tmp_path / "x.gguf")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert(str(tmp_path / "none.gguf"), tmp_path / "target")
