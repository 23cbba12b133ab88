"""A checkpoint through every door: equal weights, or a sentence; never random ones, never code."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import CreatesFile, tiny_config
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import baichuan
from baichuan.errors import CheckpointError, TokenizerError
from baichuan.weights import WeightFiles

FAMILIES = {"alibi": "BaichuanForCausalLM", "rope": "BaiChuanForCausalLM"}
DATA = "tests/data/tokenizer"


def by_baichuan(directory):
    return baichuan.load(directory)[0]


def by_transformers(directory):
    return AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)


def by_class(directory):
    return baichuan.BaichuanForCausalLM.from_pretrained(directory)


DOORS = [by_baichuan, by_transformers, by_class]


@pytest.fixture(params=DOORS, ids=lambda door: door.__name__)
def door(request):
    return request.param


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def weights(family):
    torch.manual_seed(1)
    config = tiny_config(vocab_size=1000, position_embedding=family)
    state = baichuan.BaichuanForCausalLM(config).state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in state.items()}


@pytest.fixture
def directory(tmp_path, family, pytestconfig):
    """A directory with everything but weights, as another program would have written it."""
    config = tiny_config(vocab_size=1000).to_dict()
    del config["position_embedding"], config["dtype"]
    if family == "rope":
        config["max_position_embeddings"] = config.pop("model_max_length")
    config["architectures"] = [FAMILIES[family]]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(pytestconfig.rootpath / DATA / file, tmp_path)
    return tmp_path


def write(directory, tensors, layout, shards=1):
    """Write weights as published: one file, or shards with an index."""
    kind = "safetensors" if layout == "safetensors" else "bin"
    stem = "model" if kind == "safetensors" else "pytorch_model"
    save = save_file if kind == "safetensors" else torch.save
    extra = {"_use_new_zipfile_serialization": False} if layout == "legacy" else {}
    if shards == 1:
        save(tensors, directory / f"{stem}.{kind}", **extra)
        return
    weight_map = {}
    for i in range(shards):
        name = f"{stem}-{i + 1:05}-of-{shards:05}.{kind}"
        part = dict(list(tensors.items())[i::shards])
        save(part, directory / name, **extra)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / f"{stem}.{kind}.index.json").write_text(json.dumps(index))


def assert_equal(model, weights):
    state = model.state_dict()
    assert state.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", ["safetensors", "zip", "legacy"])
def test_every_layout_loads_equal(directory, weights, family, layout, shards, door):
    frequencies = torch.ones(4)  # the 7B's code saved its table; the values must not matter
    table = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": frequencies + i for i in (0, 1)}
    write(directory, weights | (table if family == "rope" else {}), layout, shards)
    model = door(directory)
    assert_equal(model, weights)
    assert model.config.position_embedding == family
    assert not model.training
    if door is not by_class:
        assert type(model).__name__ == FAMILIES[family]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", ["1GB", "40KB"])
def test_saved_and_loaded(tmp_path, weights, family, dtype, size):
    config = tiny_config(vocab_size=1000, position_embedding=family)
    model = baichuan.BaichuanForCausalLM(config).to(dtype)
    model.load_state_dict(weights)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "40KB")
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == dtype
    assert_equal(again, model.state_dict())
    ids = torch.arange(3, 20)[None]
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("size", ["1GB", "40KB"])
@pytest.mark.parametrize("safe", [True, False])
def test_a_variant_is_saved_and_loaded(tmp_path, weights, family, size, safe):
    model = baichuan.BaichuanForCausalLM(tiny_config(vocab_size=1000, position_embedding=family))
    model.load_state_dict(weights)
    model.save_pretrained(tmp_path, variant="half", max_shard_size=size)
    if not safe:
        for file in tmp_path.glob("*.safetensors*"):
            file.unlink()
        write(tmp_path, weights, "zip")
        (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model.half.bin")
    again = baichuan.BaichuanForCausalLM.from_pretrained(tmp_path, variant="half")
    assert_equal(again, weights)
    with pytest.raises(
        CheckpointError, match=r"one of model\.other\.safetensors, .*index\.other\.j"
    ):
        baichuan.BaichuanForCausalLM.from_pretrained(tmp_path, variant="other")


def test_settings_may_begin_with_a_byte_order_mark(directory, weights):
    write(directory, weights, "safetensors")
    (directory / "generation_config.json").write_text('{"temperature": 0.4, "do_sample": true}')
    for name in ("config.json", "generation_config.json"):
        (directory / name).write_text("\ufeff" + (directory / name).read_text())
    assert by_baichuan(directory).generation_config.temperature == 0.4
    (directory / "generation_config.json").unlink()
    assert by_baichuan(directory).generation_config.eos_token_id == 2
    (directory / "config.json").write_text((directory / "config.json").read_text("utf-8-sig"))
    file = directory / "tokenizer_config.json"
    file.write_text("\ufeff" + file.read_text())
    for load in (baichuan.load, AutoTokenizer.from_pretrained):
        with pytest.raises(TokenizerError, match="is not JSON in UTF-8 without a byte order mark"):
            load(directory)


def test_a_7b_saved_again_is_still_known_as_one(directory, weights, family):
    write(directory, weights, "zip")
    by_baichuan(directory).save_pretrained(directory / "again")
    saved = json.loads((directory / "again" / "config.json").read_text())
    assert saved["architectures"] == [FAMILIES[family]]
    assert by_transformers(directory / "again").config.position_embedding == family


def test_without_the_head(directory, weights):
    write(directory, weights, "zip", shards=2)
    model = AutoModel.from_pretrained(directory)
    expected = {
        name.removeprefix("model."): w for name, w in weights.items() if "lm_head" not in name
    }
    assert_equal(model, expected)


def test_tied_embeddings_need_no_head_in_the_file(directory, weights):
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    write(directory, {name: w for name, w in weights.items() if "lm_head" not in name}, "zip")
    model = by_baichuan(directory)
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])


def test_loading_info_is_given_on_request(directory, weights):
    write(directory, weights, "safetensors")
    _, info = baichuan.BaichuanForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]


def test_pickles_are_read_on_request_where_there_are_both(directory, weights):
    write(directory, weights, "safetensors")
    write(directory, {name: w + 1 for name, w in weights.items()}, "zip")
    assert_equal(by_baichuan(directory), weights)
    chosen = baichuan.BaichuanForCausalLM.from_pretrained(directory, use_safetensors=False)
    assert_equal(chosen, {name: w + 1 for name, w in weights.items()})


# What can be wrong with the tensors: a change to the table, and what the sentence names.
FAULTS = {
    "missing": (
        lambda w: w.pop("model.layers.1.mlp.up_proj.weight"),
        r"1 \(.*1.mlp.up_proj.*\) missing",
    ),
    "extra": (lambda w: w.update(bias=torch.ones(1)), r"1 \(bias\) extra"),
    "wrong shape": (
        lambda w: w.update({"lm_head.weight": torch.ones(9, 48)}),
        r"1 \(lm_head.weight \[9, 48\] ≠ \[1000, 48\]\) of a wrong shape",
    ),
    "transposed": (
        lambda w: w.update({k: t.T.contiguous() for k, t in w.items() if "gate_proj" in k}),
        r"2 \(.*gate_proj.*\) of a wrong shape",
    ),
    "a layer too many": (
        lambda w: w.update({k.replace("s.1.", "s.2."): t.clone() for k, t in w.items()}),
        r"7 \(model.layers.2.*\) extra",
    ),
    "empty": (lambda w: w.clear(), r"17 \(.*\) missing"),
}


@pytest.mark.parametrize("layout", ["safetensors", "zip"])
@pytest.mark.parametrize("fault", FAULTS)
def test_other_tensors(directory, weights, fault, layout, door):
    change, sentence = FAULTS[fault]
    changed = dict(weights)
    change(changed)
    write(directory, changed, layout)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        door(directory)
    assert str(directory) in str(caught.value)


def test_missing_shard(directory, weights, door):
    write(directory, weights, "zip", shards=3)
    (directory / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"lacks 1 of 3 shards .*pytorch_model-00002-of-00003"
    ):
        door(directory)


@pytest.mark.parametrize("layout", ["safetensors", "zip", "legacy"])
def test_truncated_shard(directory, weights, layout, door):
    write(directory, weights, layout, shards=2)
    shard = next(directory.glob("*-00002-of-00002.*"))
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=f"{shard.name} cannot be read"):
        door(directory)


def test_no_weights(directory, door):
    with pytest.raises(CheckpointError, match="holds no weights"):
        door(directory)


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("config.json", None, "has no config.json"),
        ("config.json", "", "config.json is not JSON .*0 bytes"),
        ("config.json", '{"vocab_size": ', "config.json is not JSON"),
        ("config.json", "[]", "config.json holds no table of settings"),
        ("config.json", '{"model_type": "llama"}', "model_type 'llama'"),
        ("generation_config.json", '{"do_sample": true', "generation_config.json is not JSON"),
    ],
)
def test_settings_that_cannot_be_read(directory, weights, file, text, sentence):
    write(directory, weights, "zip")
    (directory / file).unlink(missing_ok=True)
    if text is not None:
        (directory / file).write_text(text)
    # Not by_transformers: without a config.json that says "baichuan" it does not know whom to ask.
    for door in (by_baichuan, by_class):
        with pytest.raises(CheckpointError, match=sentence):
            door(directory)


@pytest.mark.parametrize("where", ["single", "first shard", "last shard", "beside tensors"])
@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_malicious_pickle_is_refused_and_does_nothing(directory, weights, layout, where):
    target = directory / "created"
    evil = CreatesFile(target)
    if where == "single":
        write(directory, evil, layout)
    elif where == "beside tensors":
        write(directory, {**weights, "extra": evil}, layout)
    else:
        name, number = ("aaa", 1) if where == "first shard" else ("zzz", 2)
        write(directory, dict(sorted({**weights, name: evil}.items())), layout, shards=2)
        assert f"-0000{number}-of" in next(
            path.name for path in directory.glob("*.bin") if b"created" in path.read_bytes()
        )
    for door in (*DOORS, WeightFiles, AutoModel.from_pretrained):
        with pytest.raises(CheckpointError, match=r"is refused.*Nothing was run"):
            door(directory)
        assert not target.exists()


def test_the_malice_is_real(tmp_path):
    torch.save(CreatesFile(tmp_path / "created"), tmp_path / "evil.bin")
    torch.load(tmp_path / "evil.bin", weights_only=False).close()
    assert (tmp_path / "created").exists()


def test_safetensors_beside_a_malicious_pickle_are_read(directory, weights):
    write(directory, weights, "safetensors")
    write(directory, CreatesFile(directory / "created"), "zip")
    assert_equal(by_baichuan(directory), weights)
    with pytest.raises(CheckpointError, match="is refused"):
        baichuan.BaichuanForCausalLM.from_pretrained(directory, use_safetensors=False)
    assert not (directory / "created").exists()


def test_saved_weights_have_the_published_names(tmp_path, weights, family):
    model = baichuan.BaichuanForCausalLM(tiny_config(vocab_size=1000, position_embedding=family))
    model.save_pretrained(tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    layer = ["self_attn.W_pack", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj"]
    layer += ["mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    expected = {f"model.layers.{i}.{part}.weight" for i in (0, 1) for part in layer}
    assert names == expected | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
