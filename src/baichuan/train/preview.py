"""Rows as the model will see them: each token, coloured or marked by whether it is learned."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from rich.text import Text

from baichuan.language import translate
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.train.collate import IGNORED

#: Neighbours differ, so that one sees where a token ends.
_READ = ("bright_black", "white")
_LEARNED = ("black on green", "black on bright_green")
_END = "bold white on red"
#: What stands around these where there are no colours: in a pipe, a file, under NO_COLOR.
_MARKS = {**dict.fromkeys(_READ, ("", "")), **dict.fromkeys(_LEARNED, ("⟦", "⟧")), _END: ("⟨", "⟩")}
#: How sentencepiece names a byte of a character that has no piece.
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def legend(*, colours: bool) -> Text:
    """Say what the colours, or the marks, mean."""
    parts = (
        (translate("read"), _READ[0]),
        (translate("read and learned"), _LEARNED[0]),
        (translate("learned: here it ends"), _END),
    )
    return Text(" ").join(_styled([part], colours=colours) for part in parts)


def rendered(
    row: Mapping[str, Sequence[int]], tokenizer: BaichuanTokenizer, *, colours: bool
) -> Iterator[Text]:
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
            parts = _tokens([ids[i] for i in here], [labels[i] for i in here], tokenizer)
            yield _styled(parts, colours=colours)


def _tokens(
    ids: Sequence[int], labels: Sequence[int], tokenizer: BaichuanTokenizer
) -> Iterator[tuple[str, str]]:
    """Yield the tokens of one conversation with their styles.

    What is learned but not read stands before them.
    """
    end = tokenizer.eos_token_id
    styled: list[tuple[str, str]] = []
    for token, label in zip(ids, labels, strict=True):
        if label not in (token, IGNORED):
            styled.append((_piece(label, tokenizer), _END))
        styles = _LEARNED if label == token else _READ
        style = _END if token == label == end else styles[len(styled) % 2]
        styled.append((_piece(token, tokenizer), style))
    return _characters(styled)


def _styled(parts: Iterable[tuple[str, str]], *, colours: bool) -> Text:
    """Colour each text, or put marks around those that belong together."""
    shown = Text()
    if colours:
        for text, style in parts:
            shown.append(text, style)
        return shown
    for (before, behind), group in groupby(parts, key=lambda part: _MARKS[part[1]]):
        shown.append(before + "".join(text for text, _ in group) + behind)
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
