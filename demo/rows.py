"""Conversations to rows of ids: the chat format with its training targets, packed side by side.

    input    system | 195 question | 196 answer     | 195 question | 196 answer
    target                           answer </s>                     answer </s>

The target behind an answer's last id is </s>, but </s> is never an input: in a conversation that
goes on, the published chat format has none between the turns.
"""

from __future__ import annotations

from collections.abc import Sequence

import sentencepiece
import torch
from conversations import Conversation
from torch import Tensor
from vocabulary import ASSISTANT, EOS, USER

LENGTH = 256
IGNORED = -100

#: Ids and targets of equal length.
Pair = tuple[list[int], list[int]]


def encode(conversation: Conversation, tokenizer: sentencepiece.SentencePieceProcessor) -> Pair:
    """Give ids and targets of one conversation; only what the assistant says is a target."""
    ids: list[int] = tokenizer.encode(conversation.system) if conversation.system else []
    targets = [IGNORED] * len(ids)
    for question, answer in conversation.turns:
        asked, said = tokenizer.encode(question), tokenizer.encode(answer)
        ids += [USER, *asked, ASSISTANT, *said]
        targets += [IGNORED] * (1 + len(asked)) + said + [EOS]
    return ids, targets


def packed(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Pack into rows, first row with room: ids, segment numbers and targets, each [rows, LENGTH].

    A conversation that is longer than a row loses its oldest part.
    """
    rows: list[list[Pair]] = []
    room: list[int] = []
    for pair in pairs:
        need = min(len(pair[0]), LENGTH)
        at = next((row for row, left in enumerate(room) if left >= need), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(LENGTH)
        rows[at].append((pair[0][-LENGTH:], pair[1][-LENGTH:]))
        room[at] -= need
    shape = (len(rows), LENGTH)
    ids, segments = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    targets = torch.full(shape, IGNORED)
    for row, held in enumerate(rows):
        start = 0
        for number, (row_ids, row_targets) in enumerate(held, start=1):
            end = start + len(row_ids)
            ids[row, start:end] = torch.tensor(row_ids)
            segments[row, start:end] = number
            targets[row, start:end] = torch.tensor(row_targets)
            start = end
    return ids, segments, targets
