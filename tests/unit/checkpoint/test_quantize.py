"""Quantizing on disk: the result of doing it in memory, whatever interrupts, in little memory."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_config

import baichuan
from baichuan.checkpoint import rewrite
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.errors import CheckpointError, UsageError
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme

INT4, INT8 = Plan(Scheme(4, 32)), Plan(Scheme(8, None))
SMALL = 15_000  # bytes of a shard: the tiny network then has several


def network(family="alibi", **changes):
    torch.manual_seed(3)
    config = tiny_config(vocab_size=1000, position_embedding=family, **changes)
    return baichuan.BaichuanForCausalLM(config).eval()


@pytest.fixture
def source(tmp_path, pytestconfig):
    network().save_pretrained(tmp_path / "source", max_shard_size="60KB")
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(pytestconfig.rootpath / "tests/data/tokenizer" / file, tmp_path / "source")
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "new" / "target"


@pytest.fixture
def partial(target):
    return target.with_name("target.partial")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(rewrite, "_SHARD_BYTES", SMALL)


def tensors(directory):
    return {
        name: tensor
        for file in directory.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def assert_same_tensors(a, b):
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("family", ["alibi", "rope"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plan", [INT4, INT8], ids=["int4", "int8"])
def test_the_result_is_that_of_quantizing_in_memory(tmp_path, target, family, dtype, plan):
    model = network(family).to(dtype)
    model.save_pretrained(tmp_path / "source")
    quantize_checkpoint(tmp_path / "source", target, plan)
    scheme = plan.scheme
    model.quantize(scheme.bits, scheme.group_size).save_pretrained(tmp_path / "memory")
    assert_same_tensors(target, tmp_path / "memory")
    ours, theirs = (
        json.loads((directory / "config.json").read_text())
        for directory in (target, tmp_path / "memory")
    )
    assert ours == theirs
    again = baichuan.BaichuanForCausalLM.from_pretrained(target)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("legacy", [False, True])
def test_published_pickles_are_a_source_too(tmp_path, target, legacy, small_shards):
    model = network("rope")
    state = model.state_dict()
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    model.config.save_pretrained(tmp_path)
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    quantize_checkpoint(tmp_path, target, INT4)
    model.quantize(4, 32).save_pretrained(tmp_path / "memory")
    assert_same_tensors(target, tmp_path / "memory")


def test_a_head_that_is_the_embedding_stays(tmp_path, target):
    model = network(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "source")
    quantize_checkpoint(tmp_path / "source", target, INT8)
    model.quantize(8).save_pretrained(tmp_path / "memory")
    assert_same_tensors(target, tmp_path / "memory")
    baichuan.BaichuanForCausalLM.from_pretrained(target)


def test_all_that_belongs_to_it_is_there(source, target, partial, small_shards):
    told = []
    quantize_checkpoint(source, target, INT4, lambda done, total: told.append((done, total)))
    shards = sorted(file.name for file in target.glob("*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert {file.name for file in target.iterdir()} == {
        *shards,
        *("config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json"),
        *("model.safetensors.index.json", "SHA256SUMS"),
    }
    assert not partial.exists()
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert 0.9 * told[-1][1] < told[-1][0] <= told[-1][1]
    placed = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in shards:
        assert set(load_file(target / shard)) == {n for n, file in placed.items() if file == shard}
    sums = dict(line.split("  ")[::-1] for line in (target / "SHA256SUMS").read_text().splitlines())
    hashed = {s: hashlib.sha256((target / s).read_bytes()).hexdigest() for s in shards}
    assert sums == hashed
    model, tokenizer = baichuan.load(target)
    assert isinstance(model.chat(tokenizer, [{"role": "user", "content": "你好"}]), str)


KILLED = """
import os, signal, sys
from pathlib import Path
from baichuan.checkpoint import quantize, rewrite
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme
rewrite._SHARD_BYTES = {small}
left = {tensors}
def progress(done, total):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
if not {tensors}:
    rewrite.save_file = lambda tensors, path, **kwargs: (
        path.write_bytes(b"half"), os.kill(os.getpid(), signal.SIGKILL))
