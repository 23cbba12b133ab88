"""Weight files that are damaged or forged: tensors come of them, or a sentence."""

import io
import json
import struct
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import save

from baichuan.errors import CheckpointError
from baichuan.weights import WeightFiles
from tests.fuzz.harness import mutated, mutated_json, run_cases

TENSORS = {
    "model.a": torch.arange(12.0).view(3, 4),
    "model.b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros(2, 0, dtype=torch.int8),
}
#: What may stand in a header or an index where something else is meant.
VALUES = (
    *("F32", "BF16", "I8", "BOOL", "C64", "F4", "F8_E8M0", "U64", "F99"),
    *([2**40], [2**62, 0], [0, 4], [4, 0], [48, 58], [0, 2**64 - 1], [-1, 4], [1] * 70),
    *("model.safetensors", "/dev/zero", ".", "", "config.json", "x.bin", "x.safetensors"),
)


def header_and_data(content):
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def forged_header(content, rng):
    """Return safetensors whose header says something else, or has another length."""
    header, data = header_and_data(content)
    encoded = json.dumps(mutated_json(header, rng, VALUES)).encode()
    if rng.random() < 0.1:
        encoded = encoded[:-1] + b"," + encoded[1:]  # all keys twice
    size = len(encoded) if rng.random() < 0.9 else rng.choice((0, 1, 2**27, 2**40, 2**64 - 1))
    return struct.pack("<Q", size) + encoded + data


def pickled(tensors, *, zipped):
    out = io.BytesIO()
    torch.save(tensors, out, _use_new_zipfile_serialization=zipped)
    return out.getvalue()


def forged_record(content, rng):
    """Return an archive of torch.save in which one record is damaged; its checksum is right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(out, "w") as forged:
        names = archive.namelist()
        # Most often the pickle, of which each byte is an instruction or a number.
        chosen = rng.choice((*names, *[name for name in names if name.endswith("data.pkl")] * 5))
        for name in names:
            record = archive.read(name)
            forged.writestr(name, mutated(record, rng) if name == chosen else record)
    return out.getvalue()


SAFETENSORS, ARCHIVE, LEGACY = save(TENSORS), *(pickled(TENSORS, zipped=z) for z in (True, False))
INDEX = {
    "metadata": {"total_size": 1},
    "weight_map": {"model.a": "x.safetensors", "model.b": "x.safetensors", "c": "y.bin"},
}


def index_and_shards(directory, rng):
    (directory / "x.safetensors").write_bytes(save({k: TENSORS[k] for k in ("model.a", "model.b")}))
    (directory / "y.bin").write_bytes(pickled({"c": TENSORS["c"]}, zipped=True))
    text = json.dumps(mutated_json(INDEX, rng, VALUES)).encode()
    name = rng.choice(("model.safetensors.index.json", "pytorch_model.bin.index.json"))
    (directory / name).write_bytes(text if rng.random() < 0.7 else mutated(text, rng))


KINDS = {
    "safetensors, bytes": ("model.safetensors", lambda rng: mutated(SAFETENSORS, rng)),
    "safetensors, header": ("model.safetensors", lambda rng: forged_header(SAFETENSORS, rng)),
    "pickle, bytes": ("pytorch_model.bin", lambda rng: mutated(ARCHIVE, rng)),
    "pickle, record": ("pytorch_model.bin", lambda rng: forged_record(ARCHIVE, rng)),
    "pickle, legacy": ("pytorch_model.bin", lambda rng: mutated(LEGACY, rng)),
}


@pytest.mark.parametrize("kind", [*KINDS, "index"])
def test_tensors_or_a_sentence(fuzz_cases, kind):
    memory = Path("/dev/shm")  # where creating a file takes no milliseconds
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        directory = Path(name)

        def case(rng):
            for file in directory.iterdir():
                file.unlink()
            if kind == "index":
                index_and_shards(directory, rng)
            else:
                file, content = KINDS[kind]
                (directory / file).write_bytes(content(rng))
            try:
                for _, tensor in WeightFiles(directory).tensors():
                    tensor.clone()  # reads all of its bytes
            except CheckpointError as error:
                assert "weights_only" not in str(error)  # the advice to load without care
                raise

        run_cases(fuzz_cases // (len(KINDS) + 1), case, name=kind)
