"""Checkpoints to GGUF and back: nothing lost that need not be, and files as others write them."""

import json
import os
import shutil
from collections import namedtuple
from itertools import cycle

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import sentencepiece_model_pb2 as sp
from tests.conftest import change_a_byte, tiny_config

import baichuan
from baichuan.checkpoint import rewrite
from baichuan.checkpoint.gguf.container import GgufWeights
from baichuan.checkpoint.gguf.from_gguf import checkpoint_from_gguf, decode
from baichuan.checkpoint.gguf.names import tensor_names, to_halves, to_pairs
from baichuan.checkpoint.gguf.to_gguf import gguf_from_checkpoint
from baichuan.checkpoint.load import DEMO
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.errors import CheckpointError, TokenizerError, UsageError
from baichuan.model.prompt import encode_chat
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme

Kind = gguf.GGMLQuantizationType
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
#: Rows of whole super-blocks, but for those of down_proj.
WIDE = {"hidden_size": 768, "intermediate_size": 160, "num_attention_heads": 12}


@pytest.fixture
def save(tmp_path, pytestconfig):
    """Save a network with a tokenizer whose vocabulary is a little smaller."""

    def saved(family="alibi", dtype=torch.float32, **changes):
        config = tiny_config(**{"vocab_size": 1003, "position_embedding": family, **changes})
        model = baichuan.BaichuanForCausalLM(config).to(dtype)
        model.generation_config.update(temperature=0.3, do_sample=True, top_k=5)
        model.generation_config.user_token_id = 195
        directory = tmp_path / "source"
        model.save_pretrained(directory)
        for file in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(pytestconfig.rootpath / "tests/data/tokenizer" / file, directory)
        return directory

    return saved


def tensors(directory):
    return {n: t for file in directory.glob("*.safetensors") for n, t in load_file(file).items()}


def pieces(model):
    return [(piece.piece, piece.score, piece.type) for piece in model.pieces]


@pytest.mark.parametrize("family", ["alibi", "rope"])
@pytest.mark.parametrize("kind", DTYPES)
def test_there_and_back_nothing_changes(save, tmp_path, family, kind):
    source = save(family, DTYPES[kind])
    told = []
    progress = lambda done, total: told.append((done, total))  # noqa: E731
    gguf_from_checkpoint(source, tmp_path / "x.gguf", None, progress)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert 0.9 * told[-1][1] < told[-1][0] <= told[-1][1]
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back")
    before, after = tensors(source), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    old, new = (json.loads((d / "config.json").read_text()) for d in (source, tmp_path / "back"))
    for key in ("architectures", "model_max_length", "max_position_embeddings"):
        old.pop(key, None), new.pop(key, None)  # the 7B has names of its own
    assert old == new
    old, new = (
        json.loads((d / "generation_config.json").read_text()) for d in (source, tmp_path / "back")
    )
    assert old == new
    assert {path.name for path in tmp_path.iterdir()} == {"source", "x.gguf", "back"}


def test_there_and_back_the_tokenizer_is_the_same(save, tmp_path, pytestconfig):
    source = save()
    gguf_from_checkpoint(source, tmp_path / "x.gguf")
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back")
    old, new = (
        sp.ModelProto.FromString((d / "tokenizer.model").read_bytes())
        for d in (source, tmp_path / "back")
    )
    assert pieces(old) == pieces(new)
    for name in ("precompiled_charsmap", "add_dummy_prefix", "remove_extra_whitespaces"):
        assert getattr(old.normalizer_spec, name) == getattr(new.normalizer_spec, name)
    ours, theirs = (
        baichuan.BaichuanTokenizer.from_pretrained(d) for d in (source, tmp_path / "back")
    )
    for text in ("你好 <h1>１２</h1>", "  a  b\n", "<reserved_102>", "é😀"):
        assert ours(text).input_ids == theirs(text).input_ids
        messages = [{"role": "user", "content": text}]
        assert encode_chat(ours, messages) == encode_chat(theirs, messages)
    assert ours.model_max_length == theirs.model_max_length


def added_tokens(directory):
    tokenizer = baichuan.BaichuanTokenizer.from_pretrained(directory)
    special = set(tokenizer.all_special_tokens)
    return {
        i: (t.content, t.special, t.content in special)
        for i, t in tokenizer.added_tokens_decoder.items()
    }


def add_by_file(directory):
    (directory / "added_tokens.json").write_text(json.dumps({"<tool>": 1000, "<late>": 1002}))


