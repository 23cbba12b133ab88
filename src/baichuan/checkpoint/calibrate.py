"""Quantizing a checkpoint by texts: each layer rounded for what the quantized ones before feed it.

One layer is in memory at a time, with the hidden states of all texts. An interrupted run sends the
texts through the finished layers again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from baichuan.checkpoint.walk import EMBEDDING, NORM, Walk, layer_prefix
from baichuan.errors import CheckpointError, DataError, UsageError
from baichuan.files import read_text
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.scheme import Scheme

#: Tokens of a row, and rows that are taken at most, evenly from all.
LENGTH, MOST_ROWS = 512, 256


def calibration_rows(directory: Path, files: Sequence[Path] = ()) -> Tensor:
    """Cut texts into rows of token ids.

    Args:
        directory: of the checkpoint, for its tokenizer.
        files: texts in UTF-8; without any, the package's own, half English and half Chinese.

    Returns:
        int64 [rows, 512]; fewer columns if there is less text than that.

    Raises:
        DataError: a file cannot be read or all are empty.
    """
    if files:
        texts = [_read(file) for file in files]
    else:
        own = resources.files("baichuan.quant").joinpath("calibration.txt").read_text("utf-8")
        texts = own.split("\n%%\n")
    tokenizer = BaichuanTokenizer.from_pretrained(directory)
    lines = [tokenizer.encode(t + "\n", verbose=False) for t in texts if t.strip()]
    ids = torch.tensor([i for line in lines for i in line])
    if len(ids) < 2:
        raise DataError("The calibration texts are empty; give texts of some thousand words.")
    length = min(LENGTH, len(ids))
    rows = ids[: len(ids) // length * length].view(-1, length)
    return rows[:: -(-len(rows) // MOST_ROWS)]


def _read(file: Path) -> str:
    try:
        return read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "The calibration text {file} cannot be read ({reason}); give text in UTF-8.",
            file=file,
            reason=error,
        ) from error


class Calibrated:
    """What is stored of each part of a checkpoint; they come in the order of `walk.parts`."""

    def __init__(self, config: BaichuanConfig, schemes: Mapping[str, Scheme], ids: Tensor) -> None:
        """Begin with token ids int64 [rows, positions]; schemes by the names of weights."""
        if any(scheme.layout != "blocks" for scheme in schemes.values()):
            raise UsageError("The original's scheme rounds to nearest; it has no calibration.")
        self._walk, self._schemes, self._layers = Walk(config, ids), schemes, 0

    def convert(self, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give what is stored of a part.

        Raises:
            CheckpointError: a weight, or what comes of it, holds NaN or infinity.
        """
        if EMBEDDING in read:
            self._walk.embed(read[EMBEDDING])
            return dict(read)
        if NORM in read:
            return self._end(read)
        prefix = layer_prefix(self._layers)
        moments = self._walk.moments(self._walk.layer(self._layers, read))
        stored: dict[str, Tensor] = {}
        for name, tensor in read.items():
            module = name.removeprefix(prefix).removesuffix(".weight")
            stored |= self._stored(name, tensor, partial(moments.of, module))
        self._go_on(read, stored)
        return stored

    def skip(self, read: Mapping[str, Tensor], shard: Mapping[str, Tensor]) -> None:
        """Go on behind a part that an earlier run has stored in a shard."""
        if EMBEDDING in read:
            self._walk.embed(read[EMBEDDING])
        elif NORM not in read:
            self._go_on(read, shard)

    def _end(self, read: Mapping[str, Tensor]) -> dict[str, Tensor]:
        final = self._walk.final(read[NORM])
        stored: dict[str, Tensor] = {}
        for name, tensor in read.items():
            stored |= self._stored(name, tensor, lambda: final.T @ final / len(final))
        return stored

    def _stored(self, name: str, tensor: Tensor, moment: Callable[[], Tensor]) -> dict[str, Tensor]:
        scheme = self._schemes.get(name)
        if scheme is None:
            return {name: tensor}
        try:
            layer = QuantizedLinear.from_weight(tensor, scheme, moment())
        except UsageError as error:
            raise CheckpointError("{name}: {reason}", name=name, reason=error) from error
        module = name.removesuffix(".weight")
        return {f"{module}.{part}": content for part, content in layer.state_dict().items()}

    def _go_on(self, read: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
        """Send the texts through the layer with the weights that the stored codes stand for."""
        weights = {
            name: self._restored(name, tensor, stored) if name in self._schemes else tensor
            for name, tensor in read.items()
        }
        self._walk.go_on(self._walk.layer(self._layers, weights))
        self._layers += 1

    def _restored(self, name: str, weight: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
        with torch.device("meta"):
            layer = QuantizedLinear(weight.shape[1], weight.shape[0], self._schemes[name])
        module = name.removesuffix(".weight")
        layer.codes, layer.scales = stored[f"{module}.codes"], stored[f"{module}.scales"]
        return layer.dequantize(weight.dtype)
