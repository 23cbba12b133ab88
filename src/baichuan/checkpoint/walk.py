"""Texts through a network on disk, one layer in memory at a time: what its matrices are fed.

For choosing codes by typical inputs (calibrate.py) and formats by what they lose (sensitivity.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from baichuan.model.configuration import BaichuanConfig
from baichuan.model.layers import BaichuanDecoderLayer, BaichuanRMSNorm
from baichuan.model.rotary import rotary_angles

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
#: Rows of texts that go through a layer together.
_AT_ONCE = 4
#: What is fed what another is fed.
_SAME_INPUT = {"mlp.up_proj": "mlp.gate_proj"}


class Walk:
    """Hidden states on their way through a network.

    Weights in float16 compute in float32, others in their own dtype.

    Attributes:
        hidden: [rows, positions, hidden], behind the layers passed so far; without content before
            `embed`.
    """

    hidden: Tensor

    def __init__(self, config: BaichuanConfig, ids: Tensor) -> None:
        """Begin with token ids int64 [rows, positions]."""
        self._config, self._ids = config, ids
        self._angles = None
        if config.position_embedding == "rope":
            places = torch.arange(ids.shape[1])[None]
            self._angles = rotary_angles(places, config.head_dim, config.rope_theta)

    @torch.inference_mode()
    def embed(self, weight: Tensor) -> None:
        """Look the tokens up in the embedding [vocabulary, hidden]."""
        self.hidden = _computable(weight[self._ids])

    def layer(self, number: int, tensors: Mapping[str, Tensor]) -> BaichuanDecoderLayer:
        """Make a layer of its tensors, named as in the network."""
        with torch.device("meta"):
            layer = BaichuanDecoderLayer(self._config, number)
        prefix = layer_prefix(number)
        state = {n.removeprefix(prefix): _computable(t) for n, t in tensors.items()}
        layer.load_state_dict(state, assign=True)
        layer.eval().requires_grad_(False)
        return layer

    @torch.inference_mode()
    def through(self, layer: BaichuanDecoderLayer) -> Iterator[Tensor]:
        """Give what a layer makes of the hidden states, some rows at a time."""
        for rows in torch.split(self.hidden, _AT_ONCE):
            yield layer(rows, rotary=self._angles)

    def go_on(self, layer: BaichuanDecoderLayer) -> None:
        """Leave the layer behind."""
        self.hidden = torch.cat(list(self.through(layer)))

    def moments(self, layer: BaichuanDecoderLayer) -> Moments:
        """Give the second moments of what the layer's matrices are fed."""
        linears = {
            name: module
            for name, module in layer.named_modules()
            if type(module) is nn.Linear and name not in _SAME_INPUT
        }
        with _listening(linears) as found:
            for _ in self.through(layer):
                pass
        return found

    @torch.inference_mode()
    def final(self, weight: Tensor) -> Tensor:
        """Give float32 [rows * positions, hidden] behind the final norm of that weight."""
        with torch.device("meta"):
            norm = BaichuanRMSNorm(self._config.hidden_size, self._config.rms_norm_eps)
        norm.load_state_dict({"weight": _computable(weight)}, assign=True)
        normed: Tensor = norm(self.hidden)
        return normed.flatten(0, 1).float()


class Moments:
    """Mean of x x^T, float32 [columns, columns], over the inputs x of each matrix, by its name."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, inputs: Tensor) -> None:
        """Take inputs [..., columns]."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        if name not in self._sums:
            self._sums[name], self._counts[name] = x.new_zeros((x.shape[1], x.shape[1])), 0
        self._sums[name].addmm_(x.T, x)
        self._counts[name] += len(x)

    def of(self, name: str) -> Tensor:
        """Give a matrix's own, which may be overwritten."""
        source = _SAME_INPUT.get(name, name)
        return self._sums[source] / self._counts[source]


def parts(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Group a network's tensors in the order of a walk: embedding, each layer, norm and head."""
    numbers = {int(name.split(".")[2]) for name in names if name.startswith("model.layers.")}
    layers = [
        tuple(name for name in names if name.startswith(layer_prefix(number)))
        for number in sorted(numbers)
    ]
    return [(EMBEDDING,), *layers, tuple(name for name in (NORM, HEAD) if name in names)]


def layer_prefix(number: int) -> str:
    """Give what the names of a layer's tensors begin with."""
    return f"model.layers.{number}."


def _computable(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor


@contextmanager
def _listening(linears: Mapping[str, nn.Module]) -> Iterator[Moments]:
    found = Moments()

    def hear(name: str) -> Any:
        return lambda module, inputs: found.add(name, inputs[0])

    hooks = [module.register_forward_pre_hook(hear(name)) for name, module in linears.items()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
