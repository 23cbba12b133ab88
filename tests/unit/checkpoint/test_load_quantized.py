"""`baichuan.load` with bits: quantized while loading, refused where the checkpoint has others."""

import pytest
import torch

import baichuan
from baichuan.checkpoint.load import DEMO
from baichuan.errors import UsageError
from baichuan.quant.linear import QuantizedLinear

QUESTION = [{"role": "user", "content": "世界上第二高的山是什么山"}]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("huge_pages", [False, True])
def test_the_demo_in_few_bits_still_knows_its_mountain(bits, huge_pages):
    model, tokenizer = baichuan.load(bits=bits, huge_pages=huge_pages)
    assert isinstance(model.model.layers[0].mlp.up_proj, QuantizedLinear)
    assert model.dtype == torch.float32
    assert "乔戈里峰" in model.chat(tokenizer, QUESTION)


def test_large_pages_change_no_bit():
    ids = torch.arange(700, 760)[None]
    plain, _ = baichuan.load(bits=4)
    moved, _ = baichuan.load(bits=4, huge_pages=True)
    with torch.inference_mode():
        assert torch.equal(plain(ids).logits, moved(ids).logits)


def test_a_quantized_checkpoint_says_so(tmp_path):
    model, tokenizer = baichuan.load(DEMO, bits=4)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = baichuan.load(tmp_path, bits=4, huge_pages=True)
    assert "乔戈里峰" in again.chat(tokenizer, QUESTION)
    with pytest.raises(UsageError, match="bits is 8, but the checkpoint is quantized already"):
        baichuan.load(tmp_path, bits=8)


@pytest.mark.parametrize("bits", [2, 16, 0])
def test_bits_that_there_are_not(bits):
    with pytest.raises(UsageError, match=f"bits is {bits}; allowed is 8, 4 or 3"):
        baichuan.load(bits=bits)
    with pytest.raises(UsageError, match=f"bits is {bits}"):
        baichuan.load("no-such/model", bits=bits)  # before anything is fetched