def add_by_method(directory):
    tokenizer = baichuan.BaichuanTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["<tool>"])
    # One that sentencepiece has, and one that it has not.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<reserved_106>", "<|im_start|>"]})
    tokenizer.save_pretrained(directory)


def add_an_end(directory):
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "<|im_end|>"}))
    for name in ("config.json", "generation_config.json"):
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 1000}))


@pytest.mark.parametrize(
    ("add", "written"),
    [
        (add_by_file, {1000: ("<tool>", 4), 1001: ("[PAD1001]", 5), 1002: ("<late>", 4)}),
        (
            add_by_method,
            {199: ("<reserved_106>", 3), 1000: ("<tool>", 4), 1001: ("<|im_start|>", 3)},
        ),
        (add_an_end, {1000: ("<|im_end|>", 3), 1001: ("[PAD1001]", 5)}),
    ],
)
def test_added_tokens_go_with_the_tokenizer(save, tmp_path, add, written):
    source = save()
    add(source)
    gguf_from_checkpoint(source, tmp_path / "x.gguf")
    settings = GgufWeights(tmp_path / "x.gguf").metadata
    texts, kinds = (settings[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    assert {i: (texts[i], int(kinds[i])) for i in written} == written
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back")
    assert added_tokens(tmp_path / "back") == added_tokens(source)
    old, new = (baichuan.load(directory)[1] for directory in (source, tmp_path / "back"))
    assert len(old) == len(new) and old.eos_token_id == new.eos_token_id
    pieces_before, pieces_after = (
        pieces(sp.ModelProto.FromString((d / "tokenizer.model").read_bytes()))
        for d in (source, tmp_path / "back")
    )
    assert pieces_before == pieces_after
    for text in ("a <tool> b<late>", "<|im_start|>x<|im_end|>", "<reserved_106>你好"):
        assert old(text).input_ids == new(text).input_ids
        assert old.encode_text(text) == new.encode_text(text)
        ids = old(text).input_ids
        for skip in (False, True):
            assert old.decode(ids, skip_special_tokens=skip) == new.decode(
                ids, skip_special_tokens=skip
            )


def test_an_added_token_without_a_row_is_refused_but_not_for_padding(save, tmp_path):
    source = save()
    path = source / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    (source / "added_tokens.json").write_text(json.dumps({"<tool>": 1003}))
    with pytest.raises(CheckpointError, match=r"'<tool>' has the id 1,003, .*only 1,003 rows"):
        gguf_from_checkpoint(source, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("x.gguf*"))
    (source / "added_tokens.json").write_text(json.dumps({"[PAD]": 1003}))
    path.write_text(json.dumps({**settings, "pad_token": "[PAD]"}))
    gguf_from_checkpoint(source, tmp_path / "x.gguf")
    assert len(GgufWeights(tmp_path / "x.gguf").metadata["tokenizer.ggml.tokens"]) == 1003


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("padding", 2**32 - 1, None),
        ("padding", 1003, None),
        ("eos", 2**32 - 1, "tokenizer.ggml.eos_token_id is 4294967295"),
        ("bos", 1003, "tokenizer.ggml.bos_token_id is 1003"),
    ],
)
def test_ids_beyond_the_vocabulary(save, tmp_path, key, value, message):
    gguf_from_checkpoint(save(), tmp_path / "x.gguf")
    content = bytearray((tmp_path / "x.gguf").read_bytes())
    name = f"tokenizer.ggml.{key}_token_id".encode()
    place = content.index(name) + len(name) + 4  # behind the type of the value
    content[place : place + 4] = value.to_bytes(4, "little")
    (tmp_path / "x.gguf").write_bytes(content)
    if message is not None:
        with pytest.raises(CheckpointError, match=message):
            checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back")
        return
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back")
    model, tokenizer = baichuan.load(tmp_path / "back")
    assert model.config.pad_token_id is None and tokenizer.pad_token_id == 0


