"""RoPE: the whole network beside transformers' own LLaMA with the same weights, for two bases."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from baichuan import BaichuanConfig, BaichuanForCausalLM
from baichuan.model.rotary import rotary_angles

#: 6 heads: no power of two.
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
}


def llama_of(model: BaichuanForCausalLM, base: float) -> LlamaForCausalLM:
    """Build transformers' LLaMA with our model's weights."""
    config = LlamaConfig(
        **SHAPE,
        num_key_value_heads=6,
        rms_norm_eps=model.config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": base},
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    state = {}
    for name, tensor in model.state_dict().items():
        if "W_pack" in name:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace("W_pack", f"{letter}_proj")] = part
        else:
            state[name] = tensor
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict(state)
    return llama


@pytest.mark.parametrize(
    ("changes", "base"), [({}, 1e4), ({"rope_theta": 10_000}, 1e4), ({"rope_theta": 1e5}, 1e5)]
)
def test_logits_are_those_of_transformers_llama(tmp_path, changes, base):
    torch.manual_seed(0)
    config = BaichuanConfig(**SHAPE, position_embedding="rope", **changes)
    BaichuanForCausalLM(config).save_pretrained(tmp_path)
    model = BaichuanForCausalLM.from_pretrained(tmp_path).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, 50, (2, 300))
    with torch.inference_mode():
        torch.testing.assert_close(
            model(ids).logits, llama_of(model, base)(ids).logits, rtol=1e-4, atol=1e-4
        )


def test_the_base_sets_the_longest_wavelength():
    cos, sin = rotary_angles(torch.tensor([[3]]), head_dim=4, base=100.0)
    angles = torch.tensor([[[3.0, 0.3]]])  # 3 / 100 ** (0 / 4), 3 / 100 ** (2 / 4)
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())
