"""GGUF files that are damaged or forged: `convert` makes a checkpoint of them, or says why not."""

import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import gguf
import pytest
from sentencepiece import sentencepiece_model_pb2 as sp

import baichuan
from baichuan.checkpoint.gguf.from_gguf import checkpoint_from_gguf
from baichuan.checkpoint.gguf.to_gguf import gguf_from_checkpoint
from baichuan.errors import CheckpointError
from tests.conftest import tiny_config
from tests.fuzz.harness import mutated, run_cases

_STRING, _ARRAY = 8, 9
#: Bytes of each integer type, and struct's format of each floating-point type.
_INTEGERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 7: 1, 10: 8, 11: 8}
_FLOATS = {6: "<f", 12: "<d"}
_TYPES = (*_INTEGERS, *_FLOATS, _STRING, _ARRAY)
_WHOLE = (0, 1, 2, 3, 40, 255, -1, 10**6, 2**31 - 1, 2**62, 2**63)
_BROKEN = (0.0, -1.0, 1e-6, 1.5, 10_000.0, 1e38, float("nan"), float("inf"))
_TEXTS = ("", "x", "2", "[" * 100_000, '{"top_k": 1e999}', '{"user_token_id": []}', "é" * 50_000)


@dataclass
class File:
    """A GGUF file in parts: each value and each description of a tensor in its bytes."""

    values: list[tuple[bytes, bytes]] = field(default_factory=list)
    tensors: list[tuple[bytes, list[int], int, int]] = field(default_factory=list)
    data: bytes = b""
    counts: tuple[int, int] = (0, 0)

    @classmethod
    def read(cls, path):
        reader = gguf.GGUFReader(path)
        fields = [f for name, f in reader.fields.items() if not name.startswith("GGUF.")]
        values = [(f.name.encode(), b"".join(p.tobytes() for p in f.parts[2:])) for f in fields]
        begin = reader.data_offset
        tensors = [
            (t.name.encode(), t.shape.tolist(), int(t.tensor_type), t.data_offset - begin)
            for t in reader.tensors
        ]
        return cls(values, tensors, path.read_bytes()[begin:])

    def header(self):
        counts = (len(self.tensors) + self.counts[0], len(self.values) + self.counts[1])
        out = b"GGUF" + struct.pack("<I2Q", 3, *(count % 2**64 for count in counts))
        out += b"".join(text(key) + value for key, value in self.values)
        for name, shape, kind, offset in self.tensors:
            numbers = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
            out += text(name) + numbers
        return out + bytes(-len(out) % 32)


def text(content):
    return struct.pack("<Q", len(content)) + content


def any_value(rng):
    """Return a value of any type in GGUF's bytes: a number, a string, or an array of them."""
    kind = rng.choice(_TYPES)
    if kind != _ARRAY:
        return struct.pack("<I", kind) + item(kind, rng)
    inner, count = rng.choice(_TYPES), rng.choice((0, 1, 3, 262, 5000))
    claimed = rng.choice((*[count] * 20, count + 1, 2**40, 2**60))
    items = item(inner, rng) * count if inner != _STRING else text(b"x") * count
    return struct.pack("<2IQ", kind, inner, claimed) + items


def item(kind, rng):
    if kind == _STRING:
        return text(rng.choice(_TEXTS).encode())
    if kind in _FLOATS:
        return struct.pack(_FLOATS[kind], rng.choice(_BROKEN))
    size = _INTEGERS.get(kind, 12)
    return (rng.choice(_WHOLE) % 256**size).to_bytes(size, "little")


def change_value(file, rng):
    at = rng.randrange(len(file.values))
    key, value = file.values[at]
    match rng.randrange(10):
        case 0:
            del file.values[at]
        case 1:
            file.values.append((rng.choice((key, b"split.count")), any_value(rng)))
        case 2:
            file.values[at] = (key, mutated(value, rng))
        case _:
            file.values[at] = (key, any_value(rng))


def change_tensor(file, rng):
    at = rng.randrange(len(file.tensors))
    name, shape, kind, offset = file.tensors[at]
    match rng.randrange(7):
        case 0:
            name = rng.choice((file.tensors[0][0], b"", b"x" * 100_000, b"blk.9.x"))
        case 1:
            shape = [*shape[:-1], rng.choice((0, 1, 31, 64, 2**31, 2**62, 2**64 - 1))]
        case 2:
            shape = rng.choice((shape[::-1], [*shape, 1], [], [1] * 9, [2**32] * 4))
        case 3:
            kind = rng.choice([*range(45), 2**31])
        case 4:
            offset = rng.choice((0, 1, offset + 1, offset + 32, 2**40, 2**64 - 1))
        case 5:
            file.counts = rng.choice(((1, 0), (-1, 0), (0, 1), (0, -1), (2**60, 0), (0, 2**60)))
        case _:
            del file.tensors[at]
            return
    file.tensors[at] = (name, shape, kind, offset)


