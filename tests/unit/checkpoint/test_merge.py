"""Merging on disk: equal to peft in memory, in one tensor's memory, whole or not at all."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.conftest import change_a_byte, tiny_config

import baichuan
from baichuan.checkpoint import rewrite
from baichuan.checkpoint.load import load
from baichuan.checkpoint.merge import merge_adapter
from baichuan.cli.merge import run_merge
from baichuan.errors import CheckpointError, DownloadError, UsageError
from baichuan.model.adapters import attach_adapter, with_quantized
from baichuan.quant.linear import QuantizedLinear

TARGETS = ["W_pack", "o_proj", "down_proj"]
IDS = torch.arange(5, 25)[None]


@pytest.fixture(params=[None, 4, 8], ids=["float", "int4", "int8"])
def bits(request):
    return request.param


@pytest.fixture
def source(bits, tmp_path):
    """A checkpoint of several shards, whose quantized layers' codes and scales may be parted."""
    model = baichuan.BaichuanForCausalLM(tiny_config(initializer_range=0.2, dtype="bfloat16"))
    model = model.to(torch.bfloat16) if bits is None else model.quantize(bits)
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    assert len(list((tmp_path / "source").glob("*.safetensors"))) > 3
    return tmp_path / "source"


def loaded(directory):
    return baichuan.BaichuanForCausalLM.from_pretrained(directory, dtype="auto").eval()


def adapter_for(source, tmp_path, **changes):
    given = {"r": 4, "target_modules": TARGETS, "init_lora_weights": False, **changes}
    config = LoraConfig(task_type="CAUSAL_LM", **given)
    model = get_peft_model(
        loaded(source), config if "use_dora" in given else with_quantized(config)
    )
    with torch.no_grad():  # a module that was trained whole differs from the checkpoint's
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter += 0.25
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3, "rank_pattern": {"layers.1.mlp.down_proj": 7}},
        {"modules_to_save": ["embed_tokens"]},
        {"target_modules": ["W_pack", "embed_tokens"]},
        {"trainable_token_indices": [5, 9]},
    ],
    ids=["plain", "rslora", "whole", "embedding", "tokens"],
)
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
def test_the_result_is_that_of_merging_in_memory(source, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(rewrite, "_SHARD_BYTES", 30_000)
    adapter = adapter_for(source, tmp_path, **changes)
    merge_adapter(source, adapter, tmp_path / "target")
    assert len(list((tmp_path / "target").glob("*.safetensors"))) > 1
    merged = loaded(tmp_path / "target").state_dict()
    base = loaded(source).float()
    wanted = attach_adapter(base, adapter).merge_and_unload().state_dict()
    assert merged.keys() == wanted.keys()
    for name, tensor in wanted.items():  # summed in float32, and rounded once
        assert torch.equal(merged[name], tensor.to(merged[name].dtype)), name


def test_dora_merges_too(tmp_path):
    model = baichuan.BaichuanForCausalLM(tiny_config(initializer_range=0.2))
    model.save_pretrained(tmp_path / "source")
    adapter = adapter_for(tmp_path / "source", tmp_path, use_dora=True)
    merge_adapter(tmp_path / "source", adapter, tmp_path / "target")
    beside = attach_adapter(loaded(tmp_path / "source"), adapter).eval()
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(tmp_path / "target")(IDS).logits, beside(IDS).logits, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("bits", [4], indirect=True)
def test_killed_it_goes_on(source, tmp_path, monkeypatch):
    monkeypatch.setattr(rewrite, "_SHARD_BYTES", 30_000)
    adapter = adapter_for(source, tmp_path)
    written = []
    save = rewrite.save_file

    def stopped_at_the_third(tensors, path, **named):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        save(tensors, path, **named)

    monkeypatch.setattr(rewrite, "save_file", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        merge_adapter(source, adapter, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    monkeypatch.setattr(rewrite, "save_file", save)
    other = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**other, "lora_alpha": 1}))
    with pytest.raises(UsageError, match="unfinished run with other settings"):
        merge_adapter(source, adapter, tmp_path / "target")
    (adapter / "adapter_config.json").write_text(json.dumps(other, indent=2, sort_keys=True))
    changed = next(source.glob("*.safetensors"))
    for file in (changed, adapter / "adapter_model.safetensors"):
        change_a_byte(file)
        with pytest.raises(UsageError, match="of another source"):
            merge_adapter(source, adapter, tmp_path / "target")
        change_a_byte(file)
    merge_adapter(source, adapter, tmp_path / "target")
    merge_adapter(source, adapter, tmp_path / "again")
    for file in (tmp_path / "again").glob("*.safetensors"):
        ours = load_file(tmp_path / "target" / file.name)
        for name, tensor in load_file(file).items():
            assert torch.equal(tensor, ours[name])


