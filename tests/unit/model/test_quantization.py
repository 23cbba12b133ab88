"""Quantized networks through transformers: in memory, saved, loaded, cast, copied, trained."""

import copy
import json
import pickle
import shutil
import warnings
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_config
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

import baichuan
from baichuan.errors import CheckpointError, UsageError
from baichuan.model.quantization import BaichuanQuantizationConfig, describe
from baichuan.quant.linear import QuantizedLinear

IDS = torch.arange(3, 20)[None]
TOKENIZER = ("tokenizer.model", "tokenizer_config.json")


def network(family="alibi", dtype=torch.float32, **changes):
    config = tiny_config(
        vocab_size=1000, position_embedding=family, initializer_range=0.2, **changes
    )
    return baichuan.BaichuanForCausalLM(config).eval().to(dtype)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def assert_equal(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


@pytest.fixture(params=[8, 4])
def bits(request):
    return request.param


@pytest.fixture
def saved(tmp_path, bits, pytestconfig):
    """A quantized model's directory, complete with its tokenizer."""
    network().quantize(bits).save_pretrained(tmp_path / "saved")
    for file in TOKENIZER:
        shutil.copy(pytestconfig.rootpath / "tests/data/tokenizer" / file, tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize("family", ["alibi", "rope"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantized_in_memory(family, dtype, bits):
    model = network(family, dtype)
    before = logits(model).float()
    assert model.quantize(bits) is model
    after = logits(model)
    assert after.dtype == dtype
    assert (after.float() - before).norm() < (0.06 if bits == 8 else 0.45) * before.norm()
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == 2 * 5 + 1
    assert [m.scheme.bits for m in layers] == [bits] * 10 + [8]
    assert not any(type(m) is nn.Linear for m in model.modules())
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_more_bits_lose_less():
    model = network()
    before = logits(model)

    def loss(*arguments):
        return float((logits(copy.deepcopy(model).quantize(*arguments)) - before).square().mean())

    assert loss(8) < loss(4, 32) / 20
    assert loss(4, 32) < loss(4)


@pytest.mark.parametrize("family", ["alibi", "rope"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", ["1GB", "40KB"])
def test_saved_and_loaded_bit_for_bit(tmp_path, family, dtype, bits, size):
    model = network(family, dtype).quantize(bits)
    model.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "40KB")
    for load in (
        AutoModelForCausalLM.from_pretrained,
        baichuan.BaichuanForCausalLM.from_pretrained,
    ):
        again = load(tmp_path)
        assert again.dtype == dtype and not again.training
        assert_equal(again, model)
        assert torch.equal(logits(again), logits(model))
    again.save_pretrained(tmp_path / "twice")
    assert_equal(baichuan.BaichuanForCausalLM.from_pretrained(tmp_path / "twice"), model)


def test_the_dtype_asked_for_is_that_of_the_rest(saved):
    plain = baichuan.BaichuanForCausalLM.from_pretrained(saved)
    for dtype in (torch.bfloat16, torch.float16):
        model = baichuan.BaichuanForCausalLM.from_pretrained(saved, dtype=dtype)
        assert model.lm_head.scales.dtype == torch.bfloat16
        assert torch.equal(model.lm_head.codes, plain.lm_head.codes)
        assert model.model.norm.weight.dtype == logits(model).dtype == dtype


def test_the_loader_of_every_command(saved, bits):
    model, _ = baichuan.load(saved)
    assert_equal(model, baichuan.BaichuanForCausalLM.from_pretrained(saved))
    assert model.config.quantization_config.plan.scheme.bits == bits


def test_the_decoder_without_its_head(saved):
    decoder = AutoModel.from_pretrained(saved)
    assert isinstance(decoder.layers[0].mlp.up_proj, QuantizedLinear)
    whole = baichuan.BaichuanForCausalLM.from_pretrained(saved)
    assert_equal(decoder, whole.model)


def test_exceptions_hold_without_the_head_too(tmp_path):
    exceptions = {"model.layers.1.mlp.down_proj": None, "lm_head": None}
    settings = BaichuanQuantizationConfig(bits=4, exceptions=exceptions)
    network().save_pretrained(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=settings)
    assert type(model.lm_head) is type(model.model.layers[1].mlp.down_proj) is nn.Linear
    model.save_pretrained(tmp_path / "saved")
    assert_equal(AutoModel.from_pretrained(tmp_path / "saved"), model.model)


def test_config_json_says_all(saved, bits):
    settings = json.loads((saved / "config.json").read_text())["quantization_config"]
    assert settings == {
        "quant_method": "baichuan",
        "format_version": 1,
        "bits": bits,
        "group_size": None if bits == 8 else 128,
        "exceptions": {"lm_head": {"bits": 8, "group_size": None}},
    }
    names = set(load_file(saved / "model.safetensors"))
    assert "model.layers.0.mlp.gate_proj.codes" in names
    assert {name.rpartition(".")[2] for name in names} == {"codes", "scales", "weight"}
    assert "lm_head.weight" not in names and "model.embed_tokens.weight" in names


def test_quantized_while_loading(tmp_path, bits):
    plain = network()
    plain.save_pretrained(tmp_path / "plain")
    settings = BaichuanQuantizationConfig(bits=bits)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=settings)
    assert_equal(model, plain.quantize(bits))
    model.save_pretrained(tmp_path / "saved")
    assert_equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved"), model)


def test_twice_is_refused(saved, bits):
    model = network().quantize(bits)
    for quantized in (model, baichuan.BaichuanForCausalLM.from_pretrained(saved)):
        before = copy.deepcopy(quantized)
        with pytest.raises(UsageError, match=rf"quantized already \(int{bits}, .*lose more"):
            quantized.quantize(4)
        assert_equal(quantized, before)
    with pytest.raises(CheckpointError, match=r"quantized already; .*original weights"):
        AutoModelForCausalLM.from_pretrained(
            saved, quantization_config=BaichuanQuantizationConfig(bits=4)
        )


@pytest.mark.skipif(find_spec("peft") is not None, reason="tells that peft is missing")
def test_adapters_need_peft(bits):
    model = network().quantize(bits).dequantize()
    with pytest.raises(UsageError, match="not installed: pip install peft"):
        model.add_adapter(None)


def test_what_cannot_be_is_refused():
    model = network()
    with pytest.raises(UsageError, match="bits is 5; allowed is 8, 4 or 3"):
        model.quantize(5)
    with pytest.raises(UsageError, match="group_size is 100"):
        model.quantize(4, 100)
    with pytest.raises(UsageError, match="bits is 2"):
        BaichuanQuantizationConfig(bits=2)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    assert getattr(model.config, "quantization_config", None) is None
    model.quantize(4, 64)
    assert model.lm_head.scheme.group_size is None
    assert describe(model.config.quantization_config) == "int4, groups of 64"


def test_a_quantized_head_takes_no_new_rows(bits):
    model = network().quantize(bits)
    size = model.config.vocab_size
    assert model.resize_token_embeddings(size) is model.model.embed_tokens
    assert model.resize_token_embeddings() is model.model.embed_tokens
    for arguments in ({"new_num_tokens": size + 3}, {"pad_to_multiple_of": 64}):
        with pytest.raises(
            UsageError, match=r"head is quantized .* Resize the original model, then"
        ):
            model.resize_token_embeddings(**arguments)
    assert model.model.embed_tokens.num_embeddings == size
    tied = network(tie_word_embeddings=True).quantize(bits)
    tied.resize_token_embeddings(size + 3)
    assert logits(tied).shape[-1] == size + 3


def test_a_broken_weight_is_named():
    model = network()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.inf
    with pytest.raises(UsageError, match=r"model.layers.1.mlp.up_proj: The weight holds NaN"):
        model.quantize(8)
    for name in ("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"):
        model = network()
        model.get_parameter(name).data.view(-1)[3] = torch.nan
        with pytest.raises(UsageError, match=rf"^{name} holds NaN or infinity"):
            model.quantize(4)
    model = network()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"layers.0.mlp.up_proj: The weight holds NaN"):
        model.quantize(8, scheme="original")


def test_a_head_that_is_the_embedding_stays(tmp_path, bits):
    model = network(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "plain")
    model.quantize(bits)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "saved")
    settings = BaichuanQuantizationConfig(bits=bits)
    for directory, arguments in (("saved", {}), ("plain", {"quantization_config": settings})):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / directory, **arguments)
        assert again.lm_head.weight is again.model.embed_tokens.weight
        assert torch.equal(logits(again), logits(model))
        assert again.config.quantization_config.plan.exceptions == {"lm_head": None}


def test_dequantized(bits):
    model = network().quantize(bits)
    quantized = logits(model)
    expected = {
        f"{name}.weight": module.dequantize()
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }
    assert model.dequantize() is model
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(name), weight)
    assert all(p.requires_grad for p in model.parameters())
    assert (logits(model) - quantized).norm() < 0.06 * quantized.norm()
    model.quantize(bits)  # it is no longer quantized, so it may be again
    assert getattr(model.config, "quantization_config", None) is not None


