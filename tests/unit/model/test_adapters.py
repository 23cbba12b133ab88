"""Adapters: beside quantized layers, merged into float ones, and what is said of broken ones."""

import json
import shutil

import peft
import pytest
import torch
from packaging.version import Version
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_config
from transformers import AutoModelForCausalLM
from transformers.integrations import peft as integration

import baichuan
from baichuan.checkpoint.merge import merge_adapter
from baichuan.errors import CheckpointError, UsageError
from baichuan.model import quantization
from baichuan.model.adapters import (
    attach_adapter,
    load_for_inference,
    read_adapter_config,
    with_quantized,
)
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.original import OriginalLinear

TARGETS = ["W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(5, 25)[None]
LAYERS = {"blocks": QuantizedLinear, "original": OriginalLinear}


def network(bits=None, scheme="blocks"):
    torch.manual_seed(7)
    model = baichuan.BaichuanForCausalLM(tiny_config(initializer_range=0.2)).eval()
    return model if bits is None else model.quantize(bits, scheme=scheme)


def config(**changes):
    given = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": TARGETS, **changes}
    return LoraConfig(init_lora_weights=False, **given)  # so that it changes what comes out


@pytest.fixture(params=[(None, "blocks"), (4, "blocks"), (8, "blocks"), (8, "original")])
def kind(request):
    return request.param


@pytest.fixture
def adapted(kind, tmp_path):
    """A network with an adapter, and the directory that the adapter was saved in."""
    model = get_peft_model(network(*kind), with_quantized(config())).eval()
    model.save_pretrained(tmp_path)
    return model, tmp_path


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def test_a_saved_adapter_gives_the_same_answers(kind, adapted):
    model, directory = adapted
    loaded = load_for_inference(network(*kind), directory)
    assert type(loaded) is baichuan.BaichuanForCausalLM
    assert not loaded.training
    # Beside quantized weights nothing is rounded anew; merged ones are summed in another order.
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-4, rtol=1e-4)
    assert (logits(loaded) - logits(network(*kind))).abs().max() > 0.1


@pytest.mark.parametrize("target", TARGETS)
def test_an_adapter_on_some_of_the_layers_leaves_the_others_as_they_are(kind, target):
    """Norm, gate and sum are fused with quantized layers only where all layers concerned are."""
    untrained = LoraConfig(r=4, target_modules=[target])  # which changes nothing yet
    adapted = get_peft_model(network(*kind), with_quantized(untrained)).eval()
    torch.testing.assert_close(logits(adapted), logits(network(*kind)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [(None, "blocks")], indirect=True)
def test_peft_itself_loads_it(adapted):
    model, directory = adapted
    again = PeftModel.from_pretrained(network(), str(directory)).eval()
    assert torch.equal(logits(again), logits(model))


def test_transformers_own_ways_work(kind, adapted):
    model, directory = adapted
    loaded = network(*kind)
    loaded.load_adapter(str(directory))
    assert torch.equal(logits(loaded.eval()), logits(model))
    added, least = network(*kind), integration.MIN_PEFT_VERSION
    if Version(peft.__version__) < Version(least):
        both = rf"peft {peft.__version__} is installed, .* needs peft {least} or newer: pip install"
        with pytest.raises(UsageError, match=both):
            added.add_adapter(config())
    else:
        added.add_adapter(config())
        assert any(p.requires_grad for p in added.parameters())


@pytest.mark.parametrize("old", ["0.18.0", "0.19.1"])
def test_a_peft_that_is_too_old_is_named(monkeypatch, adapted, old):
    """Those miss what reading an adapter calls, or what transformers asks of `add_adapter`."""
    _, directory = adapted
    monkeypatch.setattr(quantization, "version", lambda _: old)
    with pytest.raises(UsageError, match=rf"peft {old} is installed, .* need peft 0.20 or newer"):
        network().load_adapter(str(directory))
    with pytest.raises(UsageError, match=rf"peft {old} is installed"):
        network().add_adapter(config())


def test_the_package_asks_for_the_peft_that_works(pytestconfig):
    asked = (pytestconfig.rootpath / "pyproject.toml").read_text("utf-8")
    assert f'"peft>={quantization.LEAST_PEFT}"' in asked


@pytest.mark.parametrize("kind", [(4, "blocks"), (8, "blocks"), (8, "original")], indirect=True)
def test_merging_into_quantized_weights_rounds_them_anew(kind, adapted):
    _, directory = adapted
    base = network(*kind)
    wanted = {
        name: module.get_base_layer().dequantize() + module.get_delta_weight("default")
        for name, module in attach_adapter(base, directory).named_modules()
        if hasattr(module, "get_delta_weight")
    }
    merged = attach_adapter(network(*kind), directory).merge_and_unload()
    for name, weight in wanted.items():
        layer = merged.get_submodule(name.removeprefix("base_model.model."))
        assert type(layer) is LAYERS[kind[1]]
        again = type(layer).from_weight(weight, layer.scheme)
        assert torch.equal(layer.codes, again.codes)
        assert torch.equal(layer.scales, again.scales)


def test_quantized_merges_are_checked_and_are_for_good():
    model = get_peft_model(network(4), with_quantized(config()))
    layer = model.base_model.model.model.layers[0].self_attn.W_pack
    layer.unmerge()  # nothing to take out
    layer.merge()
    with pytest.raises(UsageError, match="cannot be taken out again"):
        layer.unmerge()
    other = model.base_model.model.model.layers[1].self_attn.W_pack
    other.lora_B["default"].weight.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match="not finite"):
        other.merge(safe_merge=True)