def test_a_file_that_changed_is_not_gone_on_with(save, tmp_path, monkeypatch):
    gguf_from_checkpoint(save(), tmp_path / "x.gguf")
    monkeypatch.setattr(rewrite, "_SHARD_BYTES", 60_000)

    def stopping(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back", progress=stopping)
    change_a_byte(tmp_path / "x.gguf")
    with pytest.raises(UsageError, match="of another source"):
        checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back")
    change_a_byte(tmp_path / "x.gguf")
    os.utime(tmp_path / "x.gguf")
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back")


@pytest.mark.parametrize("group", [None, 32, 128])
@pytest.mark.parametrize("bits", [8, 4])
def test_codes_of_ours_become_blocks_as_they_are(save, tmp_path, bits, group):
    source = save("rope", torch.bfloat16, **WIDE)
    quantize_checkpoint(source, tmp_path / "small", Plan(Scheme.of_bits(bits, group)))
    gguf_from_checkpoint(tmp_path / "small", tmp_path / "x.gguf")
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back", dtype="float32")
    expected = baichuan.BaichuanForCausalLM.from_pretrained(tmp_path / "small")
    expected.dequantize(torch.float32)
    after = tensors(tmp_path / "back")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor.float(), after[name]), name
    kinds = {name: t.kind.name for name, t in GgufWeights(tmp_path / "x.gguf").stored.items()}
    assert kinds["blk.1.ffn_down.weight"] == ("Q8_0" if bits == 8 else "Q4_0")
    assert kinds["output.weight"] == "Q8_0" and kinds["token_embd.weight"] == "BF16"
    with pytest.raises(UsageError, match=f"is int{bits}: in GGUF it can only be"):
        gguf_from_checkpoint(tmp_path / "small", tmp_path / "y.gguf", "f16")


def test_rows_that_are_no_whole_blocks_keep_their_numbers(save, tmp_path):
    source = save()  # 48 and 96 columns
    quantize_checkpoint(source, tmp_path / "small", Plan(Scheme(4, 32)))
    gguf_from_checkpoint(tmp_path / "small", tmp_path / "x.gguf")
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back", dtype="float32")
    expected = baichuan.BaichuanForCausalLM.from_pretrained(tmp_path / "small")
    expected.dequantize(torch.float32)
    after = tensors(tmp_path / "back")
    assert all(torch.equal(t.float(), after[name]) for name, t in expected.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "matrix", "down", "ends", "most"),
    [
        ("q8_0", "Q8_0", "Q8_0", "Q8_0", 0.01),
        ("q4_0", "Q4_0", "Q4_0", "Q8_0", 0.11),
        ("q4_k", "Q4_K", "Q5_0", "Q8_0", 0.09),
    ],
)
def test_types(save, tmp_path, kind, matrix, down, ends, most):
    source = save(**WIDE)
    gguf_from_checkpoint(source, tmp_path / "x.gguf", kind)
    kinds = {name: t.kind.name for name, t in GgufWeights(tmp_path / "x.gguf").stored.items()}
    assert kinds["blk.0.attn_q.weight"] == matrix and kinds["blk.0.ffn_down.weight"] == down
    assert kinds["output.weight"] == kinds["token_embd.weight"] == ends
    assert kinds["output_norm.weight"] == "F32"
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back")
    before, after = tensors(source), tensors(tmp_path / "back")
    for name, tensor in before.items():
        assert after[name].dtype == torch.float16
        assert (after[name] - tensor).norm() <= most * tensor.norm(), name
    baichuan.load(tmp_path / "back")


def test_a_head_that_is_the_embedding(save, tmp_path):
    source = save(tie_word_embeddings=True)
    gguf_from_checkpoint(source, tmp_path / "x.gguf")
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back")
    after = tensors(tmp_path / "back")
    assert torch.equal(after["lm_head.weight"], tensors(source)["model.embed_tokens.weight"])
    baichuan.load(tmp_path / "back")


def test_pairs_and_halves():
    rows = torch.arange(24)[:, None]
    assert to_pairs(rows, 2)[:6, 0].tolist() == [0, 6, 1, 7, 2, 8]
    assert torch.equal(to_halves(to_pairs(rows, 2), 2), rows)
    assert torch.equal(to_pairs(rows, 8), rows)  # three to a head: there are no pairs


#: What only our files say.
OURS = ("position_embedding", "generation_config", "charsmap", "whitespaces", "prefix")


