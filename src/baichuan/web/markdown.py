"""From what a model or a person wrote to Markdown that Streamlit shows as it was meant.

Any text is shown as text, formulas and code; only links to http, https and mailto stay links. What
is escaped here stays text however the browser reads the lines around it; what is left as it is,
code and formulas, ends where it was found to end. Knows no Streamlit.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

#: Characters and lines of a message that are shown, at most: browsers freeze over more.
_MOST_CHARACTERS = 20_000
_MOST_LINES = 800
#: Lists and quotes inside each other; a browser's stack overflows at some thousands.
_DEEPEST = 40

#: Finds the blocks alone. HTML makes none, for it is shown as text.
_BLOCKS = MarkdownIt("commonmark", {"html": False, "maxNesting": _DEEPEST}).enable("table")
_BLOCKS.disable("reference").core.ruler.enableOnly(["normalize", "block"])

_TICKS = re.compile("`+")
_BLANK = re.compile(r"[ \t>]*")
#: The row that makes a table of the lines around it.
_DELIMITER_ROW = re.compile(r"(?=[^-]*-)(?=[^|:]*[|:])[ \t>|:-]*")
_BETWEEN_CELLS = re.compile(r"((?<!\\)\|)")
#: Where a line may define what a reference leads to.
_DEFINITION = re.compile(
    r"^([ \t>]*(?:(?:[-+*]|\d+[.)])[ \t]+)*)\[((?:[^\[\]\\]|\\.)*\]:)", re.MULTILINE | re.DOTALL
)
#: Of an address: what Markdown cannot read as anything else.
_CHARACTER = r"[^\s()<>\[\]{}\\`$\"'|&]"
_ADDRESS = rf"(?:https?://|mailto:)(?:{_CHARACTER}|\({_CHARACTER}*\))*"
_BARE = r"(?:https?:(?=//)|www\.)"
_TOKEN = re.compile(
    rf"""
      (?P<ticks> `+)
    | \\(?P<formula> [\[(])
    | (?P<escaped> \\[!-/:-@\[-`{{-~\n])
    | (?P<dollars> \$\$?)
    # A browser takes a bare address to the next space, backslashes and all; that of a link as well,
    # where nothing opens the link.
    | (?P<link> \]\({_ADDRESS}\)(?=[^\s<`]{{0,200}}+(?:\s|\Z))
              | <{_ADDRESS}>
              | {_BARE}[^\s<`\[\]{{$\\]*+(?=\s|\Z))
    | (?P<text> {_BARE} | \]\( | \]: | \[\^ | !\[ | < | :(?=[a-z:]))
    | (?P<line_break> \n)
    """,
    re.VERBOSE | re.IGNORECASE,
)
#: What ends a formula, or shows that it is none, by what begins it.
_ENDS = {
    mark: re.compile(rf"(?P<closing>{closing})|[$`]")
    for mark, closing in {"[": r"\\\]", "(": r"\\\)", "$$": r"\$\$", "$": r"\$"}.items()
}


class Shown(NamedTuple):
    """The parts of a message that a browser can show, and what is between them.

    Attributes:
        parts: the text, or its beginning and its end.
        left_out: characters that are not shown.
    """

    parts: tuple[str, ...]
    left_out: int


def shortened(text: str) -> Shown:
    """Return the beginning and the end of a text that is too long to show."""
    if len(text) <= _MOST_CHARACTERS and text.count("\n") < _MOST_LINES:
        return Shown((text,), 0)
    half = min(_MOST_CHARACTERS, len(text)) // 2
    first, last = text[:half], text[-half:]
    first = "\n".join(first.split("\n", _MOST_LINES // 2)[: _MOST_LINES // 2])
    last = "\n".join(last.rsplit("\n", _MOST_LINES // 2)[-_MOST_LINES // 2 :])
    return Shown((first, last), len(text) - len(first) - len(last))


def cost(text: str) -> int:
    """Return about how much work a message is for a browser, in characters of plain text."""
    lines = text.count("\n", 0, _MOST_CHARACTERS)
    return 1_000 + min(len(text), _MOST_CHARACTERS) + 25 * min(lines, _MOST_LINES)


def for_streamlit(text: str) -> str:
    r"""Return Markdown for `st.markdown`; code stays as it is.

    - `\(...\)` and `\[...\]`, which models write, become Streamlit's dollars; a dollar that begins
      no formula stays a dollar.
    - A link leads to http, https or mailto; any other is shown as the text it is written with. So
      is an image, for it would be fetched from where it says, and HTML.
    - A line break is one, as in the message. Streamlit's own markup (`:red[...]`) is text.
    """
    # Streamlit takes a common indent away, and spaces around: what looks like code may be none.
    text = textwrap.dedent(text.replace("\r\n", "\n").replace("\r", "\n")).strip()
    tokens = _BLOCKS.parse(text)
    if any(token.level >= _DEEPEST - 1 for token in tokens):
        return "  \n".join(map(plain, text.split("\n")))
    return "".join(_blocks(text.split("\n"), tokens)).strip()


def plain(text: str) -> str:
    """Return Markdown that shows a text as it is: for labels and remarks."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def _blocks(lines: Sequence[str], tokens: Sequence[Token]) -> Iterator[str]:
    """Yield Markdown for the lines: code as it is, text by its paragraphs, tables by their cells.

    In a table, a `|` ends a cell even in code; what is a table is for the browser to say.
    """
    tables = _near_delimiter_rows(lines)
    code = {
        number
        for token in tokens
        if token.map and token.type in ("fence", "code_block")
        for number in range(*token.map)
        if token.type == "fence" or number not in tables
    }
    paragraphs = {t.map[0]: (t.map[1], t.level > 1) for t in tokens if t.map and t.type == "inline"}
    number = 0
    while number < len(lines):
        end, nested = paragraphs.get(number, (number + 1, True))
        if number in code:
            end = number + 1
            yield f"{lines[number]}\n"
        elif number in tables:
            end = number + 1
            cells = _BETWEEN_CELLS.split(lines[number])
            for cell in cells:
                yield from [" |"] if cell == "|" else _Paragraph(cell, nested=True).shown()
            yield "  \n"
        else:
            yield from _Paragraph("\n".join(lines[number:end]), nested).shown()
            yield "  \n"
        number = end


def _near_delimiter_rows(lines: Sequence[str]) -> set[int]:
    """Return the numbers of the lines that may be rows of a table."""
    found: set[int] = set()
    for blank, group in groupby(enumerate(lines), lambda line: _BLANK.fullmatch(line[1])):
        together = list(group)
        if not blank and any(_DELIMITER_ROW.fullmatch(line) for _, line in together):
            found.update(number for number, _ in together)
    return found


class _Paragraph:
    """Text that no block divides; in a nested one, a formula has no line of its own."""

    def __init__(self, text: str, nested: bool) -> None:
        self._text = _DEFINITION.sub(r"\1&#91;\2", text)
        self._nested = nested
        # By the mark of a formula: where the next end of one is, as last looked up.
        self._ends: dict[str, re.Match[str] | None] = {}

    def shown(self) -> Iterator[str]:
        """Yield Markdown for it."""
        at, before = 0, ""
        while found := _TOKEN.search(self._text, at):
            yield (between := self._text[at : found.start()])
            at, kind = found.end(), found.lastgroup
            piece = found[0]
            if kind == "ticks":
                piece, at = self._code(found)
            elif kind in ("formula", "dollars"):
                piece, at = self._formula(found)
                if piece[0] == "$" and (before + between)[-1:] == "$":
                    yield " "  # two dollars together are another mark
            elif kind == "text":
                piece = f"\\{piece}" if piece[0] == "[" else f"{piece[:-1]}\\{piece[-1]}"
            elif kind == "line_break":
                piece = "  \n"
            yield (before := piece)
        yield self._text[at:]

    def _code(self, opening: re.Match[str]) -> tuple[str, int]:
        """Return code on one line, in which no block can begin, and where it ends."""
        for closing in _TICKS.finditer(self._text, opening.end()):
            if closing[0] == opening[0]:
                return _one_line(self._text[opening.start() : closing.end()]), closing.end()
        return opening[0].replace("`", "\\`"), opening.end()

    def _formula(self, opening: re.Match[str]) -> tuple[str, int]:
        """Return a formula and where it ends; a dollar that begins none is escaped."""
        mark = opening["formula"] or opening["dollars"]
        end = self._end(mark, opening.end())
        body = self._text[opening.end() : end.start()] if end and end["closing"] else ""
        if mark == "$" and end and not _in_dollars(body, self._text[end.end() : end.end() + 1]):
            body = ""
        body = body.strip()
        if end is None or not body or body.endswith("\\"):
            return ("\\$", opening.start() + 1) if mark[0] == "$" else (opening[0], opening.end())
        if mark in ("[", "$$") and not self._nested:
            return f"\n$$\n{body}\n$$\n", end.end()
        style = r"\displaystyle " if mark in ("[", "$$") else ""
        return f"${style}{_one_line(body)}$", end.end()

    def _end(self, mark: str, at: int) -> re.Match[str] | None:
        """Return the first end behind a place; looked for once, however many formulas begin."""
        found = self._ends.get(mark)
        if mark not in self._ends or (found is not None and found.start() < at):
            found = self._ends[mark] = _ENDS[mark].search(self._text, at)
        return found


def _in_dollars(body: str, after: str) -> bool:
    """Return whether single dollars enclose a formula: by pandoc's rule, "$5 and $10" is none."""
    return body == body.strip() and "\n" not in body and not (after == "$" or after.isdigit())


def _one_line(text: str) -> str:
    return re.sub(r"[ \t]*\n[ \t>]*", " ", text)
