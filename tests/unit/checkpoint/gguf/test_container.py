"""The container read back, and files that are damaged or forged: a sentence each, no memory."""

import os
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan.checkpoint.gguf.container import GgufWeights
from baichuan.errors import CheckpointError

Kind = gguf.GGMLQuantizationType


def write(path):
    writer = gguf.GGUFWriter(path, "baichuan")
    writer.add_float32("a.float", 1e-6)
    writer.add_bool("a.truth", True)
    writer.add_array("some.texts", ["一", "", "b"])
    writer.add_array("some.numbers", [1, -2, 3])
    writer.add_tensor("vector", np.arange(5, dtype=np.float32))
    writer.add_tensor("matrix", np.arange(6, dtype=np.float16).reshape(2, 3))
    blocks = gguf.quants.quantize(np.ones((4, 64), np.float32), Kind.Q8_0)
    writer.add_tensor("blocks", blocks, raw_dtype=Kind.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "x.gguf")


def test_what_was_written_is_read(file):
    weights = GgufWeights(file)
    settings = weights.metadata
    assert settings["general.architecture"] == "baichuan"
    assert settings["a.float"] == 1e-6 and settings["a.truth"] is True
    assert settings["some.texts"] == ["一", "", "b"]
    assert settings["some.numbers"].tolist() == [1, -2, 3]
    held = dict(weights.tensors())
    assert weights.stored["matrix"].shape == (2, 3) and weights.stored["blocks"].shape == (4, 64)
    assert held["vector"].numpy().view(np.float32).tolist() == [0, 1, 2, 3, 4]
    assert held["matrix"].numpy().view(np.float16).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert held["blocks"].shape == (4, 68)
    assert {name: tuple(h.shape) for name, h in weights.headers.items()} == {
        name: tuple(tensor.shape) for name, tensor in held.items()
    }


def test_every_cut_is_a_sentence(file, tmp_path):
    content = file.read_bytes()
    part = tmp_path / "part.gguf"
    for size in [*range(0, 400, 3), len(content) - 32]:
        part.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"part.gguf is (truncated|not a GGUF file)"):
            GgufWeights(part)


@given(
    place=st.integers(4, 700), value=st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]), wide=st.booleans()
)
def test_forged_bytes_are_a_sentence_or_read(tmp_path_factory, file, place, value, wide):
    content = bytearray(file.read_bytes())
    count = 8 if wide else 1
    content[place : place + count] = bytes([value]) * count
    forged = tmp_path_factory.getbasetemp() / "forged.gguf"
    forged.write_bytes(content)
    try:
        for _, tensor in GgufWeights(forged).tensors():
            tensor.sum()
    except CheckpointError as error:
        assert "forged.gguf" in str(error)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"GGML" + bytes(20), "is not a GGUF file: it does not begin with 'GGUF'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF of version 1, or big-endian"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "or big-endian; versions 2 and 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "is truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1 << 60, 1 << 60), "is truncated or damaged"),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 1 << 60),
            "is truncated or damaged",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 1 << 60),
            r"damaged \(at byte 49: 1,152,921,504,606,846,976 of type 8",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 1 << 60, 0, 0),
            r"damaged \(t; ",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 32, 999, 0),
            r"holds t in a type \(number 999\)",
        ),
        (
            b"GGUF" + struct.pack("<IQQQ1sIQIQ", 3, 1, 0, 1, b"t", 1, 33, 2, 0),
            r"damaged \(t: Q4_0 \[33\]",
        ),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 1, 0, 1, b"t", 9), "t: 9 dimensions"),
    ],
)
def test_lengths_that_cannot_be(tmp_path, header, message):
    path = tmp_path / "x.gguf"
    path.write_bytes(header + bytes(16))
    with pytest.raises(CheckpointError, match=message):
        GgufWeights(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"none.gguf cannot be read \(No such file"):
        GgufWeights(tmp_path / "none.gguf")


@pytest.mark.parametrize(
    "value",
    [
        struct.pack("<IIQ", 9, 12, 1 << 40),
        struct.pack("<IIQ", 9, 0, 99 << 30),  # as long as the file
        struct.pack("<IQ", 8, 99 << 30),
        struct.pack("<IIQ", 9, 8, 1 << 34),
    ],
)
def test_forged_lengths_take_no_memory(tmp_path, value):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ1s", 3, 0, 1, 1, b"k") + value)
    os.truncate(path, 100 << 30)  # takes no room on the disk
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        GgufWeights(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
