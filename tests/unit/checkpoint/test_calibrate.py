"""Quantizing by texts: nearer to the network than the nearest codes, the same after a kill."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import tiny_config

import baichuan
from baichuan.checkpoint import rewrite
from baichuan.checkpoint.calibrate import Calibrated, calibration_rows
from baichuan.checkpoint.load import DEMO
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.checkpoint.sensitivity import plan_within
from baichuan.errors import CheckpointError, DataError, UsageError
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme

INT4 = Plan(Scheme(4, 32))


@pytest.fixture(params=["alibi", "rope"])
def source(request, tmp_path):
    torch.manual_seed(3)
    config = tiny_config(vocab_size=300, position_embedding=request.param)
    model = baichuan.BaichuanForCausalLM(config)
    for parameter in model.parameters():  # some inputs far larger than others
        if parameter.ndim == 1:
            parameter.data = torch.rand_like(parameter) ** 4 * 4
    model.save_pretrained(tmp_path / "source", max_shard_size="60KB")
    return tmp_path / "source"


@pytest.fixture
def ids():
    return torch.randint(3, 300, (12, 40), generator=torch.Generator().manual_seed(1))


def logits(directory, ids):
    model = baichuan.BaichuanForCausalLM.from_pretrained(directory, dtype=torch.float32)
    if hasattr(model, "hf_quantizer"):
        model = model.dequantize()
    with torch.inference_mode():
        return model(ids).logits


def tensors(directory):
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


def test_predictions_are_nearer_than_with_the_nearest_codes(source, ids, tmp_path):
    right = logits(source, ids)
    errors = {}
    for name, given in (("nearest", None), ("calibrated", ids)):
        quantize_checkpoint(source, tmp_path / name, INT4, ids=given)
        errors[name] = float((logits(tmp_path / name, ids) - right).square().mean())
    assert errors["calibrated"] < 0.6 * errors["nearest"]
    assert {k: (v.shape, v.dtype) for k, v in tensors(tmp_path / "nearest").items()} == {
        k: (v.shape, v.dtype) for k, v in tensors(tmp_path / "calibrated").items()
    }
    configs = [json.loads((tmp_path / n / "config.json").read_text()) for n in errors]
    assert configs[0] == configs[1]


def test_the_inputs_are_those_that_the_network_feeds_its_matrices(source, ids, monkeypatch):
    """With codes that lose nothing, each moment is what hooks see in the whole network."""
    seen, expected = {}, {}
    model = baichuan.BaichuanForCausalLM.from_pretrained(source, dtype=torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):

            def hook(module, inputs, name=name):
                x = inputs[0].flatten(0, 1)
                expected[f"{name}.weight"] = x.T @ x / len(x)

            module.register_forward_pre_hook(hook)
    with torch.inference_mode():
        model(ids)

    def stored(self, name, tensor, moment):
        if name in self._schemes:
            seen[name] = moment()
        return {name: tensor}

    monkeypatch.setattr(Calibrated, "_stored", stored)
    monkeypatch.setattr(Calibrated, "_restored", lambda self, name, weight, stored: weight)
    quantize_checkpoint(source, source.with_name("kept"), INT4, ids=ids)
    assert seen.keys() == expected.keys()
    for name, moment in expected.items():
        torch.testing.assert_close(seen[name], moment, rtol=1e-4, atol=1e-5)


def test_an_interrupted_run_goes_on_to_the_same_result(source, ids, tmp_path, monkeypatch):
    monkeypatch.setattr(rewrite, "_SHARD_BYTES", 15_000)
    quantize_checkpoint(source, tmp_path / "whole", INT4, ids=ids)
    convert = Calibrated.convert
    calls = []

    def stopping(self, read):
        calls.append(read)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return convert(self, read)

    monkeypatch.setattr(Calibrated, "convert", stopping)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, tmp_path / "target", INT4, ids=ids)
    assert list((tmp_path / "target.partial").glob("*.safetensors"))
    with pytest.raises(UsageError, match="other settings"):
        quantize_checkpoint(source, tmp_path / "target", INT4, ids=ids[:3])
    with pytest.raises(UsageError, match="other settings"):
        quantize_checkpoint(source, tmp_path / "target", INT4, ids=ids.view(24, 20))
    quantize_checkpoint(source, tmp_path / "target", INT4, ids=ids)
    ours, theirs = tensors(tmp_path / "target"), tensors(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_budget_is_kept_and_spent(source, ids, tmp_path):
    sizes, errors = [], []
    right = logits(source, ids)
    quantize_checkpoint(source, tmp_path / "int3", Plan(Scheme(3, 64), {}))
    least = sum(file.stat().st_size for file in (tmp_path / "int3").glob("*.safetensors"))
    for budget in (least + 20_000, least * 1.3):
        plan = plan_within(source, ids, budget)
        target = tmp_path / str(budget)
        quantize_checkpoint(source, target, plan, ids=ids)
        sizes.append(sum(file.stat().st_size for file in target.glob("*.safetensors")))
        errors.append(float((logits(target, ids) - right).square().mean()))
        assert sizes[-1] <= budget
    assert sizes[1] > sizes[0] and errors[1] < errors[0]
    with pytest.raises(UsageError, match="Give at least that") as refused:
        plan_within(source, ids, 1000)
    named = re.search(r"the weights take ([\d.]+) MB", str(refused.value))
    assert named is not None
    plan_within(source, ids, float(named[1]) * 1e6)


def test_rows_of_texts(tmp_path):
    rows = calibration_rows(DEMO)
    assert rows.shape[1] == 512 and len(rows) > 50 and rows.dtype == torch.int64
    file = tmp_path / "mine.txt"
    file.write_text("不足一行。A short text.")
    rows = calibration_rows(DEMO, [file])
    assert rows.shape[0] == 1
    file.write_text("\ufeff不足一行。A short text.")  # a byte order mark is no text
    assert torch.equal(calibration_rows(DEMO, [file]), rows)
    file.write_text("")
    with pytest.raises(DataError, match="texts are empty"):
        calibration_rows(DEMO, [file])
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"mine\.txt cannot be read .*UTF-8"):
        calibration_rows(DEMO, [file])


def test_what_cannot_be_calibrated(source, ids, tmp_path):
    with pytest.raises(UsageError, match="has no calibration"):
        quantize_checkpoint(source, tmp_path / "t", Plan.of_original(8), ids=ids)
    model = baichuan.BaichuanForCausalLM.from_pretrained(source, dtype=torch.float32)
    model.model.layers[0].mlp.down_proj.weight.data[0, 0] = torch.inf
    model.save_pretrained(tmp_path / "bad")
    with pytest.raises(CheckpointError, match="NaN or infini"):
        quantize_checkpoint(tmp_path / "bad", tmp_path / "t", INT4, ids=ids)
