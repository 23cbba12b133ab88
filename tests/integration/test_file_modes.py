"""The mode of every file that is written is what the umask says, whichever library wrote it."""

import os
import stat

import pytest

import baichuan
from baichuan.checkpoint.gguf.from_gguf import checkpoint_from_gguf
from baichuan.checkpoint.gguf.to_gguf import gguf_from_checkpoint
from baichuan.checkpoint.merge import merge_adapter
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.evaluate.results import write_json
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme


@pytest.fixture(params=[0o022, 0o007], ids=oct)
def mode(request):
    """The mode of a new file under one of several umasks."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def modes(path):
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file): stat.S_IMODE(file.stat().st_mode) for file in files}


def test_checkpoints_and_what_is_made_of_them(mode, small, tmp_path):
    model, tokenizer = baichuan.load(small)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="5MB")
    tokenizer.save_pretrained(tmp_path / "one")
    quantize_checkpoint(small, tmp_path / "int4", Plan(Scheme.of_bits(4)))
    gguf_from_checkpoint(tmp_path / "int4", tmp_path / "x.gguf")
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back")
    found = modes(tmp_path)
    assert {name for name, given in found.items() if given != mode} == set()
    assert sum(name.endswith(".safetensors") for name in found) >= 6
    # Written again, as when a training's result replaces an earlier one.
    (tmp_path / "one" / "model.safetensors").chmod(0o600)
    model.save_pretrained(tmp_path / "one")
    assert set(modes(tmp_path / "one").values()) == {mode}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_trainings(mode, small, rows, tmp_path, method):
    pytest.importorskip("datasets")
    from baichuan.train.arguments import parse
    from baichuan.train.run import run

    command = ["--model_name_or_path", str(small), "--dataset", str(rows), "--max_steps", "1"]
    out = ["--output_dir", str(tmp_path / "out"), "--save_steps", "1", "--plot_loss"]
    run(parse([*command, *out, "--finetuning_type", method]))
    if method == "lora":
        merge_adapter(small, tmp_path / "out", tmp_path / "merged")
    found = modes(tmp_path)
    assert {name for name, given in found.items() if given != mode} == set()
    assert sum(name.endswith(".safetensors") for name in found) == (3 if method == "lora" else 2)


def test_conversations_and_results(mode, tmp_path):
    model, tokenizer = baichuan.load()
    baichuan.Conversation(model, tokenizer).save(tmp_path / "talk.json")
    write_json(tmp_path / "result.json", {})
    assert set(modes(tmp_path).values()) == {mode}