def test_gradients_beside_quantized_layers_are_those_of_the_dequantized_weights():
    quantized = get_peft_model(network(8), with_quantized(config()))
    plain = get_peft_model(network(8).dequantize(), config())
    learned = {n: p for n, p in quantized.named_parameters() if "lora_" in n}
    assert learned
    plain.load_state_dict(learned, strict=False)
    for model in (quantized, plain):
        model.train()
        model(IDS, labels=IDS).loss.backward()
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(learned[name].grad, parameter.grad, atol=1e-5, rtol=1e-4)


def test_dora_is_refused_beside_quantized_layers():
    with pytest.raises(UsageError, match=r"leave out either --use_dora or --bits"):
        with_quantized(config(use_dora=True))


def test_what_is_no_adapter_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no adapter: there is no adapter_config"):
        read_adapter_config(tmp_path)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        network(4).load_adapter(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "MAGIC"}))
    with pytest.raises(CheckpointError, match=r"is of the peft_type 'MAGIC'; allowed is LORA"):
        read_adapter_config(tmp_path)


def test_an_adapter_that_may_not_be_read_is_not_called_damaged(unprivileged):
    config().save_pretrained(unprivileged)
    for path in (unprivileged / "adapter_config.json", unprivileged):
        path.chmod(0)
        with pytest.raises(CheckpointError, match=rf"^{path} cannot be read: permission denied"):
            attach_adapter(network(), unprivileged)
        path.chmod(0o700)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    wide = baichuan.BaichuanForCausalLM(tiny_config(hidden_size=96))
    get_peft_model(wide, config()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit the model: .*\[4, 96\] ≠ \[4, 48\]"):
        attach_adapter(network(), tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_model.bin"])
def test_a_damaged_adapter_is_refused(tmp_path, name):
    get_peft_model(network(), config()).save_pretrained(
        tmp_path, safe_serialization=name.endswith("s")
    )
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=rf"{name} cannot be read .*truncated or damaged"):
        attach_adapter(network(), tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match="has the configuration of an adapter but no weights"):
        attach_adapter(network(), tmp_path)


A = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")


def doubled(weights):
    return {f"base_model.model.{name}": tensor for name, tensor in weights.items()}


def without_a_layer(weights):
    return {name: tensor for name, tensor in weights.items() if "layers.1." not in name}


def with_one_more(weights):
    return {**weights, A.replace("layers.1", "layers.2"): weights[A].clone()}


def of_another_rank(weights):
    return {**weights, A: weights[A][:3].clone(), B: weights[B][:, :3].clone()}


def with_nan(weights):
    return {**weights, B: weights[B].fill_(torch.nan)}


def without_the_embedding(weights):
    return {name: tensor for name, tensor in weights.items() if "embed_tokens" not in name}


@pytest.mark.parametrize("bits", [None, 3, 8])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (doubled, r"21 \(.*\.\.\.\) missing; 21 \(base_model\.model\.model\.embed_tokens.* unexp"),
        (without_a_layer, r"10 \(model\.layers\.1\.mlp.* missing; 0 unexpected; 0 of another"),
        (with_one_more, r"0 missing; 1 \(model\.layers\.2\.mlp\.down_proj\.lora_A\.weight\) unexp"),
        (of_another_rank, r"2 \(.*layers\.1\.mlp\.down_proj\.lora_A\.weight \[3, 96\] ≠ \[4, 96"),
        (without_the_embedding, r"1 \(model\.embed_tokens\.weight\) missing"),
        (with_nan, r"holds NaN or infinity: 1 \(model\.layers\.1\.mlp\.down_proj\.lora_B"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path, bits, spoil, message):
    given = with_quantized(config(modules_to_save=["embed_tokens"]))
    get_peft_model(network(bits), given).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file(spoil(load_file(file)), file)
    with pytest.raises(CheckpointError, match=message):
        attach_adapter(network(bits), tmp_path)
    model = network(bits)
    with pytest.raises(CheckpointError, match=message):
        model.load_adapter(str(tmp_path))
    torch.testing.assert_close(logits(model), logits(network(bits)), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_head_trained_whole_stands_in_place_of_a_quantized_one(tmp_path, bits):
    trained = get_peft_model(network(), config(modules_to_save=["lm_head"]))
    head = trained.base_model.model.lm_head.modules_to_save["default"]
    head.weight.data.neg_()
    trained.save_pretrained(tmp_path)
    loaded = load_for_inference(network(bits), tmp_path)
    assert torch.equal(loaded.lm_head.modules_to_save["default"].weight, head.weight)
    hidden = loaded.model(IDS).last_hidden_state
    torch.testing.assert_close(loaded(IDS).logits, hidden @ head.weight.T)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
def test_adapters_of_all_kinds_that_fit_are_loaded(tmp_path):
    for number, changes in enumerate(
        [
            {"target_modules": ["W_pack", "embed_tokens"]},
            {"rank_pattern": {"layers.1.self_attn.W_pack": 7}},
            {"use_dora": True},
            {"trainable_token_indices": [5, 9]},
        ]
    ):
        directory = tmp_path / str(number)
        model = get_peft_model(network(), config(**changes)).eval()
        for name, parameter in model.named_parameters():
            if "magnitude" in name:  # as if it were trained: it does not follow from the others
                parameter.data *= 1.5
        model.save_pretrained(directory, safe_serialization=bool(number % 2))
        wanted = logits(model)
        loaded = network()
        loaded.load_adapter(str(directory))
        assert torch.equal(logits(loaded.eval()), wanted)
        merged = load_for_inference(network(), directory)
        torch.testing.assert_close(logits(merged), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
def test_what_cannot_be_merged_or_changes_no_weights_is_said(tmp_path):
    get_peft_model(network(), config(lora_bias=True)).save_pretrained(tmp_path / "bias")
    with pytest.raises(CheckpointError, match=r"cannot be merged into the weights: .*has no bias"):
        load_for_inference(network(), tmp_path / "bias")
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    get_peft_model(network(), prompts).save_pretrained(tmp_path / "prompts")
    with pytest.raises(CheckpointError, match="is of the peft_type 'PROMPT_TUNING'; allowed is"):
        attach_adapter(network(), tmp_path / "prompts")


def changed(directory, **changes):
    """Change settings of an adapter that was saved."""
    file = directory / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}))
    return directory


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An adapter for `network()`."""
    directory = tmp_path_factory.mktemp("saved")
    get_peft_model(network(), config()).save_pretrained(directory)
    return directory


@pytest.fixture
def adapter(saved, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(saved, tmp_path / "adapter")


@pytest.mark.parametrize("package", ["lora", "megatron"])
@pytest.mark.parametrize(
    "door",
    [
        lambda adapter, _: attach_adapter(network(), adapter),
        lambda adapter, _: load_for_inference(network(4), adapter),
        lambda adapter, _: network().load_adapter(str(adapter)),
        lambda adapter, _: network(8).load_adapter(adapter, adapter_name="other"),
        lambda adapter, base: baichuan.load(base, adapter=adapter),
        lambda adapter, base: merge_adapter(base, adapter, base / "merged"),
    ],
    ids=["attach", "quantized", "load_adapter", "quantized load_adapter", "load", "merge"],
)
def test_no_adapter_can_name_a_module_to_import(tmp_path, monkeypatch, adapter, door, package):
    (tmp_path / package).mkdir()
    (tmp_path / package / "evil.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    changed(adapter, megatron_config={"a": 1}, megatron_core=f"{package}.evil")
    network().save_pretrained(tmp_path / "base")
    shutil.copy(baichuan.hub.DEMO / "tokenizer.model", tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"has megatron_config = \{'a': 1\}, which this pack"):
        door(adapter, tmp_path / "base")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": "8"}, r"adapter_config.json cannot be used: r is '8'; allowed is an integer from 1"),
        ({"r": True}, "r is True"),
        ({"r": 0}, "r is 0"),
        ({"r": 10_000}, r"asks for the rank 10000, but the weights .* ranks of at most 4"),
        ({"rank_pattern": {"W_pack": 9_999}}, r"asks for the rank 9999"),
        ({"lora_alpha": None}, "lora_alpha is None; allowed is a number"),
        ({"lora_alpha": 1e300}, r"lora_alpha is 1e\+300"),
        ({"lora_dropout": 1}, "lora_dropout is 1; allowed is a number from 0 to 0.999"),
        ({"target_modules": 5}, "target_modules is 5; allowed is a list"),
        ({"target_modules": {"W_pack": 1}}, "target_modules is {'W_pack': 1}"),
        ({"target_modules": ["W_pack", 3]}, r"target_modules is \['W_pack', 3\]"),
        ({"target_modules": r"(\w+\.?)+!"}, "target_modules is .*allowed is .* a regular expre"),
        ({"target_modules": ".?" * 60 + "!"}, "target_modules is"),
        ({"target_modules": "(.|.)" * 30 + "!"}, "target_modules is"),
        ({"exclude_modules": "["}, "exclude_modules is"),
        ({"rank_pattern": {"(.*)*x": 4}}, "rank_pattern is"),
        ({"alpha_pattern": {".*.*.*": 4}}, "alpha_pattern is"),
        ({"layers_pattern": "(a*)*"}, "layers_pattern is"),
        ({"target_modules": ["nothing"]}, "cannot be used with this model: .*Target modules"),
        ({"trainable_token_indices": [999_999]}, "cannot be used with this model"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes the base"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "weights 'loftq'"),
        ({"init_lora_weights": "pissa_niter_1000000000"}, "which changes the base weights"),
        ({"init_lora_weights": 1}, "init_lora_weights 1"),
        ({"loftq_config": {"loftq_bits": 4}}, "has loftq_config = {'loftq_bits': 4}, which this"),
        ({"corda_config": {"cache_file": "x.pt"}}, "has corda_config"),
        ({"layer_replication": [[0, 9_999]]}, "has layer_replication"),
        ({"fan_in_fan_out": True}, "has fan_in_fan_out = True"),
        ({"a_setting_of_tomorrow": 0.5}, "has a_setting_of_tomorrow = 0.5, which this package"),
        ({"peft_type": None}, "peft_type None; allowed is LORA"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"base_model_name_or_path": ["x"]}, "base_model_name_or_path is"),
    ],
)
def test_what_an_adapter_may_not_ask_for_is_one_sentence(adapter, changes, message):
    changed(adapter, **changes)
    with pytest.raises(CheckpointError, match=message) as refused:
        attach_adapter(network(), adapter)
    assert str(adapter) in str(refused.value)
    model = network()
    with pytest.raises(CheckpointError, match=message):
        model.load_adapter(str(adapter))
    assert torch.equal(logits(model), logits(network()))


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": r".*\.(self_attn|mlp)\.(W_pack|o_proj|gate_proj|up_proj|down_proj)"},
        {"a_setting_of_tomorrow": None, "another": False, "peft_version": "9.0"},
        {"init_lora_weights": "orthogonal"},
        {"auto_mapping": {"base_model_class": "X", "parent_library": "lora.evil"}},
    ],
    ids=["pattern", "newer peft", "initialized otherwise", "a library"],
)
def test_what_changes_nothing_about_an_adapter_is_passed_over(adapter, saved, changes):
    wanted = logits(load_for_inference(network(), saved))
    changed(adapter, **changes)
    assert torch.equal(logits(load_for_inference(network(), adapter)), wanted)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"[" * 100_000, b'{"peft_type": "LORA"'])
def test_an_adapter_config_that_is_not_json_is_refused(adapter, content):
    (adapter / "adapter_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"adapter_config.json (is not JSON|holds no table)"):
        attach_adapter(network(), adapter)


def test_weights_in_integers_are_refused(adapter):
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({**weights, A: weights[A].to(torch.int32)}, file)
    with pytest.raises(CheckpointError, match=r"down_proj\.lora_A.* as torch.int32 \[4, 96\]; an"):
        attach_adapter(network(), adapter)


def test_an_adapter_may_take_the_place_of_another(adapter, saved):
    file = adapter / "adapter_model.safetensors"
    save_file({name: -tensor for name, tensor in load_file(file).items()}, file)
    model = network()
    model.load_adapter(str(saved))
    model.load_adapter(str(adapter), adapter_name="default", hotswap=True)
    wanted = network()
    wanted.load_adapter(str(adapter))
    assert torch.equal(logits(model.eval()), logits(wanted.eval()))
    with pytest.raises(CheckpointError, match="r is 'x'"):
        model.load_adapter(str(changed(adapter, r="x")), adapter_name="default", hotswap=True)


@pytest.mark.parametrize(
    "content", [b"{}", b"", b'{"peft_type": 1}', b'{"base_model_name_or_path": 5}']
)
def test_a_configuration_without_an_adapter_says_nothing_about_a_model(tmp_path, content):
    """A repository may hold one beside a whole model."""
    network().save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(content)
    loaded = baichuan.BaichuanForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded), logits(network()))
    if content[-1:] == b"}":  # transformers reads it before it knows which class to ask
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(logits(again), logits(network()))


def test_a_name_of_an_adapter_loads_its_model_too(saved, tmp_path):
    network().save_pretrained(tmp_path / "base")
    adapter = shutil.copytree(saved, tmp_path / "adapter")
    changed(adapter, base_model_name_or_path=str(tmp_path / "base"))
    loaded = AutoModelForCausalLM.from_pretrained(adapter).eval()
    wanted = network()
    wanted.load_adapter(str(saved))
    assert torch.equal(logits(loaded), logits(wanted.eval()))
    with pytest.raises(CheckpointError, match="r is 'x'"):
        AutoModelForCausalLM.from_pretrained(changed(adapter, r="x"))
