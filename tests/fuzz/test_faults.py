"""Kills, full disks and other faults at every file operation of what writes files.

After each fault the same door runs again: its files are those of an undisturbed run, nothing else
is left, and what others have beside them is as it was. Where the process lives on, it says in a
sentence what is wrong. `--fuzz-cases 100000` takes every operation, fewer take some of each door.
"""

import errno
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import baichuan
from baichuan.checkpoint.gguf.to_gguf import gguf_from_checkpoint
from baichuan.hub import DEMO
from tests.conftest import tiny_config
from tests.fuzz.faults import KILL, Faults
from tests.unit.checkpoint.test_merge import adapter_for
from tests.unit.evaluate.conftest import header_of, row, write_rows

FAULTS = {"kill": KILL, "full": errno.ENOSPC, "denied": errno.EACCES, "broken": errno.EIO}
#: Files of others, whose names are like ours.
STRANGERS = ("target.txt", ".target.note", "out.json.partial-notes", "out.json.partial.old", "tmp")

#: What is run, with the directory of what it reads as {given}.
DOORS = {
    "quantize": "command('quantize', '{given}/tiny', 'target', '--bits', '4')",
    "quantize calibrated": "command('quantize', '{given}/tiny', 'target', '--calibrate', '--text',"
    " '{given}/text')",
    "quantize budget": "command('quantize', '{given}/tiny', 'target', '--budget', '1.2MB',"
    " '--text', '{given}/text')",
    "merge": "command('merge', '{given}/adapter', 'target', '-m', '{given}/tiny')",
    "to gguf": "command('convert', '{given}/tiny', 'target.gguf')",
    "from gguf": "command('convert', '{given}/tiny.gguf', 'target')",
    "save_pretrained": "import baichuan; m, t = baichuan.load('{given}/tiny')\n"
    "m.save_pretrained('target', max_shard_size='100KB'); t.save_pretrained('target')",
    "eval": "command('eval', 'cmmlu', '-m', '{given}/tiny', '--data', '{given}/data', '--subjects',"
    " 'arts', '--out', 'out.json', '--plot', 'out.svg', '--shots', '0')",
    "eval perplexity": "command('eval', 'perplexity', '{given}/text', '-m', '{given}/tiny',"
    " '--json', 'out.json')",
    "eval compare": "command('eval', 'compare', '{given}/result.json', '{given}/result.json',"
    " '--json', 'out.json', '--plot', 'out.pdf')",
    "chat": "import io, sys\nsys.stdin = io.TextIOWrapper(io.BytesIO(\n"
    "b'/set max_tokens 1\\nhi\\n/save out.json\\n'))\ncommand('chat', '-m', '{given}/tiny')",
    "conversations": "from pathlib import Path\n"
    "from baichuan.web.conversations import Conversations, Transcript\n"
    "store = Conversations(Path('target'))\n"
    "store.put('0' * 16, Transcript(None, [dict(role='user', content='x')]))\n"
    "store.put('1' * 16, Transcript(None, [dict(role='user', content='y')]))\n"
    "store.put('0' * 16, Transcript(None, []))",
}


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("faults are injected on Linux alone, where there is a C compiler")
    directory = tmp_path_factory.mktemp("faults")
    library = directory / "faults.so"
    source = Path(__file__).with_name("faults.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", source, "-o", library]
    subprocess.run([*command, "-ldl"], check=True)
    running = Faults(library, directory / "log")
    yield running
    running.close()


@pytest.fixture(scope="module")
def given(tmp_path_factory, faults):
    """What the doors read: a tiny checkpoint, its GGUF, an adapter, a text, questions, a result."""
    directory = tmp_path_factory.mktemp("given")
    tiny = directory / "tiny"
    torch.manual_seed(0)
    config = tiny_config(vocab_size=3072, max_position_embeddings=512)
    model = baichuan.BaichuanForCausalLM(config)
    model.save_pretrained(tiny, max_shard_size="60KB")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tiny)
    adapter_for(tiny, directory)
    gguf_from_checkpoint(tiny, directory / "tiny.gguf")
    (directory / "text").write_text("Some words to read.\n" * 5)
    for split, count in (("dev", 5), ("test", 3)):
        rows = [row("cmmlu", "arts", split, number) for number in range(count)]
        write_rows(directory / "data" / split / "arts.csv", header_of("cmmlu", split), rows)
    assert faults.run(DOORS["eval"].format(given=directory), directory).code == 0
    (directory / "out.json").rename(directory / "result.json")
    return directory


def tree(directory):
    """Every file with its content; of directories, the names of empty ones."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def begin(directory):
    directory.mkdir()
    for name in STRANGERS:
        (directory / name).write_text(f"{name} is of someone else")


def attempts(door, operations, count):
    """Take a kill and another fault, as often as is asked, each at an operation of the door."""
    rng, others = random.Random(door), [fault for fault in FAULTS if fault != "kill"]
    pairs = [(fault, at) for at in range(1, operations + 1) for fault in FAULTS]
    if count >= len(pairs):
        return pairs
    faults = ["kill" if number % 2 else rng.choice(others) for number in range(count)]
    return [(fault, rng.randint(1, operations)) for fault in faults]


def faults_of(ended, fault, again, found, whole):
    """Say what is wrong after a fault and another run."""
    if fault == "kill":
        if ended.code != -9:
            yield f"was not killed: {ended}"
    elif ended.code not in (0, 2) or "Traceback" in ended.said:
        yield f"is no sentence: {ended}"
    if again.code and not (again.code == 2 and "exists; give a name that is" in again.said):
        yield f"fails again: {again}"
    differing = {name for name in {*found, *whole} if found.get(name, 0) != whole.get(name, 0)}
    if differing:
        yield f"leaves other files: {differing}; {ended}; {again}"


@pytest.mark.parametrize("door", DOORS)
def test_after_a_fault_the_same_door_ends_as_if_there_was_none(
    faults, given, tmp_path, fuzz_cases, door
):
    source = DOORS[door].format(given=given)
    begin(tmp_path / "whole")
    undisturbed = faults.run(source, tmp_path / "whole")
    assert undisturbed.code == 0, undisturbed.said
    whole = tree(tmp_path / "whole")
    wrong = []
    chosen = attempts(door, undisturbed.operations, max(fuzz_cases // 1000, 1))
    for number, (fault, at) in enumerate(chosen):
        directory = tmp_path / str(number)
        begin(directory)
        ended = faults.run(source, directory, at, FAULTS[fault])
        again = faults.run(source, directory)
        found = tree(directory)
        for what in faults_of(ended, fault, again, found, whole):
            wrong.append(f"{fault} at {at} {what}")
        shutil.rmtree(directory)
    print(f"{door}: {len(chosen)} faults at {undisturbed.operations} operations")
    assert not wrong, f"{len(wrong)} of {len(chosen)}:\n" + "\n".join(wrong[:20])
