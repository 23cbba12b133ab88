"""The loss by parts of the logits against torch's cross entropy of all of them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import tiny_config
from tests.unit.model.test_attention import LargestTensor
from torch import nn

import baichuan
from baichuan.model import loss as module
from baichuan.model.loss import IGNORED, next_token_loss
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.scheme import Scheme


class Adapted(nn.Module):
    """A frozen head with low-rank matrices beside it, as adapters are."""

    def __init__(self, head):
        super().__init__()
        self.head = head.requires_grad_(False)
        self.down, self.up = nn.Linear(12, 3, bias=False), nn.Linear(3, 70, bias=False)

    def forward(self, x):
        return self.head(x) + self.up(self.down(x))


HEADS = {
    "plain": lambda: nn.Linear(12, 70, bias=False),
    "frozen": lambda: nn.Linear(12, 70, bias=False).requires_grad_(False),
    "int8": lambda: QuantizedLinear.from_weight(torch.randn(70, 12), Scheme(8, None)),
    "adapted": lambda: Adapted(nn.Linear(12, 70, bias=False)),
}


def some_labels(learned):
    labels = torch.randint(70, (3, 50))
    return labels.masked_fill(torch.rand(3, 50) >= learned, IGNORED)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("learned", [1.0, 0.3])
@pytest.mark.parametrize("count", [None, 40, torch.tensor(40)])
def test_loss_and_gradients_are_those_of_whole_logits(monkeypatch, head, learned, count):
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", 16)
    ours = HEADS[head]()
    whole, labels = copy.deepcopy(ours), some_labels(learned)
    results = []
    for net, by_parts in ((ours, True), (whole, False)):
        torch.manual_seed(1)
        hidden = torch.randn(3, 50, 12, requires_grad=True)
        if by_parts:
            loss = next_token_loss(net, hidden, labels, num_items_in_batch=count)
        else:
            logits, wanted = net(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            loss = F.cross_entropy(logits, wanted, reduction="sum")
            loss = loss / (int((wanted >= 0).sum()) if count is None else count)
        (3 * loss).backward()
        results.append([loss, hidden.grad, *(p.grad for p in net.parameters() if p.requires_grad)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("head", "times"), [("plain", 2), ("adapted", 2), ("frozen", 1), ("int8", 1)]
)
def test_a_frozen_head_computes_no_logits_twice(monkeypatch, head, times):
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", 16)
    net, calls = HEADS[head](), []
    net.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    hidden, labels = torch.randn(3, 50, 12, requires_grad=True), some_labels(1.0)
    next_token_loss(net, hidden, labels).backward()
    assert len(calls) == times * 10
    assert max(calls) == 16
    calls.clear()
    with torch.no_grad():
        next_token_loss(net, hidden, labels)
    assert len(calls) == 10


def test_labels_that_are_moved_already():
    hidden, labels, head = torch.randn(3, 50, 12), some_labels(0.5), HEADS["plain"]()
    moved = F.pad(labels, (0, 1), value=IGNORED)[:, 1:]
    expected = next_token_loss(head, hidden, labels)
    torch.testing.assert_close(next_token_loss(head, hidden, shift_labels=moved), expected)


def test_nothing_to_learn_gives_every_weight_a_gradient():
    head, hidden = HEADS["plain"](), torch.randn(1, 5, 12, requires_grad=True)
    nothing = torch.full((1, 5), IGNORED)
    loss = next_token_loss(head, hidden, nothing, num_items_in_batch=7)
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any() and not head.weight.grad.any()
    assert next_token_loss(head, hidden, nothing).isnan()


@pytest.mark.parametrize("learned", [1.0, 0.03, 0.0])
def test_sharded_heads_are_called_equally_often(learned):
    head, calls = HEADS["plain"](), []
    head.weight.ds_id = 0  # as DeepSpeed marks what lies in parts on several processes
    head.register_forward_hook(lambda *_: calls.append(1))
    hidden, labels = torch.randn(3, 50, 12), some_labels(learned)
    with torch.no_grad():
        ours = next_token_loss(head, hidden, labels, num_items_in_batch=9)
    assert len(calls) == 8
    del head.weight.ds_id
    torch.testing.assert_close(ours, next_token_loss(head, hidden, labels, num_items_in_batch=9))


def test_the_network_makes_no_logits_while_it_trains(model):
    ids = torch.randint(3, 700, (2, 29))
    labels = ids.masked_fill(torch.rand(2, 29) < 0.5, IGNORED)
    evaluated = model(ids, labels=labels)
    model.train()
    trained = model(ids, labels=labels, num_items_in_batch=None)
    assert trained.logits is None
    torch.testing.assert_close(trained.loss, evaluated.loss)
    asked = model(ids, labels=labels, skip_logits=False)
    torch.testing.assert_close(asked.logits, evaluated.logits)
    assert model(ids).logits.shape == (2, 29, 700)
    model.eval()
    assert model(ids, labels=labels, skip_logits=True).logits is None
    first, *_ = model.train()(ids, labels=labels, return_dict=False)
    assert torch.equal(first, trained.loss)


def test_memory_does_not_grow_with_the_logits():
    config = tiny_config(vocab_size=64_000, num_hidden_layers=1)
    network = baichuan.BaichuanForCausalLM(config).train()
    ids = torch.randint(3, 700, (1, 1100))
    with LargestTensor() as largest:
        network(ids, labels=ids).loss.backward()
    assert largest.nbytes <= 4 * module.POSITIONS_AT_ONCE * 64_000
