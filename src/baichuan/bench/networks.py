"""Networks to measure: loaded, or of random weights; and the same under ALiBi and under RoPE.

Speed and memory do not depend on what weights say, so figures of the 13B need no download.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from baichuan.bench.job import BITS, DTYPES, Job
from baichuan.checkpoint.load import load
from baichuan.engine.detokenize import Decode
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.plan import use_huge_pages

#: Told (bytes written, all bytes).
Progress = Callable[[int, int], None]

_SEED = 0


def loaded_network(job: Job, precision: str) -> tuple[BaichuanForCausalLM, Decode]:
    """Load the checkpoint in a precision, as every command does; give it and its decode function.

    Raises:
        BaichuanError: whatever `baichuan.load` finds wrong.
    """
    where: dict[str, Any] = {"device": job.chosen_device, "huge_pages": job.huge_pages}
    if job.quantized is not None:
        model, tokenizer = load(job.model, **where)
    elif precision in DTYPES:
        model, tokenizer = load(job.model, dtype=DTYPES[precision], **where)
    else:
        model, tokenizer = load(job.model, bits=BITS[precision], **where)
    return model.eval(), tokenizer.decode_text


def random_network(
    network: BaichuanForCausalLM, job: Job, progress: Progress
) -> tuple[BaichuanForCausalLM, Decode]:
    """Fill a network with random weights, each tensor in its final form: no other copy is held.

    Weights have the standard deviation of an initialised network, so activations stay finite.

    Args:
        network: on the meta device; changed in place.
        job: where to, and whether in large pages.
        progress: told of the bytes written.
    """
    network.to_empty(device=job.chosen_device)  # takes addresses; memory comes with the values
    torch.manual_seed(_SEED)
    modules = [module for module in network.modules() if not any(module.children())]
    sizes = [sum(t.nbytes for t in module.state_dict().values()) for module in modules]
    done = 0
    for module, size in zip(modules, sizes, strict=True):
        _fill(module, network.config.initializer_range)
        done += size
        progress(done, sum(sizes))
    if job.huge_pages:
        use_huge_pages(network)
    return network, _one_letter_each


def both_positions(model: BaichuanForCausalLM) -> dict[str, BaichuanForCausalLM]:
    """Give a network under "alibi" and under "rope": itself, and a twin that shares its weights."""
    own = str(model.config.position_embedding)
    other = "rope" if own == "alibi" else "alibi"
    shape = {**model.config.to_dict(), "position_embedding": other}
    with torch.device("meta"):
        twin = type(model)(BaichuanConfig.from_dict(shape)).eval()
    for name, module in model.named_modules():
        if not any(module.children()):  # these hold all weights and know nothing of positions
            twin.set_submodule(name, module)
    return {own: model, other: twin}


@torch.no_grad()
def _fill(module: nn.Module, spread: float) -> None:
    """Write random weights of a standard deviation; norms get their ones."""
    if isinstance(module, QuantizedLinear):
        _fill_codes(module, spread)
    else:
        for parameter in module.parameters():
            parameter.fill_(1.0) if parameter.ndim == 1 else parameter.normal_(0.0, spread)


def _fill_codes(layer: QuantizedLinear, spread: float) -> None:
    codes, levels = layer.codes, 2**layer.scheme.bits
    assert codes is not None, "nothing has repacked them yet"
    codes.view(torch.int64).random_(-(2**63), None)  # eight bytes at a time
    if layer.scheme.bits == 8:
        codes.clamp_(min=1)  # a byte of 0 is the code -128, which rounding does not give
        levels -= 1
    of_codes = ((levels**2 - 1) / 12) ** 0.5
    # Either sign, because the int4 codes -8..7 have a mean of their own.
    layer.scales.bernoulli_(0.5).mul_(2).sub_(1).mul_(spread / of_codes)


def _one_letter_each(tokens: object) -> str:
    """Decode for a network without a tokenizer."""
    assert isinstance(tokens, list)
    return "x" * len(tokens)
