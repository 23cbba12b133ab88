"""What a network loses by each matrix in each format, measured on texts, layer by layer.

One matrix at a time is rounded, and the output of its layer compared with the one before: the mean,
over positions, of the squared change over the square. What a change of that size costs is measured
at the end, where it is a divergence of predictions: there hidden states are changed at random. That
counts the errors of all layers alike, as if each arrived at the end as it began; so the sum is a
measure for choosing, not a forecast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from baichuan.checkpoint.quantize import checked_schemes, stored_bytes
from baichuan.checkpoint.rewrite import Progress
from baichuan.checkpoint.walk import EMBEDDING, HEAD, NORM, Walk, layer_prefix, parts
from baichuan.kernels.layout import dequantize, pack
from baichuan.model.pretrained import read_config, refuse_quantized
from baichuan.model.quantization import plan_for
from baichuan.quant.budget import SCHEMES, mixed
from baichuan.quant.plan import Plan
from baichuan.quant.rounding import round_weight
from baichuan.quant.scheme import Scheme
from baichuan.weights import WeightFiles

#: Rows of texts that suffice for comparing formats.
_ROWS = 4
#: Squared size of the random change, in parts of the hidden state's.
_CHANGE = 0.01
#: Bytes of a file that tell of one tensor, at most.
_HEADER = 200
#: Positions whose predictions are in memory at once.
_POSITIONS = 256

Losses = dict[str, dict[Scheme, float]]


def plan_within(
    source: Path,
    ids: Tensor,
    budget: float,
    progress: Progress = lambda done, total: None,
) -> Plan:
    """Choose formats of 3, 4 and 8 bits for the matrices of a checkpoint.

    Args:
        source: directory of a checkpoint in float32, bfloat16 or float16.
        ids: token ids int64 [rows, positions] of typical texts; some rows are used.
        budget: bytes of all weight files of the result.
        progress: told (bytes of the source finished, all bytes).

    Raises:
        CheckpointError: the source is damaged or quantized already.
        UsageError: the budget is smaller than the smallest result.
    """
    mixer = Mixer(source)
    mixer.plan({}, budget)  # is it enough?
    return mixer.plan(mixer.losses(ids, progress), budget)


class Mixer:
    """What the matrices of one checkpoint lose, and what mixes they make."""

    def __init__(self, source: Path) -> None:
        """Read the headers of a checkpoint; raises as `plan_within` does."""
        self._config, self._weights = read_config(source), WeightFiles(source)
        refuse_quantized(self._config, self._weights)
        every = self._weights.headers.items()
        self._headers = {name: header for name, header in every if "inv_freq" not in name}
        plan = plan_for(self._config, Plan(SCHEMES[0], {}))
        quantized = checked_schemes(self._config, plan, self._weights)
        self._sizes = {
            name: {scheme: stored_bytes(self._headers[name], scheme) for scheme in SCHEMES}
            for name in quantized
        }

    def losses(self, ids: Tensor, progress: Progress = lambda done, total: None) -> Losses:
        """Measure, in nats, what each matrix loses in each format."""
        found = _Losses(Walk(self._config, ids[:_ROWS]), set(self._sizes))
        total, done = sum(header.nbytes for header in self._headers.values()), 0
        progress(done, total)
        for names in parts(list(self._headers)):
            found.take(self._weights.read(names))
            done += sum(self._headers[name].nbytes for name in names)
            progress(done, total)
        return found.in_nats()

    def plan(self, losses: Losses, budget: float) -> Plan:
        """Mix formats so that the files take `budget` bytes; what is not in `losses` loses none."""
        names = self._headers.keys()
        rest = sum(self._headers[name].nbytes for name in names - self._sizes.keys())
        rest += _HEADER * (len(names) + len(self._sizes))
        none = dict.fromkeys(SCHEMES, 0.0)
        known = {name: losses.get(name, none) for name in self._sizes}
        chosen = mixed(known, self._sizes, budget, rest)
        exceptions: dict[str, Scheme | None] = {
            name.removesuffix(".weight"): scheme
            for name, scheme in chosen.items()
            if scheme != SCHEMES[1]
        }
        return plan_for(self._config, Plan(SCHEMES[1], exceptions))


class _Losses:
    """Collects what each matrix loses; they come in the order of `walk.parts`."""

    _embedding: Tensor  # the head where there is no other

    def __init__(self, walk: Walk, quantized: set[str]) -> None:
        self._walk, self._quantized, self._layers = walk, quantized, 0
        self._relative: Losses = {}
        self._head: Losses = {}
        self._nats_per_change = 0.0

    def in_nats(self) -> Losses:
        """Give the divergence that each matrix is thought to cause in each format."""
        relative = {
            name: {scheme: change * self._nats_per_change for scheme, change in each.items()}
            for name, each in self._relative.items()
        }
        return relative | self._head

    def take(self, read: Mapping[str, Tensor]) -> None:
        """Measure one part."""
        if EMBEDDING in read:
            self._walk.embed(read[EMBEDDING])
            self._embedding = read[EMBEDDING]
        elif NORM in read:
            self._end(read)
        else:
            self._layer(read)

    def _layer(self, read: Mapping[str, Tensor]) -> None:
        prefix, walk = layer_prefix(self._layers), self._walk
        layer = walk.layer(self._layers, read)
        moments = walk.moments(layer)
        right = list(walk.through(layer))
        for name in self._quantized & read.keys():
            module = layer.get_submodule(name.removeprefix(prefix).removesuffix(".weight"))
            assert isinstance(module, nn.Linear)
            importance = moments.of(name.removeprefix(prefix).removesuffix(".weight")).diagonal()
            kept = module.weight

            def loss(
                scheme: Scheme,
                module: nn.Linear = module,
                kept: Tensor = kept,
                importance: Tensor = importance,
            ) -> float:
                module.weight = nn.Parameter(_rounded(kept, scheme, importance), False)
                return _relative_change(right, walk.through(layer))

            self._relative[name] = {scheme: loss(scheme) for scheme in SCHEMES}
            module.weight = kept
        walk.hidden = torch.cat(right)
        self._layers += 1

    @torch.inference_mode()
    def _end(self, read: Mapping[str, Tensor]) -> None:
        head = read.get(HEAD, self._embedding).float()
        hidden = self._walk.final(read[NORM])
        # A change before the norm is one behind it, in parts of the size.
        noise = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0))
        size = hidden.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
        changed = hidden + noise * size * _CHANGE**0.5
        self._nats_per_change = _divergence(hidden, head, changed, head) / _CHANGE
        if HEAD in self._quantized:
            importance = hidden.square().mean(0)
            self._head[HEAD] = {
                s: _divergence(hidden, head, hidden, _rounded(head, s, importance)) for s in SCHEMES
            }


def _rounded(weight: Tensor, scheme: Scheme, importance: Tensor) -> Tensor:
    codes, scales = round_weight(weight, scheme, importance)
    packed = pack(codes, scales, scheme.bits, scheme.columns_per_group)
    return dequantize(packed, weight.dtype)


def _relative_change(right: Sequence[Tensor], other: Iterable[Tensor]) -> float:
    """Give the mean over positions of |other - right|^2 / |right|^2."""
    changes = [
        (b.float() - a.float()).square().sum(-1) / a.float().square().sum(-1).clamp_min(1e-30)
        for a, b in zip(right, other, strict=True)
    ]
    return float(torch.cat(changes).mean())


def _divergence(hidden: Tensor, head: Tensor, other: Tensor, other_head: Tensor) -> float:
    """Give the mean KL divergence, in nats, of the predictions from other @ other_head^T."""
    sums = 0.0
    pairs = zip(torch.split(hidden, _POSITIONS), torch.split(other, _POSITIONS), strict=True)
    for a, b in pairs:
        right, found = (a @ head.T).log_softmax(-1), (b @ other_head.T).log_softmax(-1)
        sums += float((right.exp() * (right - found)).sum())
    return sums / len(hidden)
