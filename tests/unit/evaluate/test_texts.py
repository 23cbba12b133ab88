"""Perplexity and KL, against sums over one forward pass per window."""

import math

import pytest
import torch
from tests.conftest import tiny_config

import baichuan
from baichuan.errors import DataError, UsageError
from baichuan.evaluate.texts import distance, perplexity, text_of


def network(seed, **changes):
    torch.manual_seed(seed)
    config = tiny_config(initializer_range=0.3, **changes)
    return baichuan.BaichuanForCausalLM(config).eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(3, 700, (700,), generator=torch.Generator().manual_seed(1)).tolist()


def by_hand(model, ids, window, stride):
    """Log-probabilities [n, vocabulary] for each token but the first, a pass per window."""
    rows = []
    end = min(window, len(ids))
    first = 1
    while True:
        begin = max(0, end - window)
        with torch.inference_mode():
            logits = model(torch.tensor([ids[begin:end]])).logits[0].float()
        rows.append(logits[first - begin - 1 : end - begin - 1].log_softmax(-1))
        if end == len(ids):
            return torch.cat(rows)
        first, end = end, min(end + stride, len(ids))


@pytest.mark.parametrize(
    ("window", "stride"), [(700, 350), (1000, 1), (600, 599), (64, 17), (300, 100)]
)
def test_windows(model, ids, window, stride):
    logs = by_hand(model, ids, window, stride)
    assert len(logs) == len(ids) - 1
    nats = -logs.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
    told = []
    score = perplexity(
        model, [(ids, 2000)], window=window, stride=stride, tell=lambda *now: told.append(now)
    )
    assert score.tokens == 699
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.perplexity == pytest.approx(math.exp(nats / 699), rel=1e-4)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / 2000, rel=1e-5)
    assert told[-1] == (699, 699)


def test_several_texts_are_apart(ids):
    model = network(0)
    parts = [(ids[:100], 1), ([5], 1), (ids[100:150], 1)]
    alone = [perplexity(model, [part], window=64, stride=32) for part in (parts[0], parts[2])]
    together = perplexity(model, parts, window=64, stride=32)
    assert together.tokens == 99 + 49
    assert together.nats == pytest.approx(sum(score.nats for score in alone))
    assert together.bytes == 3


def test_distance(ids):
    model, original = network(1), network(2)
    logs, theirs = (by_hand(n, ids[:200], 64, 32) for n in (model, original))
    kl = (theirs.exp() * (theirs - logs)).sum(-1).mean().item()
    found = distance(model, original, [(ids[:200], 9)], window=64, stride=32)
    assert found.kl == pytest.approx(kl, rel=1e-4)
    assert found.same == pytest.approx((logs.argmax(-1) == theirs.argmax(-1)).float().mean().item())
    for side, network_ in ((found.model, model), (found.original, original)):
        assert side == perplexity(network_, [(ids[:200], 9)], window=64, stride=32)
    itself = distance(original, original, [(ids[:200], 9)], window=64, stride=32)
    assert (itself.kl, itself.same) == (0, 1)


def test_what_cannot_be(ids, tmp_path):
    model = network(0)
    for window, stride, text, said in (
        (1, 1, ids, "window is 1"),
        (64, 64, ids, "stride is 64; allowed is 1 to 63"),
        (64, 0, ids, "stride is 0"),
        (64, 32, [5], "fewer than two tokens"),
    ):
        with pytest.raises(UsageError, match=said):
            perplexity(model, [(text, 1)], window=window, stride=stride)
    with pytest.raises(UsageError, match="vocabularies of 700 and 800"):
        other = network(0, vocab_size=800)
        distance(model, other, [(ids, 1)], window=64, stride=32)
    with pytest.raises(DataError, match="cannot be read"):
        text_of(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="holds no text"):
        text_of(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("è".encode("latin-1"))
    with pytest.raises(DataError, match="cannot be read"):
        text_of(tmp_path / "latin.txt")
