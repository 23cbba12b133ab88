"""A checkpoint on disk, small and random, for commands that run in processes of their own."""

import shutil
from pathlib import Path

import pytest
import torch

import baichuan
from tests.conftest import tiny_config

VOCABULARY = Path(__file__).parents[1] / "data" / "tokenizer" / "tokenizer.model"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Random weights that say random words, as many as they may."""
    directory = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    config = tiny_config(vocab_size=1000, initializer_range=0.2, model_max_length=1_000_000)
    model = baichuan.BaichuanForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight.data[config.eos_token_id])  # never the likeliest
    model.save_pretrained(directory)
    shutil.copy(VOCABULARY, directory)
    return directory