quantize.quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), Plan(Scheme(4, 32)), progress)
"""


def run_killed(source, target, after):
    """Quantize in a process that kills itself after some tensors (0: while it writes)."""
    code = KILLED.format(small=SMALL, tensors=after)
    done = subprocess.run([sys.executable, "-c", code, source, target])
    assert done.returncode == -signal.SIGKILL


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_killed_it_goes_on_where_it_was(tmp_path, source, target, partial, small_shards):
    whole = tmp_path / "whole"
    quantize_checkpoint(source, whole, INT4)
    run_killed(source, target, after=9)
    finished = {file: file.stat().st_mtime_ns for file in partial.glob("*.safetensors")}
    assert 1 <= len(finished) < len(list(whole.glob("*.safetensors")))
    assert not target.exists()
    run_killed(source, target, after=0)  # the next shard is half written
    assert list(partial.glob("*.safetensors.partial"))
    assert {path.name for path in target.parent.iterdir()} == {partial.name, f"{partial.name}.lock"}
    quantize_checkpoint(source, target, INT4)
    assert contents(target) == contents(whole)
    for file, time in finished.items():
        assert (target / file.name).stat().st_mtime_ns == time
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def interrupted(source, target, after=12):
    """Leave an unfinished run behind."""

    def progress(done, total):
        nonlocal after
        after -= 1
        if after == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, target, INT4, progress)


@pytest.mark.parametrize("fault", ["changed", "truncated", "gone"])
def test_a_shard_damaged_between_runs_is_written_again(
    tmp_path, source, target, partial, small_shards, fault
):
    quantize_checkpoint(source, tmp_path / "whole", INT4)
    interrupted(source, target)
    first = partial / next(iter(json.loads((partial / "journal.json").read_text())["sums"]))
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content if fault == "changed" else content[:-5])
    if fault == "gone":
        first.unlink()
    quantize_checkpoint(source, target, INT4)
    assert contents(target) == contents(tmp_path / "whole")


def test_a_journal_cut_off_is_begun_anew(tmp_path, source, target, partial, small_shards):
    quantize_checkpoint(source, tmp_path / "whole", INT4)
    interrupted(source, target)
    (partial / "journal.json").write_text('{"settings": ')
    quantize_checkpoint(source, target, INT4)
    assert contents(target) == contents(tmp_path / "whole")


@pytest.mark.parametrize("after", [1, 12])
def test_another_plan_or_source_is_refused(source, target, partial, small_shards, after):
    interrupted(source, target, after)
    before = contents(partial)
    with pytest.raises(UsageError, match=r"target.partial holds an unfinished run.*remove it"):
        quantize_checkpoint(source, target, INT8)
    network("rope").save_pretrained(source)
    with pytest.raises(UsageError, match="of another source"):
        quantize_checkpoint(source, target, INT4)
    assert contents(partial) == before


def test_a_target_that_exists_is_refused(source, target):
    target.mkdir(parents=True)
    with pytest.raises(UsageError, match="target exists; give a name that is free"):
        quantize_checkpoint(source, target, INT4)
    assert not list(target.iterdir())
    with pytest.raises(UsageError, match="source exists"):
        quantize_checkpoint(source, source, INT4)


def test_what_is_quantized_already_is_refused(source, target, tmp_path):
    quantize_checkpoint(source, target, INT8)
    with pytest.raises(CheckpointError, match=r"target is quantized already; .*original weights"):
        quantize_checkpoint(target, tmp_path / "again", INT4)
    assert not (tmp_path / "again.partial").exists()


def remove_a_tensor(source):
    file = next(source.glob("*.safetensors"))
    held = load_file(file)
    held.pop(next(name for name in held if "norm" not in name))
    save_file(held, file)


def cut_a_shard(source):
    file = next(source.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def break_a_weight(source):
    model = network()
    model.model.layers[1].mlp.down_proj.weight.data[5, 5] = torch.nan
    model.save_pretrained(source)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_a_tensor, "lacks the tensor"),
        (cut_a_shard, "cannot be read.*truncated or damaged"),
        (lambda source: (source / "config.json").unlink(), "has no config.json"),
        (lambda source: next(source.glob("*.safetensors")).unlink(), "lacks 1 of"),
        (break_a_weight, "model.layers.1.mlp.down_proj.weight: The weight holds NaN"),
    ],
)
def test_a_damaged_source_is_refused(source, target, damage, message):
    for file in source.glob("*.safetensors*"):
        file.unlink() if damage is break_a_weight else None
    damage(source)
    with pytest.raises(CheckpointError, match=message):
        quantize_checkpoint(source, target, INT4)
    assert not target.exists()


def test_too_small_a_disk_is_noticed_first(source, target, partial, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 10_000, 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"has 0.0 GB free; .*needs 0.0 GB. Free some"):
        quantize_checkpoint(source, target, INT4)
    assert not partial.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_room_needed_is_that_of_the_result(tmp_path, target, monkeypatch, dtype):
    network().to(dtype).save_pretrained(tmp_path / "source")
    quantize_checkpoint(tmp_path / "source", target, INT4)
    size = sum(tensor.nbytes for tensor in tensors(target).values())
    again = target.with_name("again")
    for share, fits in ((0.95, False), (1.05, True)):
        free = int(share * size)
        usage = namedtuple("usage", "total used free")(10**9, 10**9 - free, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        with nullcontext() if fits else pytest.raises(CheckpointError, match="GB free"):
            quantize_checkpoint(tmp_path / "source", again, INT4)


def test_a_second_run_is_kept_out(tmp_path, source, target, partial, small_shards):
    quantize_checkpoint(source, tmp_path / "whole", INT4)
    refused = []

    def progress(done, total):
        if done:
            with pytest.raises(UsageError, match=r"Another run is writing .*target.partial; wait"):
                quantize_checkpoint(source, target, INT8)
            refused.append(done)

    quantize_checkpoint(source, target, INT4, progress)
    assert len(refused) > 10
    assert contents(target) == contents(tmp_path / "whole")
    assert [path.name for path in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize("blocked", ["no directory", "no permission"])
def test_a_target_that_cannot_be_made_is_a_sentence(tmp_path, source, blocked, monkeypatch):
    parent = tmp_path / "parent"
    if blocked == "no directory":
        parent.write_text("a file")
    elif os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    else:
        parent.mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match=r"parent/target.partial cannot be made.*elsewhere"):
        quantize_checkpoint(source, parent / "target", INT4)


FULL = """
import resource, signal, sys
from pathlib import Path
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.errors import CheckpointError
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), Plan(Scheme(4, 32)))
except CheckpointError as error:
    print(error)