def test_dequantized_is_saved_as_plain(tmp_path, saved):
    model = baichuan.BaichuanForCausalLM.from_pretrained(saved).dequantize()
    model.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(again.lm_head) is nn.Linear
    assert_equal(again, model)


@pytest.mark.parametrize("where", ["memory", "file"])
def test_casts_are_for_the_rest(saved, bits, where):
    model = network().quantize(bits)
    if where == "file":
        model = baichuan.BaichuanForCausalLM.from_pretrained(saved)
    head = copy.deepcopy(model.lm_head)
    casts = [lambda: model.half(), lambda: model.to(torch.bfloat16), lambda: model.float()]
    for cast, dtype in zip(casts, (torch.float16, torch.bfloat16, torch.float32), strict=True):
        assert cast() is model
        assert logits(model).dtype == model.dtype == dtype
        assert_equal(model.lm_head, head)


def test_copies(bits):
    model = network().quantize(bits)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_equal(other, model)
        assert torch.equal(logits(other), logits(model))
        with pytest.raises(UsageError, match="quantized already"):
            other.quantize(8)


def test_it_generates_and_chats(saved, bits):
    model, tokenizer = baichuan.load(saved)
    given = model.generate(IDS, max_new_tokens=6, do_sample=False)
    again = network().quantize(bits)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.generate(IDS, max_new_tokens=6, do_sample=False), given)
    model.generation_config.max_new_tokens = 4
    answer = model.chat(tokenizer, [{"role": "user", "content": "你好"}])
    assert isinstance(answer, str)