@pytest.mark.parametrize("bits", [None], indirect=True)
def test_what_cannot_be_merged_is_said(source, tmp_path):
    adapter = adapter_for(source, tmp_path)
    with pytest.raises(UsageError, match="exists; give a name that is free"):
        merge_adapter(source, adapter, source)
    with pytest.raises(CheckpointError, match="holds no adapter"):
        merge_adapter(source, source, tmp_path / "target")
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: tensor.fill_(1e30) for name, tensor in weights.items()}, file)
    with pytest.raises(CheckpointError, match=r"layers\.\d.*NaNs? detected|not finite"):
        merge_adapter(source, adapter, tmp_path / "target")
    first, *others = weights
    save_file({name: weights[name] for name in others}, file)
    with pytest.raises(CheckpointError, match=r"does not fit the model: 1 \(model\.layers\.0"):
        merge_adapter(source, adapter, tmp_path / "target")
    weights[first][0, 0] = torch.nan
    save_file(weights, file)
    with pytest.raises(CheckpointError, match=r"holds NaN or infinity: 1 \(model\.layers\.0"):
        merge_adapter(source, adapter, tmp_path / "target")
    model = baichuan.BaichuanForCausalLM(tiny_config())
    model.model.norm.weight.data[3] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(CheckpointError, match=r"^model\.norm\.weight in .*broken holds NaN"):
        merge_adapter(tmp_path / "broken", adapter_for(source, tmp_path), tmp_path / "other")
    assert not (tmp_path / "target").exists() and not (tmp_path / "other").exists()


@pytest.mark.parametrize("bits", [None, 8], indirect=True)
def test_a_head_trained_whole_is_stored_as_the_old_one_was(bits, source, tmp_path):
    floats = tmp_path / "floats"
    loaded(source).float().dequantize().save_pretrained(floats) if bits else None
    adapter = adapter_for(floats if bits else source, tmp_path, modules_to_save=["lm_head"])
    whole = load_file(adapter / "adapter_model.safetensors")["base_model.model.lm_head.weight"]
    merge_adapter(source, adapter, tmp_path / "target")
    head = loaded(tmp_path / "target").lm_head
    if bits is None:
        assert torch.equal(head.weight, whole.to(torch.bfloat16))
    else:
        wanted = QuantizedLinear.from_weight(whole, head.scheme)
        assert torch.equal(head.codes, wanted.codes)
        assert torch.equal(head.scales, wanted.scales)


@pytest.mark.parametrize("bits", [None], indirect=True)
@pytest.mark.filterwarnings("ignore:.*(tie_word_embeddings|save_embedding_layers)")
def test_a_tied_head_has_no_weights_to_merge_into(source, tmp_path):
    model = baichuan.BaichuanForCausalLM(tiny_config(tie_word_embeddings=True))
    model.save_pretrained(tmp_path / "tied")
    adapter = adapter_for(tmp_path / "tied", tmp_path, target_modules=["W_pack", "lm_head"])
    with pytest.raises(CheckpointError, match="changes lm_head, which has no weights of its own"):
        merge_adapter(tmp_path / "tied", adapter, tmp_path / "target")


@pytest.mark.parametrize("bits", [None], indirect=True)
def test_an_adapter_knows_its_model(source, tmp_path):
    adapter = adapter_for(source, tmp_path)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(source)
    (adapter / "adapter_config.json").write_text(
        json.dumps({**settings, "base_model_name_or_path": None})
    )
    with pytest.raises(UsageError, match="does not say on which model it was trained"):
        load(adapter=adapter)


@pytest.mark.parametrize(
    "base",
    ["/on/another/machine/base", "base", "models/base"],  # the last as on the hub
)
@pytest.mark.parametrize("bits", [None], indirect=True)
def test_a_model_that_is_not_here_is_said_to_be_the_adapters(source, tmp_path, base):
    adapter = adapter_for(source, tmp_path)
    file = adapter / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "base_model_name_or_path": base}))
    said = rf"{base}'(?s:.*)adapter_config.json says as base_model_name_or_path (?s:.*) --model"
    with pytest.raises(DownloadError, match=said):
        load(adapter=adapter, local_files_only=True)
    with pytest.raises(DownloadError, match=r"adapter_config.json says as base_model"):
        file.write_text(json.dumps({**settings, "base_model_name_or_path": "/not/here"}))
        run_merge(adapter, tmp_path / "merged", None)