def forged(file, rng):
    """Return a file with one to three mistakes in what it says of itself or in its tensors."""
    file = File(list(file.values), list(file.tensors), file.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        match rng.randrange(8):
            case 0:
                at, broken = rng.randrange(len(file.data)), rng.choice((b"\x00\x7c", b"\xff" * 8))
                file.data = file.data[:at] + broken + file.data[at + len(broken) :]
            case 1 | 2:
                change_tensor(file, rng)
            case _:
                change_value(file, rng)
    return file.header() + file.data


def tokenizer_model():
    """Return a sentencepiece model of few pieces: symbols, the bytes, and three letters."""
    pieces, model = sp.ModelProto.SentencePiece, sp.ModelProto()
    texts = {"<unk>": pieces.UNKNOWN, "<s>": pieces.CONTROL, "</s>": pieces.CONTROL}
    texts |= dict.fromkeys(("<user>", "<assistant>", "<h1>"), pieces.USER_DEFINED)
    texts |= {f"<0x{byte:02X}>": pieces.BYTE for byte in range(256)}
    for piece, kind in (texts | dict.fromkeys("▁ab", pieces.NORMAL)).items():
        model.pieces.add(piece=piece, score=0.0, type=kind)
    model.trainer_spec.model_type = sp.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    return model.SerializeToString()


@pytest.fixture(scope="module", params=["alibi", "rope"])
def file(request, tmp_path_factory):
    """A file of ours of a tiny network."""
    directory = tmp_path_factory.mktemp(request.param)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = tiny_config(
        vocab_size=270, position_embedding=request.param, num_hidden_layers=1, **shape
    )
    model = baichuan.BaichuanForCausalLM(config)
    model.generation_config.user_token_id, model.generation_config.assistant_token_id = 3, 4
    model.save_pretrained(directory / "source")
    (directory / "source" / "tokenizer.model").write_bytes(tokenizer_model())
    gguf_from_checkpoint(directory / "source", directory / "x.gguf", "q8_0")
    return directory / "x.gguf"


@pytest.mark.parametrize("how", ["forged", "damaged"])
def test_a_checkpoint_or_a_sentence(file, fuzz_cases, how):
    parts = File.read(file)
    header = parts.header()
    assert header + parts.data == file.read_bytes()
    # Files in memory, where there are such: on a disk, removing a directory takes milliseconds.
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        source, target = Path(directory, "x.gguf"), Path(directory, "target")

        def case(rng):
            content = forged(parts, rng) if how == "forged" else mutated(header, rng) + parts.data
            source.write_bytes(content)
            try:
                checkpoint_from_gguf(source, target)
            finally:
                for path in Path(directory).glob("target*"):
                    shutil.rmtree(path)

        run_cases(fuzz_cases // 4, case, name=f"gguf {how}")


def stored(value):
    """Return a value in GGUF's bytes."""
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<IQ", 10, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", _STRING) + text(value.encode())
        case [float(), *_]:
            return struct.pack(f"<2IQ{len(value)}f", _ARRAY, 6, len(value), *value)
    return struct.pack(f"<2IQ{len(value)}i", _ARRAY, 5, len(value), *value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", 5, "architecture is 5; needed is a string"),
        ("general.alignment", 12, "alignment is 12; needed is a power of two"),
        ("general.alignment", 2**40, "alignment is 1099511627776; needed is an integer from 1 to"),
        ("split.count", "2", "split.count is '2'; needed is an integer from 0 to 65536"),
        ("split.count", 2**63, "split.count is 9223372036854775808; needed is an integer"),
        ("llama.block_count", 10**6, "block_count is 1000000; needed is an integer from 1 to 1"),
        ("llama.block_count", True, "block_count is True; needed is an integer"),
        ("llama.context_length", 0, "context_length is 0; needed is an integer from 1 to"),
        ("llama.embedding_length", 64, "embedding_length is 64; needed is 32"),
        ("llama.feed_forward_length", 31, "feed_forward_length is 31; needed is 32"),
        ("llama.attention.head_count", 5, "head_count_kv is 2; needed is 5"),
        ("llama.attention.head_count", [2], r"head_count is int32\[1\]; needed is an integer"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "is nan; needed is a number from"),
        ("llama.rope.freq_base", -1.0, "freq_base is -1.0; needed is a number from 1 to"),
        ("llama.rope.freq_base", 1, "rope_theta is 1; allowed is a finite number above 1"),
        ("llama.rope.dimension_count", 8, "dimension_count is 8; needed is 16"),
        ("llama.rope.scaling.type", "yarn", "scaling.type is 'yarn'; needed is 'none'"),
        ("llama.rope.scaling.factor", 2.0, "scaling.factor is 2.0; needed is 1"),
        ("llama.attention.key_length", 8, "key_length is 8; needed is 16"),
        ("baichuan.position_embedding", "x", "position_embedding is 'x'; needed is alibi / rope"),
        ("baichuan.generation_config", "[" * 10**5, r"is '\[+'; needed is JSON \(nested deeper"),
        ("baichuan.generation_config", "[1]", r"is '\[1\]'; needed is a JSON object"),
        (
            "baichuan.generation_config",
            '{"user_token_id": [3]}',
            r"user_token_id of its baichuan.generation_config is \[3\]; allowed are .* 0 to 269",
        ),
        ("tokenizer.ggml.model", "x" * 10**5, "tokenizer.ggml.model is 'xxx"),
        ("tokenizer.ggml.tokens", 7, "tokens is 7; needed is an array of strings"),
        ("tokenizer.ggml.tokens", [1, 2], r"tokens is int32\[2\]; needed is an array of strings"),
        ("tokenizer.ggml.scores", [float("nan")] * 262, r"float32\[262\]; needed is .* finite"),
        ("tokenizer.ggml.scores", "0", "scores is '0'; needed is an array of numbers"),
        ("tokenizer.ggml.token_type", [7] * 262, "needed is an array of integers from 1 to 6"),
        ("tokenizer.ggml.bos_token_id", -1.0, "bos_token_id is -1.0; needed is an integer"),
        ("tokenizer.ggml.unknown_token_id", "0", "unknown_token_id is '0'; needed is an integer"),
        ("tokenizer.ggml.add_bos_token", "yes", "add_bos_token is 'yes'; needed is true or false"),
        ("tokenizer.ggml.precompiled_charsmap", 2**40, "needed is an array of 8-bit integers"),
        ("tokenizer.ggml.precompiled_charsmap", [0, 0], "needed is an array of 8-bit integers"),
        ("general.sampling.temp", float("nan"), "sampling.temp is nan; needed is a number from"),
        ("general.sampling.top_k", 40.5, "sampling.top_k is 40.5; needed is an integer from 0"),
    ],
)
@pytest.mark.parametrize("file", ["rope"], indirect=True)
def test_a_value_of_another_type_or_range_is_named(file, tmp_path, key, value, message):
    parts = File.read(file)
    values = {**dict(parts.values), key.encode(): stored(value)}
    if "sampling" in key:  # which are read where there is no generation_config.json
        del values[b"baichuan.generation_config"]
    parts.values = list(values.items())
    (tmp_path / "x.gguf").write_bytes(parts.header() + parts.data)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "target")
    assert "x.gguf" in str(error.value) and len(str(error.value)) <= 500
    assert not list(tmp_path.glob("target*"))


