"""What may be asked of a benchmark, and what it will be."""

from dataclasses import replace

import pytest
import torch
from tests.conftest import tiny_config

from baichuan.bench.job import PRECISIONS, Job, chosen_precisions, empty_network, weight_bytes
from baichuan.checkpoint.load import load
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.errors import BaichuanError, CheckpointError, UsageError
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"tokens": 1}, "tokens is 1; allowed is 2 or more"),
        ({"prompt": 0}, "prompt is 0; allowed is 1 or more"),
        ({"repeats": 0}, "repeats is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"random": "70b"}, "random is '70b'; allowed is 13b, 7b"),
        ({"random": "13b", "layers": 41}, "layers is 41; allowed is 1 to 40"),
        ({"random": "7b", "layers": 0}, "layers is 0; allowed is 1 to 32"),
        ({"layers": 2}, "--layers belongs to"),
        ({"random": "13b", "model": "x/y"}, "'x/y' and --random were both given"),
        ({"device": "tpu"}, "device is 'tpu'; the benchmark runs on cpu"),
    ],
)
def test_what_cannot_be_is_a_sentence(values, sentence):
    with pytest.raises(UsageError, match=sentence):
        Job(**values)


def test_a_directory_without_a_checkpoint_is_a_sentence(tmp_path):
    with pytest.raises(BaichuanError, match=r"config\.json"):
        Job(model=str(tmp_path))


def test_rope_needs_even_heads(tmp_path):
    tiny_config(hidden_size=42).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"7 columns each .* --no-rope"):
        Job(model=str(tmp_path))
    assert Job(model=str(tmp_path), rope=False).config.head_dim == 7


def test_json_round_trip():
    job = Job(random="13b", layers=3, prompt=7, tokens=9, threads=2, huge_pages=True, rope=False)
    assert Job.from_json(job.to_json()) == job


def test_precisions_keep_their_order():
    assert chosen_precisions(Job()) == list(PRECISIONS)
    assert chosen_precisions(Job(), ["int4", "fp32"]) == ["fp32", "int4"]
    with pytest.raises(UsageError, match="precision is 'int4,fp8'; allowed are fp32, bf16"):
        chosen_precisions(Job(), ["int4", "fp8"])


def test_a_quantized_checkpoint_has_its_own_precision(tmp_path):
    quantize_checkpoint(Job().directory, tmp_path / "four", Plan(Scheme.of_bits(4)))
    job = Job(model=str(tmp_path / "four"))
    assert chosen_precisions(job) == chosen_precisions(job, ["int8", "int4"]) == ["int4"]
    with pytest.raises(UsageError, match="quantized already and has int4 alone"):
        chosen_precisions(job, ["int8"])
    model, _ = load(tmp_path / "four")
    assert weight_bytes(empty_network(job, "int4")) == weight_bytes(model)


def test_weights_of_another_library_are_refused(tmp_path):
    config = tiny_config()
    config.quantization_config = {"quant_method": "another", "bits": 4}
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="'another'"):
        chosen_precisions(Job(model=str(tmp_path)))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sizes_are_known_before_loading(precision):
    where = {"fp32": {}, "bf16": {"dtype": "bfloat16"}, "int8": {"bits": 8}, "int4": {"bits": 4}}
    model, _ = load(**where[precision])
    assert weight_bytes(empty_network(Job(), precision)) == weight_bytes(model)


@pytest.mark.parametrize(
    ("precision", "gigabytes"), [("fp32", 53.06), ("bf16", 26.53), ("int8", 13.6), ("int4", 7.5)]
)
def test_sizes_of_the_13b(precision, gigabytes):
    job = Job(random="13b")
    assert job.is_baichuan_13b
    assert not replace(job, layers=39).is_baichuan_13b
    network = empty_network(job, precision)
    assert network.lm_head(torch.empty(1, 5120, device="meta", dtype=network.dtype)).shape[1] == (
        64_000
    )
    assert weight_bytes(network) / 1e9 == pytest.approx(gigabytes, abs=0.1)