def community(path, source, kinds=(Kind.F16,), change=lambda settings, held: None):
    """Write a file as llama.cpp's converter does: less settings, no user-defined pieces."""
    gguf_from_checkpoint(source, path.with_suffix(".ours"), "f32")
    ours = GgufWeights(path.with_suffix(".ours"))
    held = {
        name: raw.numpy().view(np.float32).reshape(ours.stored[name].shape)
        for name, raw in ours.tensors()
    }
    family = ours.metadata["general.architecture"]
    settings = {
        key.replace(family, "baichuan", 1): value
        for key, value in ours.metadata.items()
        if key.startswith((f"{family}.", "tokenizer.")) and not key.endswith(OURS)
    }
    types = settings["tokenizer.ggml.token_type"].copy()
    types[[195, 196]] = 1
    settings["tokenizer.ggml.token_type"] = types
    change(settings, held)
    writer = gguf.GGUFWriter(path, "baichuan")
    for key, value in settings.items():
        if isinstance(value, (list, np.ndarray)):
            writer.add_array(key, list(value) if isinstance(value, list) else value.tolist())
        elif isinstance(value, (bool, str, float)):
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
        else:
            writer.add_uint32(key, value)
    kinds = cycle(kinds)
    for name, numbers in held.items():
        if numbers.ndim == 1:
            writer.add_tensor(name, numbers)
        else:
            kind = next(kinds)
            writer.add_tensor(name, blocks(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".ours").unlink()
    return path


def blocks(numbers, kind):
    """Give blocks: gguf's rounding, or for what it only reads random bytes with small scales."""
    try:
        return gguf.quants.quantize(numbers, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = numbers.shape
        raw = np.random.default_rng(0).integers(0, 256, (rows, columns // block, size), np.uint8)
        small = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
        first, last = raw[..., :4], raw[..., -4:]
        first[..., :2] = first[..., 2:] = last[..., :2] = last[..., 2:] = small
        return raw.reshape(rows, -1)


READ = [
    *(Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1),
    *(Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K),
]


def test_a_file_of_others_in_every_type(save, tmp_path):
    shape = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4}
    source = save("rope", num_hidden_layers=32, **shape)
    file = community(tmp_path / "x.gguf", source, READ)
    checkpoint_from_gguf(file, tmp_path / "back", dtype="float32")
    after, weights = tensors(tmp_path / "back"), GgufWeights(file)
    assert {tensor.kind for tensor in weights.stored.values()} == set(READ)
    held = dict(weights.tensors())
    for ours, theirs in tensor_names(32).items():
        parts = [
            torch.from_numpy(gguf.quants.dequantize(held[n].numpy(), weights.stored[n].kind))
            for n in theirs
        ]
        if len(parts) == 3:
            parts[:2] = [to_halves(part, 4) for part in parts[:2]]
        assert torch.equal(after[ours], torch.cat(parts)), ours


def test_a_file_of_others_has_the_published_tokenizer(save, tmp_path):
    source = save(vocab_size=3072, num_hidden_layers=40, hidden_size=24, intermediate_size=32)
    shutil.copy(DEMO / "tokenizer.model", source)
    file = community(tmp_path / "x.gguf", source)
    checkpoint_from_gguf(file, tmp_path / "back")
    old, new = (
        sp.ModelProto.FromString((d / "tokenizer.model").read_bytes())
        for d in (source, tmp_path / "back")
    )
    assert pieces(old) == pieces(new)
    assert old.normalizer_spec.precompiled_charsmap == new.normalizer_spec.precompiled_charsmap
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["architectures"] == ["BaichuanForCausalLM"]
    assert config["position_embedding"] == "alibi" and config["rms_norm_eps"] == 1e-6


def test_straight_into_few_bits(save, tmp_path):
    source = save(**WIDE)
    gguf_from_checkpoint(source, tmp_path / "x.gguf")
    checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "int4", Plan(Scheme(4, 32)))
    quantize_checkpoint(source, tmp_path / "direct", Plan(Scheme(4, 32)))
    ours, theirs = tensors(tmp_path / "int4"), tensors(tmp_path / "direct")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    model, _ = baichuan.load(tmp_path / "int4")
    assert model.is_quantized


def drop(name):
    return lambda settings, held: held.pop(name)


def put(key, value):
    return lambda settings, held: settings.update({key: value})


def shorten(settings, held):
    held["blk.0.attn_k.weight"] = held["blk.0.attn_k.weight"][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("blk.3.attn_v.weight"), r"blk.3.attn_v.weight is -, needed is \[24, 24\] \(1 such"),
        (drop("token_embd.weight"), "holds a vocabulary or an adapter, but no network"),
        (drop("blk.39.ffn_gate.weight"), "its baichuan.block_count is 40"),
        (shorten, r"blk.0.attn_k.weight is \[23, 24\], needed is \[24, 24\]"),
        (put("baichuan.block_count", 2_000_000_000), "block_count is 2000000000"),
        (put("baichuan.block_count", "x"), "block_count is 'x'"),
        (put("baichuan.block_count", 39), "has 39 layers: GGUF says by their number"),
        (put("baichuan.attention.head_count", 5), "head_count_kv is 6"),
        (put("baichuan.attention.head_count_kv", 2), "head_count_kv is 2"),
        (put("split.count", 3), "is one of 3 parts"),
        (put("tokenizer.ggml.model", "gpt2"), "tokenizer.ggml.model is 'gpt2'"),
        (put("tokenizer.ggml.tokens", ["a"]), "with 1 tokens, 1,003 scores"),
    ],
)
def test_files_that_are_not_whole_are_sentences(save, tmp_path, change, message):
    source = save(num_hidden_layers=40, hidden_size=24, intermediate_size=32)
    file = community(tmp_path / "x.gguf", source, change=change)
    with pytest.raises(CheckpointError, match=message):
        checkpoint_from_gguf(file, tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "x.gguf"}


