"""Cross entropy of the next token, without the logits of all positions at once. Knows no network.

Logits are the largest tensor of training: [positions, 64,000] in float32, several times. Here they
are computed for some positions at a time, only where there is a label. A head that learns computes
them once more on the way back; beside a frozen one, their gradient is taken at once. The head is
called as a module, so adapters, quantized weights and sharding work as always.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: Label of a position that is not learned.
IGNORED = -100
#: What a network's forward hands on to `next_token_loss`.
LOSS_OPTIONS = ("shift_labels", "num_items_in_batch", "label_smoothing", "reduction")
#: Positions whose logits are in memory together: 131 MB in float32 for 64,000 tokens.
POSITIONS_AT_ONCE = 512
#: Under ZeRO-3 all processes fetch a module's weights at each call, so all must call equally often.
_SHARDED_CALLS = 8


def next_token_loss(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor | None = None,
    *,
    shift_labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross entropy, computed in float32: a sum divided by a count.

    Args:
        head: maps [n, hidden] to logits [n, vocabulary]; its weights may be trained.
        hidden: [batch, positions, hidden].
        labels: int64 [batch, positions]; position t is compared with labels[t + 1], -100 is
            ignored.
        shift_labels: the same, moved already: position t is compared with shift_labels[t].
        num_items_in_batch: what the sum is divided by (transformers' Trainer counts the labels of
            all accumulated batches); None for the number of labels here.
        label_smoothing: share of the target that is spread over the whole vocabulary.
        reduction: "mean", or "none" for the loss of each position.

    Returns:
        float32 scalar. NaN, as torch's mean, where nothing is learned and no count is given.
        With "none" float32 [batch, positions], 0 where there is no label.
    """
    if shift_labels is None:
        assert labels is not None, "one of the two"
        shift_labels = F.pad(labels, (0, 1), value=IGNORED)[..., 1:]
    wanted = shift_labels.reshape(-1).to(hidden.device)
    learned = (wanted != IGNORED).nonzero()[:, 0]
    rows = hidden.reshape(-1, hidden.shape[-1]).index_select(0, learned)
    targets = wanted.index_select(0, learned)
    if rows.requires_grad and reduction == "mean" and _is_frozen(head):
        total = cast(Tensor, _FrozenHeadLoss.apply(rows, targets, head, label_smoothing))  # type: ignore[no-untyped-call]
    else:
        parts = zip(_parts(rows, head), _parts(targets, head), strict=True)
        losses = [
            checkpoint(_losses, head, *part, label_smoothing, use_reentrant=False) for part in parts
        ]
        if reduction == "none":
            each = torch.cat(losses)
            flat = each.new_zeros(len(wanted)).index_put((learned,), each)
            return flat.view(shift_labels.shape)
        total = torch.stack([part.sum() for part in losses]).sum()
    count = len(learned) if num_items_in_batch is None else num_items_in_batch
    return total / count


class _FrozenHeadLoss(torch.autograd.Function):
    """The sum of the losses, whose gradient is taken while a part's logits are in memory.

    Two products of the head instead of three. As in the fused loss of Liger-Kernel (Hsu et al.
    2024, arXiv 2410.10989), but for any module.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, wanted: Tensor, head: nn.Module, label_smoothing: float
    ) -> Tensor:
        sums: list[Tensor] = []
        gradients: list[Tensor] = []
        for part, targets in zip(_parts(rows, head), _parts(wanted, head), strict=True):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                loss = _losses(head, part, targets, label_smoothing).sum()
            gradients += torch.autograd.grad(loss, part)
            sums.append(loss.detach())
        ctx.save_for_backward(torch.cat(gradients))
        return torch.stack(sums).sum()

    @staticmethod
    def backward(ctx: Any, of_sum: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * of_sum, None, None, None


def _is_frozen(head: nn.Module) -> bool:
    """Say whether nothing of the head learns, and all of it is in this process."""
    return not any(p.requires_grad or hasattr(p, "ds_id") for p in head.parameters())


def _losses(head: nn.Module, rows: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Compute the loss of each position."""
    logits = head(rows).float()
    return F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)


def _parts(tensor: Tensor, head: nn.Module) -> list[Tensor]:
    """Split the first axis; one part at least, so that the head's weights get gradients of zero."""
    if not any(hasattr(weight, "ds_id") for weight in head.parameters()):
        return list(torch.split(tensor, POSITIONS_AT_ONCE))
    parts = list(torch.split(tensor, max(1, -(-len(tensor) // _SHARDED_CALLS))))
    return parts + [tensor[:0]] * (_SHARDED_CALLS - len(parts))
