"""How well a network predicts plain text, and how far its predictions are from an original's.

Long texts go through in windows, each beginning before the tokens that count in it, so that every
token is predicted from at least `window - stride` others (but those at the text's beginning).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from baichuan.engine.cache import Chunk, DecoderModel
from baichuan.engine.sampling import check_finite
from baichuan.errors import DataError, UsageError
from baichuan.files import read_text

#: Told how many tokens are done, and of how many.
Tell = Callable[[int, int], None]

#: Positions whose logits are in memory at once: 64 MB with the published vocabulary.
_PIECE = 256


@dataclass(frozen=True)
class TextScore:
    """How well texts were predicted.

    Attributes:
        tokens: that were predicted; the first of a text is not.
        nats: sum of their negative log-probabilities.
        bytes: of the texts in UTF-8.
    """

    tokens: int
    nats: float
    bytes: int

    @property
    def perplexity(self) -> float:
        """Exponential of the mean per token; comparable between equal tokenizers alone."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between any two models."""
        return self.nats / math.log(2) / self.bytes


@dataclass(frozen=True)
class Distance:
    """How far a model's predictions are from an original's.

    Attributes:
        kl: mean Kullback-Leibler divergence of the model from the original, in nats per token.
        same: share of positions at which both find the same token likeliest.
        model, original: how well each predicts the text itself.
    """

    kl: float
    same: float
    model: TextScore
    original: TextScore


def text_of(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: it is not there, not UTF-8, or empty.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            "{path} cannot be read as UTF-8 text ({reason}).", path=path, reason=error
        ) from error
    if not text.strip():
        raise DataError("{path} holds no text.", path=path)
    return text


def perplexity(
    model: DecoderModel,
    texts: Sequence[tuple[list[int], int]],
    *,
    window: int,
    stride: int,
    tell: Tell | None = None,
) -> TextScore:
    """Predict each token of each text.

    Args:
        model: the network.
        texts: token ids and the number of bytes of each.
        window: tokens that the network sees at most.
        stride: tokens that count in each window but the first, whose tokens all do.
        tell: told of progress.

    Raises:
        UsageError: window or stride is not allowed, or no text has two tokens.
    """
    total = _check(texts, window, stride)
    nats, tokens = 0.0, 0
    for ids, _ in texts:
        for logits, targets in _predicted(model, ids, window, stride):
            nats += _nats(logits.log_softmax(-1), targets)
            tokens += len(targets)
            if tell is not None:
                tell(tokens, total)
    return TextScore(tokens, nats, sum(size for _, size in texts))


def distance(
    model: DecoderModel,
    original: DecoderModel,
    texts: Sequence[tuple[list[int], int]],
    *,
    window: int,
    stride: int,
    tell: Tell | None = None,
) -> Distance:
    """Compare the distributions of two networks at each position; see `perplexity`.

    Raises:
        UsageError: as `perplexity`, or the networks have different vocabularies.
    """
    total = _check(texts, window, stride)
    size = sum(size for _, size in texts)
    kl, same, tokens = 0.0, 0, 0
    sums = [0.0, 0.0]
    for ids, _ in texts:
        pair = (_predicted(network, ids, window, stride) for network in (model, original))
        for (ours, targets), (theirs, _) in zip(*pair, strict=True):
            if ours.shape != theirs.shape:
                raise UsageError(
                    "The two models have vocabularies of {ours} and {theirs} tokens; their "
                    "predictions can only be compared if these are equal.",
                    ours=ours.shape[1],
                    theirs=theirs.shape[1],
                )
            logs = [logits.to(ours.device).log_softmax(-1) for logits in (ours, theirs)]
            kl += float((logs[1].exp() * (logs[1] - logs[0])).sum(dtype=torch.float64))
            same += int((logs[0].argmax(-1) == logs[1].argmax(-1)).sum())
            sums = [s + _nats(log, targets) for s, log in zip(sums, logs, strict=True)]
            tokens += len(targets)
            if tell is not None:
                tell(tokens, total)
    scores = [TextScore(tokens, nats, size) for nats in sums]
    return Distance(kl / tokens, same / tokens, *scores)


def _check(texts: Sequence[tuple[list[int], int]], window: int, stride: int) -> int:
    """Check what was given; count the tokens to predict."""
    if window < 2:
        raise UsageError("window is {given}; allowed is 2 or more.", given=window)
    if not 1 <= stride < window:
        raise UsageError(
            "stride is {given}; allowed is 1 to {most}, less than the window.",
            given=stride,
            most=window - 1,
        )
    total = sum(max(len(ids) - 1, 0) for ids, _ in texts)
    if not total:
        raise UsageError("The texts have fewer than two tokens, so nothing can be predicted.")
    return total


def _predicted(
    model: DecoderModel, ids: Sequence[int], window: int, stride: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Give float32 logits [n, vocabulary] and the int64 tokens [n] that follow, piece by piece."""
    done = 1  # tokens that are predicted; nothing predicts the first
    while done < len(ids):
        end = min(len(ids), window if done == 1 else done + stride)
        begin = max(0, end - window)
        cache = model.new_cache()
        if begin < done - 1:
            model.forward_chunks([Chunk(ids[begin : done - 1], cache, logits=0)])
        for first in range(done - 1, end - 1, _PIECE):
            piece = ids[first : min(first + _PIECE, end - 1)]
            (logits,) = model.forward_chunks([Chunk(piece, cache, logits=len(piece))])
            check_finite(logits)
            yield logits, torch.tensor(ids[first + 1 : first + 1 + len(piece)])
        done = end


def _nats(logs: Tensor, targets: Tensor) -> float:
    """Sum up the negative log-probabilities of what came."""
    picked = logs.gather(1, targets.to(logs.device)[:, None])
    return -float(picked.sum(dtype=torch.float64))