def test_other_networks_are_refused(save, tmp_path):
    path = tmp_path / "llama.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"its architecture is 'llama'\. This package runs"):
        checkpoint_from_gguf(path, tmp_path / "back")


def test_what_is_no_number_is_refused(save, tmp_path):
    source = save(num_hidden_layers=40, hidden_size=24, intermediate_size=32)

    def spoil(settings, held):
        held["blk.7.ffn_up.weight"][0, 0] = np.nan

    file = community(tmp_path / "x.gguf", source, change=spoil)
    with pytest.raises(CheckpointError, match=r"blk.7.ffn_up.weight holds what is no finite"):
        checkpoint_from_gguf(file, tmp_path / "back")
    state = tensors(source)
    state["lm_head.weight"][3, 3] = np.inf
    (file,) = source.glob("*.safetensors")
    save_file(state, file)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight in .* holds NaN or infinity: "):
        gguf_from_checkpoint(source, tmp_path / "y.gguf")
    assert not list(tmp_path.glob("y*"))


def test_what_cannot_be_asked_for(save, tmp_path):
    source = save()
    with pytest.raises(UsageError, match="type is 'q9'; allowed is one of f32, f16"):
        gguf_from_checkpoint(source, tmp_path / "x.gguf", "q9")
    with pytest.raises(UsageError, match="source exists"):
        gguf_from_checkpoint(source, source)
    gguf_from_checkpoint(source, tmp_path / "x.gguf")
    with pytest.raises(UsageError, match="dtype is 'int8'; allowed is one of float32"):
        checkpoint_from_gguf(tmp_path / "x.gguf", tmp_path / "back", dtype="int8")
    with pytest.raises(UsageError, match="source exists"):
        checkpoint_from_gguf(tmp_path / "x.gguf", source)
    with pytest.raises(CheckpointError, match=r"x.gguf is a GGUF file.*baichuan convert"):
        baichuan.load(tmp_path / "x.gguf")
    (source / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError):
        gguf_from_checkpoint(source, tmp_path / "y.gguf")
    assert not list(tmp_path.glob("y*"))
    gguf_from_checkpoint(source, tmp_path / "y.gguf", tokenizer=False)


def test_sampling_settings_of_any_kind(save, tmp_path):
    source = save(eos_token_id=[])
    file = source / "generation_config.json"
    file.write_text(
        '{"temperature": NaN, "top_k": 1e400, "top_p": true, "repetition_penalty": "x"}'
    )
    gguf_from_checkpoint(source, tmp_path / "x.gguf")
    metadata = GgufWeights(tmp_path / "x.gguf").metadata
    assert not [key for key in metadata if key.startswith("general.sampling")]
    assert "tokenizer.ggml.eos_token_id" not in metadata
    for text, message in (("[1]", "no table of settings"), ("[" * 10**5, "nested deeper than")):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=f"generation_config.json .*{message}"):
            gguf_from_checkpoint(source, tmp_path / "y.gguf")
    assert not list(tmp_path.glob("y*"))


def test_too_small_a_disk_is_noticed_first(save, tmp_path, monkeypatch):
    source = save()
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 10_000, 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="GB free"):
        gguf_from_checkpoint(source, tmp_path / "x.gguf")
    assert not list(tmp_path.glob("x*"))


def test_long_matrices_are_decoded_in_parts(monkeypatch):
    raw = torch.from_numpy(gguf.quants.quantize(np.ones((70, 64), np.float32), Kind.Q8_0))
    whole = decode(raw, Kind.Q8_0, torch.float32)
    monkeypatch.setattr("baichuan.checkpoint.gguf.from_gguf._PART", 200)
    assert torch.equal(decode(raw, Kind.Q8_0, torch.float32), whole)
