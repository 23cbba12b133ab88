"""How much room the caches get: by the network's shape and by what is free."""

import psutil
import pytest
import torch
from tests.conftest import tiny_config

import baichuan
from baichuan.engine.cache import blocks_for
from baichuan.kernels.paged import BLOCK
from baichuan.model import budget
from baichuan.model.budget import bytes_per_token, tokens_that_fit


@pytest.fixture(scope="module")
def model():
    return baichuan.BaichuanForCausalLM(tiny_config(model_max_length=512)).eval()


def test_a_token_takes_what_the_caches_really_take(model):
    cache = model.new_cache()
    engine = baichuan.Engine(model, str)
    list(engine.generate([5] * 100, baichuan.SamplingParams(max_tokens=1), cache))
    assert cache.nbytes == blocks_for(100) * BLOCK * bytes_per_token(model)
    half = baichuan.BaichuanForCausalLM(tiny_config()).to(torch.bfloat16)
    assert 2 * bytes_per_token(half) == bytes_per_token(model)


def test_room_is_what_memory_leaves_between_one_context_and_one_for_each_request(
    model, monkeypatch
):
    def with_free(count):
        memory = psutil.virtual_memory()._replace(available=count)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
        return tokens_that_fit(model, max_batch=4)

    assert with_free(0) == 512
    assert with_free(10**12) == 4 * 512
    some = int((1000 * bytes_per_token(model) + 1e9) / 0.9)
    monkeypatch.setattr(budget, "_mapped_bytes", lambda model: 0)
    assert with_free(some + 10) == 1000


def test_a_draft_has_its_part(model, monkeypatch):
    draft = baichuan.BaichuanForCausalLM(tiny_config(num_hidden_layers=6)).eval()
    assert bytes_per_token(model, draft) == 4 * bytes_per_token(model)
    monkeypatch.setattr(budget, "_free_bytes", lambda model: 2 * 10**9)
    monkeypatch.setattr(budget, "_MARGIN_BYTES", int(1.8e9) - 2000 * bytes_per_token(model))
    assert tokens_that_fit(model, 4) == 2000
    assert tokens_that_fit(model, 4, draft) == 512


def test_weights_in_mapped_files_are_not_free(model, monkeypatch):
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    memory = psutil.Process().memory_info()

    def with_own(count):
        monkeypatch.setattr(
            psutil.Process, "memory_info", lambda self: memory._replace(rss=count + 500, shared=500)
        )
        return budget._mapped_bytes(model)

    assert with_own(0) == weights
    assert with_own(weights - 7) == 7
    assert with_own(10 * weights) == 0


def test_a_container_has_less_than_the_machine(tmp_path):
    assert budget._left_to_container(5, tmp_path) == 5
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 100\n")
    assert budget._left_to_container(5, tmp_path) == 5
    (tmp_path / "memory.max").write_text("1000\n")
    assert budget._left_to_container(5, tmp_path) == 500