"""


def test_a_disk_that_fills_up_is_a_sentence(source, target):
    done = subprocess.run(
        [sys.executable, "-c", FULL, source, target], capture_output=True, text=True
    )
    assert "cannot be written" in done.stdout and "goes on" in done.stdout, done.stderr
    quantize_checkpoint(source, target, INT4)
    baichuan.BaichuanForCausalLM.from_pretrained(target)


MEMORY = """
import re, sys
from pathlib import Path
import torch
from baichuan.checkpoint import quantize, rewrite
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme
torch.set_num_threads(1)
rewrite._SHARD_BYTES = 8_000_000
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
quantize.quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), Plan(Scheme(8, None)))
print((peak() - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells the peak of a process's memory")
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_memory_is_that_of_a_shard_not_of_the_model(tmp_path, target, kind):
    config = tiny_config(
        vocab_size=2000, hidden_size=768, intermediate_size=2048, num_hidden_layers=10
    )
    with torch.device("meta"):
        shapes = baichuan.BaichuanForCausalLM(config).state_dict()
    one = torch.randn(4_000_000).bfloat16()
    state = {name: one[: t.numel()].view(t.shape).clone() for name, t in shapes.items()}
    if kind == "safetensors":
        save_file(state, tmp_path / "model.safetensors")
    else:
        torch.save(state, tmp_path / "pytorch_model.bin")
    size = sum(tensor.nbytes for tensor in state.values())
    assert size > 140e6
    del state
    config.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path, target], capture_output=True, text=True
    )

    assert int(done.stdout) < 0.7 * size, done.stderr
