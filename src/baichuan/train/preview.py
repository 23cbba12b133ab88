"""Rows as the model will see them: each token, coloured by whether it is learned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from rich.text import Text

from baichuan.language import translate
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.train.collate import IGNORED

#: Neighbours differ, so that one sees where a token ends.
_READ = ("bright_black", "white")
_LEARNED = ("black on green", "black on bright_green")
_END = "bold white on red"
#: How sentencepiece names a byte of a character that has no piece.
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def legend() -> Text:
    """Say what the colours mean."""
    return Text.assemble(
        (translate("read"), _READ[0]),
        " ",
        (translate("read and learned"), _LEARNED[0]),
        " ",
        (translate("learned: here it ends"), _END),
    )


def rendered(row: Mapping[str, Sequence[int]], tokenizer: BaichuanTokenizer) -> Iterator[Text]:
    """Show one row of `data.load`: its tokens, segment by segment, and how many are learned."""
    for name in row:
        if not name.endswith("input_ids"):
            continue
        prefix = name.removesuffix("input_ids")
        ids, labels = row[name], row[f"{prefix}labels"]
        segments = row.get(f"{prefix}attention_mask", [1] * len(ids))
        learned = sum(label != IGNORED for label in labels)
        yield Text(
            translate(
                "{what}{count} tokens, {learned} learned",
                what=f"{prefix.rstrip('_')}: " if prefix else "",
                count=len(ids),
                learned=learned,
            ),
            style="bold",
        )
        for segment in sorted(set(segments)):
            here = [place for place, number in enumerate(segments) if number == segment]
            yield _tokens([ids[i] for i in here], [labels[i] for i in here], tokenizer)


def _tokens(ids: Sequence[int], labels: Sequence[int], tokenizer: BaichuanTokenizer) -> Text:
    """Colour the tokens of one conversation; what is learned but not read stands before them."""
    shown = Text()
    end = tokenizer.eos_token_id
    styled: list[tuple[str, str]] = []
    for token, label in zip(ids, labels, strict=True):
        if label not in (token, IGNORED):
            styled.append((_piece(label, tokenizer), _END))
        styles = _LEARNED if label == token else _READ
        style = _END if token == label == end else styles[len(styled) % 2]
        styled.append((_piece(token, tokenizer), style))
    for text, style in _characters(styled):
        shown.append(text, style)
    return shown


def _piece(token: int, tokenizer: BaichuanTokenizer) -> str:
    piece = str(tokenizer.convert_ids_to_tokens(token))
    return piece.replace("▁", " ")


def _characters(styled: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Show bytes that make up characters as these, in the first one's style."""
    for is_byte, group in groupby(styled, key=lambda part: bool(_BYTE.fullmatch(part[0]))):
        parts = list(group)
        if is_byte:
            content = bytes(int(text[3:5], 16) for text, _ in parts)
            parts = [(content.decode(errors="replace"), parts[0][1])]
        for text, style in parts:
            yield text.replace("\n", "⏎\n"), style
