"""Telling transformers' Auto classes about Baichuan; knows their registries and nothing else.

A registered class wins over a checkpoint's own Python files whether `trust_remote_code` is unset,
False or True, so those files never run.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaiChuanForCausalLM, BaichuanForCausalLM, BaichuanModel
from baichuan.model.quantization import register_quantization
from baichuan.model.tokenizer import register_tokenizer


def register() -> None:
    """Register configuration, networks, tokenizer and quantized weights; safe to call again."""
    AutoConfig.register("baichuan", BaichuanConfig, exist_ok=True)
    AutoModel.register(BaichuanConfig, BaichuanModel, exist_ok=True)
    # With several classes transformers picks the one that the checkpoint's `architectures` names.
    networks = (BaichuanForCausalLM, BaiChuanForCausalLM)
    AutoModelForCausalLM.register(BaichuanConfig, networks, exist_ok=True)
    # `register` does not add to this table, by whose class names the Trainer decides whether
    # smoothed labels are those of the next token.
    for network in networks:
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[network.__name__] = network.__name__
    register_tokenizer()
    register_quantization()