def test_a_rows_logits_do_not_depend_on_its_batch(bits):
    model = network().quantize(bits)
    batch = torch.stack([IDS[0], IDS[0].flip(0), IDS[0] * 2])
    whole = logits(model, batch)
    for row in range(3):
        torch.testing.assert_close(logits(model, batch[row : row + 1])[0], whole[row])


def test_gradients_are_those_of_the_dequantized_network(bits):
    model = network().quantize(bits)
    plain = copy.deepcopy(model).dequantize()
    for net in (model, plain):
        net(IDS, labels=IDS).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, plain.get_parameter(name).grad, rtol=1e-3, atol=1e-5
        )


def change(directory, update):
    """Rewrite the tensors of a saved model."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    update(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def settings_changed(directory, **changes):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


UP = "model.layers.1.mlp.up_proj"
DAMAGES = {
    rf"1 \({UP}.scales\) missing": lambda t: t.pop(f"{UP}.scales"),
    rf"1 \({UP}.codes .*\) of a wrong shape": lambda t: t.update(
        {f"{UP}.codes": t[f"{UP}.codes"][1:]}
    ),
    rf"1 \({UP}.weight\) extra": lambda t: t.update({f"{UP}.weight": torch.zeros(2, 2)}),
}
BY = [AutoModelForCausalLM.from_pretrained, baichuan.load]


@pytest.mark.parametrize("message", DAMAGES)
@pytest.mark.parametrize("load", BY)
def test_damaged_files_are_refused(saved, message, load):
    change(saved, DAMAGES[message])
    with pytest.raises(CheckpointError, match=message):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2.*Install a newer"),
        ({"bits": 6}, "bits is 6"),
        ({"group_size": 32}, "are not those of the network"),
        ({"exceptions": {"lm_head": None}}, "are not those of the network.*lm_head.weight"),
        ({"quant_method": "gptq"}, "quantized by 'gptq'"),
        ({"sparsity": 2}, "has sparsity"),
    ],
)
@pytest.mark.parametrize("load", BY)
def test_settings_that_do_not_fit_are_refused(saved, changes, message, load):
    settings_changed(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(saved)


def test_plain_weights_under_a_quantized_config_are_refused(saved):
    save_file(network().state_dict(), saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="are not those of the network"):
        baichuan.load(saved)


def test_loading_warns_of_nothing(saved, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        baichuan.load(saved)
    assert not caplog.records


@pytest.mark.parametrize(
    ("part", "dtype"),
    [("codes", torch.float8_e4m3fn), ("codes", torch.int8), ("norm.weight", torch.int32)],
)
def test_codes_of_another_type_are_not_converted_in_silence(tmp_path, part, dtype):
    model = network().quantize(8)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = load_file(file)
    for name, tensor in state.items():
        if name.endswith(part):
            state[name] = tensor.view(dtype)
    save_file(state, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"holds .*{part} as {dtype}; needed is torch"):
        baichuan.BaichuanForCausalLM.from_pretrained(tmp_path)
