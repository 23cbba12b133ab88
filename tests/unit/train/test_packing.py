"""Packing: nothing lost, nothing mixed, and the same loss as one row at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baichuan.train.collate import Collator
from baichuan.train.packing import best_fit, pack


@given(st.lists(st.integers(1, 32), max_size=60))
def test_every_row_is_in_one_bin_that_holds_it(lengths):
    bins = best_fit(lengths, 32)
    assert sorted(row for members in bins for row in members) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in members) <= 32 for members in bins)
    # Were two bins at most half full, the rows of the emptier would have gone into the other.
    assert sum(2 * sum(lengths[r] for r in members) <= 32 for members in bins) <= 1


def test_the_fullest_bin_that_has_room_is_taken():
    assert best_fit([6, 5, 4, 5, 3, 1], 10) == [[0, 2], [1, 3], [4, 5]]


def test_segments_are_numbered_and_begin_anew():
    rows = {"input_ids": [[5, 6, 7], [8, 9]], "labels": [[-100, 6, 7], [8, 9]]}
    assert pack(rows, 8) == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[-100, 6, 7, -100, 9]],
        "attention_mask": [[1, 1, 1, 2, 2]],
        "position_ids": [[0, 1, 2, 0, 1]],
    }


def test_the_loss_of_packed_rows_is_that_of_padded_rows(model, tokenizer):
    """Of both families; sums, for a batch's mean depends on what is beside a row."""
    lengths = [9, 30, 17, 3, 22, 40, 12]
    ids = [torch.randint(3, 700, (n,)).tolist() for n in lengths]
    labels = [[-100] * (n // 3) + row[n // 3 :] for n, row in zip(lengths, ids, strict=True)]
    packed = pack({"input_ids": ids, "labels": labels}, 48)
    assert 1 < len(packed["input_ids"]) < len(lengths)
    together = Collator(tokenizer)(_rows(packed))
    alone = Collator(tokenizer)(_rows({"input_ids": ids, "labels": labels}))
    expected = pytest.approx(_sum_of_losses(model, alone), rel=1e-5)
    assert _sum_of_losses(model, together) == expected


def test_what_one_segment_says_changes_nothing_in_another(model, tokenizer):
    def logits(first: list[int]) -> torch.Tensor:
        rows = {"input_ids": [first, [9, 8, 7, 6]], "labels": [first, [9, 8, 7, 6]]}
        packed = pack(rows, 40)
        batch = Collator(tokenizer)([{name: column[0] for name, column in packed.items()}])
        return model(**batch).logits[0, len(first) : len(first) + 4]

    one, other = logits([3] * 20), logits(list(range(100, 120)))
    assert torch.equal(one, other)


def _rows(columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _sum_of_losses(model, batch) -> float:
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    wanted = batch["labels"][:, 1:].flatten()
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), wanted, reduction="sum"
    ).item()