def test_a_file_with_anything_twice_or_overlapping_is_damaged(file, tmp_path):
    path = tmp_path / "x.gguf"

    def refused(message, **changes):
        parts = File.read(file)
        for name, value in changes.items():
            setattr(parts, name, value)
        path.write_bytes(parts.header() + parts.data)
        with pytest.raises(CheckpointError, match=rf"x.gguf is truncated or damaged \({message}"):
            checkpoint_from_gguf(path, tmp_path / "target")

    parts = File.read(file)
    (key, value), (name, shape, kind, offset) = parts.values[0], parts.tensors[1]
    refused(f"{key.decode()}: twice", values=[*parts.values, (key, value)])
    refused("output.weight: twice", tensors=[*parts.tensors, parts.tensors[0]])
    first = parts.tensors[0]
    overlapping = (name, shape, kind, first[3])
    refused(".*: offset 0", tensors=[first, overlapping, *parts.tensors[2:]])
    unaligned = (name, shape, kind, offset + 1)
    refused(f"{name.decode()}: offset", tensors=[first, unaligned, *parts.tensors[2:]])
    nested = struct.pack("<2IQ2IQ", _ARRAY, _ARRAY, 1, _ARRAY, _ARRAY, 1)
    refused("at byte .*: 1 of type 9", values=[*parts.values, (b"nested", nested)])
