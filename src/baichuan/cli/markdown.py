"""Markdown for the terminal: what a model writes, shown without loss and without danger.

rich draws; this changes what rich would lose or spoil in an answer: HTML and reference definitions
are shown as they were written, single line breaks (poems) are kept, links show where they lead,
Chinese wraps at any character, and control characters cannot reach the terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, ListItem, Markdown, MarkdownElement, Paragraph
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
_PARSER.disable("reference")

#: C0 as Unicode's pictures of them (ESC becomes ␛); DEL and C1, which some terminals obey, too.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_VISIBLE |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
#: What turns round the order of characters, and halves of characters, which nothing prints.
_HIDDEN = (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000))
_VISIBLE |= dict.fromkeys(_HIDDEN, 0xFFFD)

_OPENING = "（《「『【〔〈“‘"
_CLOSING = "、。，．：；？！）》」』】〕〉”’…—,.:;?!)"
#: Han, kana and full-width forms: scripts that are written without spaces.
_WIDE = "\u2e80-\ua4cf\uf900-\ufaff\ufe30-\ufe4f\uff00-\uff60\U00020000-\U0003ffff"
#: What stays on one line: a word, or one wide character, with the punctuation that clings to it.
_UNIT = re.compile(rf"[{_OPENING}]*(?:[{_WIDE}]|[^\s{_WIDE}]+)[{_CLOSING}]*\s*|\s+")


def visible(text: str) -> str:
    """Replace control characters, of which a terminal would obey some, by pictures of them."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def parse(source: str) -> list[Token]:
    """Parse an answer; each top-level token's `map` says which source lines it came from."""
    tokens = _PARSER.parse(source)
    for token in tokens:
        token.content = visible(token.content)
        if token.children:
            token.children = _shown_children(token.children)
    return tokens


def _shown_children(children: Sequence[Token]) -> list[Token]:
    """Keep line breaks as breaks; a bare address is its own text and needs no second showing.

    Markdown itself makes control characters: of entities, and of `%1b` in a bare address.
    """
    kept = [c for c in children if not (c.type.startswith("link_") and c.markup == "autolink")]
    for child in kept:
        child.content = visible(child.content)
        if child.type == "softbreak":
            child.type = "hardbreak"
    return kept


def wrap_offsets(text: str, width: int) -> list[int]:
    """Say where to break one line of text so that each part fits `width` cells.

    Breaks fall between words and between Chinese characters, but never before closing punctuation
    and only inside a word that is wider than a whole line.
    """
    offsets, used = [], 0
    for unit in _UNIT.finditer(text):
        cells = cell_len(unit.group().rstrip())
        if used and used + cells > width:
            offsets.append(unit.start())
            used = 0
        if cells > width:
            *full, last = chop_cells(unit.group().rstrip(), width)
            start = unit.start()
            for piece in full:
                start += len(piece)
                offsets.append(start)
            used = cell_len(last) + len(unit.group()) - len(unit.group().rstrip())
        else:
            used += cell_len(unit.group())
    return offsets


def wrapped(text: Text, width: int) -> Iterator[Text]:
    """Give the lines of a text, none wider than `width` cells."""
    for line in text.split(allow_blank=True):
        line.expand_tabs(4)
        for part in line.divide(wrap_offsets(line.plain, width)):
            part.rstrip()
            part.justify = None  # "left" would fill the line with spaces
            yield part


class _Paragraph(Paragraph):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from wrapped(self.text, options.max_width)


class _Heading(Heading):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from wrapped(self.text, options.max_width)


class _CodeBlock(CodeBlock):
    """Code without margins, so that it can be copied from the screen."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme=self.theme, word_wrap=True, tab_size=4)


class _ListItem(ListItem):
    """A numbered item whose indent does not depend on how many follow: they may yet arrive."""

    def render_number(
        self, console: Console, options: ConsoleOptions, number: int, last_number: int
    ) -> RenderResult:
        numeral = f"{number}. ".rjust(4)
        inner = options.update(width=max(options.max_width - len(numeral), 1))
        style = console.get_style("markdown.item.number", default="none")
        for line in console.render_lines(self.elements, inner, style=self.style):
            yield Segment(numeral, style)
            yield from line
            yield Segment.line()
            numeral = " " * len(numeral)


class AnswerMarkdown(Markdown):
    """A model's answer as a rich renderable."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "paragraph_open": _Paragraph,
        "heading_open": _Heading,
        "fence": _CodeBlock,
        "code_block": _CodeBlock,
        "list_item_open": _ListItem,
    }

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        self.markup = source
        self.parsed = parse(source)
