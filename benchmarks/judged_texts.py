"""The texts that quality.py judges by, as rows of token ids with their targets."""

from __future__ import annotations

import pydoc_data.topics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor

from baichuan.checkpoint.load import DEMO

LENGTH = 512
IGNORED = -100
_ROOT = Path(__file__).parents[1]
_TRAINED_CONVERSATIONS = 200


@dataclass(frozen=True)
class Row:
    """Token ids in, and what each position should say next; -100 where nobody asks.

    Attributes:
        segments: numbers of the texts that stand side by side and do not see each other.
    """

    ids: Tensor
    targets: Tensor
    segments: Tensor | None = None


def text_rows(path: Path, texts: Sequence[Path], count: int) -> tuple[list[Row], dict[str, int]]:
    """Cut texts into rows of 512 ids: `count` in all, equally many from each text.

    The topics of Python's help come first: a long English text that every machine has.

    Args:
        path: of the GGUF whose vocabulary is used.

    Returns:
        The rows, and the number of tokens of each text by its name.
    """
    import gguf_models  # only who measures needs llama.cpp

    named = {"Python's help topics": "\n\n".join(pydoc_data.topics.topics.values())}
    named |= {text.name: text.read_text("utf-8") for text in texts}
    each = count // len(named)
    rows, tokens = [], {}
    for name, text in named.items():
        ids = torch.tensor(gguf_models.tokenize(path, text[: each * LENGTH * 8]))
        whole = ids[: min(each, len(ids) // LENGTH) * LENGTH].view(-1, LENGTH)
        ends = torch.full((len(whole), 1), IGNORED)
        targets = torch.cat([whole[:, 1:], ends], dim=1)
        rows += [Row(*pair) for pair in zip(whole, targets, strict=True)]
        tokens[name] = whole.numel()
    return rows, tokens


def demo_rows() -> dict[str, list[Row]]:
    """Give the demo model's held-out questions with their answers, and conversations it learnt."""
    sys.path.append(str(_ROOT / "demo"))  # behind this directory, which has a report.py too
    from conversations import Conversation, epoch
    from rows import encode, packed
    from texts import read_corpus

    tokenizer = SentencePieceProcessor(model_file=str(DEMO / "tokenizer.model"))
    items, held = read_corpus()
    asked = [Conversation("", ((h.question, h.answer),)) for h in held]
    learnt = epoch(items, held, seed="quality")[:_TRAINED_CONVERSATIONS]
    named = {"held-out questions": asked, "trained conversations": learnt}
    rows = {}
    for name, conversations in named.items():
        ids, segments, targets = packed([encode(one, tokenizer) for one in conversations])
        rows[name] = [Row(*row) for row in zip(ids, targets, segments, strict=True)]
    return rows
