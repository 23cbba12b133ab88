"""The original's quantizer, number for number, against what its own code gave."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import tiny_config
from transformers import AutoModelForCausalLM

import baichuan
from baichuan.errors import UsageError
from baichuan.quant.original import OriginalLinear
from baichuan.quant.scheme import Scheme


@pytest.fixture(scope="module")
def golden(reference):
    path = reference / "golden" / "quantizer.safetensors"
    if not path.is_file():
        pytest.skip("needs the quantizer's goldens in ../shared (or $BAICHUAN_SHARED)")
    return load_file(path), json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_codes_scales_and_products(golden, kind):
    tensors, _ = golden
    weight, x = tensors[f"{kind}.weight"], tensors[f"{kind}.x"]
    int8 = OriginalLinear.from_weight(weight, Scheme(8, None, "original"))
    assert torch.equal(int8.codes, tensors[f"{kind}.int8.qweight_in_out"])
    assert torch.equal(int8.scales, tensors[f"{kind}.int8.scale"])
    torch.testing.assert_close(int8(x), tensors[f"{kind}.int8.y"], atol=1e-5, rtol=0)
    int4 = OriginalLinear.from_weight(weight, Scheme(4, None, "original"))
    assert torch.equal(int4.codes, tensors[f"{kind}.int4.qweight"])
    assert torch.equal(int4.scales, tensors[f"{kind}.int4.scale"])
    assert torch.equal(int4.dequantize(), tensors[f"{kind}.int4.dequant_out_in"])
    torch.testing.assert_close(int4(x.float()), tensors[f"{kind}.int4.y_fp32"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_a_whole_model(reference, bits):
    path = reference / "golden" / "tiny-13b-h8-quant.safetensors"
    if not path.is_file():
        pytest.skip("needs the quantized model's goldens in ../shared (or $BAICHUAN_SHARED)")
    tensors = load_file(path)
    directory = reference / "models" / "tiny-13b-h8"
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float16)
    model.quantize(bits, scheme="original").float()
    logits = model(tensors["input_ids"]).logits
    torch.testing.assert_close(logits, tensors[f"int{bits}.logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_it_is_saved_and_read_back(tmp_path, bits):
    model = baichuan.BaichuanForCausalLM(tiny_config()).quantize(bits, scheme="original").eval()
    model.save_pretrained(tmp_path)
    again = baichuan.BaichuanForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(20)[None] + 5
    assert torch.equal(model(ids).logits, again(ids).logits)
    assert isinstance(again.model.layers[0].mlp.down_proj, OriginalLinear)


def test_a_row_of_zeros_stays_zero():
    layer = OriginalLinear.from_weight(torch.zeros(3, 8), Scheme(8, None, "original"))
    assert not layer.dequantize().any()


@pytest.mark.parametrize(("size", "layout"), [(64, "original"), (None, "nonsense")])
def test_what_there_is_not(size, layout):
    with pytest.raises(UsageError, match="'original' with 8 or 4 bits and without groups"):
        Scheme(8, size, layout)
    with pytest.raises(UsageError, match="packs eight columns"):
        OriginalLinear(12, 4, Scheme(4, None, "original"))
