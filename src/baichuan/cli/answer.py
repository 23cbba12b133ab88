"""Printing an answer while it arrives.

What is finished is printed for good and scrolls with the terminal; only the unfinished tail is
redrawn in place, and it never grows taller than the screen. So the answer is on the screen, and in
the scroll-back, exactly once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from itertools import accumulate, pairwise

from markdown_it.token import Token
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.control import Control
from rich.segment import ControlType, Segment

from baichuan.cli.markdown import AnswerMarkdown, parse, visible
from baichuan.engine.steps import Step
from baichuan.language import translate

#: Seconds between two drawings, at least.
_INTERVAL = 1 / 12
#: Drawing may take this share of the time, so that it hardly slows the model.
_SHARE = 0.1
#: Rows below the tail: the cursor's own and one to breathe.
_SPARE_ROWS = 2
#: Characters that may still turn out to be markup when its other half arrives.
_HALF_MARKUP = frozenset("*_`~[]<>!|\\&")
#: Characters after which a line's kind is certain: a list's number has nine digits at most.
_LONGEST_MARKER = 12
#: Most terminals wrap old lines anew when they become narrower; xterm, screen and consoles do not.
_REFLOWS = not {"XTERM_VERSION", "STY"} & os.environ.keys() and os.environ.get("TERM") != "linux"

Line = list[Segment]


def print_answer(console: Console, steps: Iterable[Step], stream: bool) -> Step | None:
    """Show an answer, as it arrives or (`stream` false) when it is whole; give its last step.

    On a terminal it is drawn as markdown; elsewhere it is plain text as the model wrote it.
    """
    if not console.is_terminal or console.is_dumb_terminal:
        return _print_plain(console, steps)
    printer = AnswerPrinter(console)
    text, last = "", None
    waiting = console.status(translate("thinking"))
    waiting.start()
    try:
        for step in steps:
            text, last = text + step.text, step
            if stream and text.strip():
                waiting.stop()
                printer.show(text)
    finally:
        waiting.stop()
        printer.finish(text)
    return last


def _print_plain(console: Console, steps: Iterable[Step]) -> Step | None:
    last = None
    clean = visible if console.is_terminal else str
    for step in steps:
        last = step
        sys.stdout.write(clean(step.text))
        sys.stdout.flush()
    if last is not None:
        sys.stdout.write("\n")
        sys.stdout.flush()
    return last


def finished_lines(source: str) -> int:
    """Count the leading lines of `source` that belong to blocks which no further text can change.

    A top-level block (paragraph, list, fenced code, ...) is finished when the next one has begun.
    """
    ended = source.rfind("\n") + 1
    unfinished = source[ended:].strip()
    if len(unfinished) < _LONGEST_MARKER or unfinished.startswith(("`", "~")):
        source = source[:ended]  # the line may yet become anything: a next item, a fence, ...
    return max(_block_starts(source), default=0)


def _block_starts(source: str) -> list[int]:
    """Give the source lines at which top-level blocks start."""
    return [token.map[0] for token in parse(source) if token.level == 0 and token.map]


class _Lines:
    """Rendered lines as a renderable."""

    def __init__(self, lines: list[Line]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in self._lines:
            yield from line
            yield Segment.line()


class AnswerPrinter:
    """Draws one growing markdown text on a terminal, whose size may change meanwhile."""

    def __init__(self, console: Console) -> None:
        self._console = console
        # The width of a block's beginning holds for the block: printed lines cannot be rewrapped.
        self._options = console.options.update(height=None)
        self._tail: list[Line] = []  # lines on the screen that the next drawing replaces
        self._begun = False
        self._taken = 0  # characters of the text whose blocks are finished and printed
        self._printed = 0  # lines of the unfinished rest that are printed already
        self._next_drawing = 0.0

    def show(self, text: str) -> None:
        """Draw the text so far, unless that was done a moment ago."""
        began = time.monotonic()
        if began < self._next_drawing:
            return
        if not self._begun:
            self._console.show_cursor(False)
            self._begun = True
        self._draw(visible(text))
        ended = time.monotonic()
        self._next_drawing = ended + max(_INTERVAL, (ended - began) / _SHARE)

    def finish(self, text: str) -> None:
        """Print what is not printed yet and give the screen back."""
        self._print(self._render(visible(text)[self._taken :])[self._printed :], [])
        if self._begun:
            self._console.show_cursor(True)

    def _draw(self, text: str) -> None:
        printable: list[Line] = []
        rest = text[self._taken :]
        count = finished_lines(rest)
        if count:
            block = _first_lines(rest, count)
            printable += self._render(block)[self._printed :]
            self._taken, self._printed = self._taken + len(block), 0
            self._options = self._console.options.update(height=None)
            rest = text[self._taken :]
        lines = self._render(rest)
        room = max(self._console.height - _SPARE_ROWS, 1)
        settled = min(self._settled_lines(rest, lines), len(lines) - room)
        if settled > self._printed:
            printable += lines[self._printed : settled]
            self._printed = settled
        self._print(printable, self._rows(lines[self._printed :])[-room:])

    def _print(self, lines: list[Line], tail: list[Line]) -> None:
        """Print finished lines where the tail was, and a new tail below them, in one write."""
        above = len(self._rows(self._tail)) if _REFLOWS else len(self._tail)
        with self._console:
            if above:
                up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
                self._console.control(Control(ControlType.CARRIAGE_RETURN, *up * above))
            if lines or tail:
                # Uncropped: the terminal itself wraps what has become too wide for it.
                self._console.print(_Lines([*lines, *tail]), end="", crop=False)
        self._tail = tail

    def _rows(self, lines: list[Line]) -> list[Line]:
        """Split lines as the terminal wraps them."""
        width = self._console.width
        return [row for line in lines for row in _chopped(line, width)]

    def _render(self, source: str) -> list[Line]:
        """Render blocks to lines, with one blank line between them.

        One more at the top parts them from the blocks that are printed already.
        """
        written = source.split("\n")
        rendered: list[Line] = []
        for start, end in pairwise([*_block_starts(source), len(written)]):
            lines = self._render_block("\n".join(written[start:end]))
            rendered += [[], *lines] if lines and (rendered or self._taken) else lines
        return rendered

    def _render_block(self, source: str) -> list[Line]:
        """Render one block to lines without blank ones around them."""
        padded = self._console.render_lines(AnswerMarkdown(source), self._options, pad=False)
        lines = [_without_padding(line) for line in padded]
        while lines and _blank(lines[-1]):
            lines.pop()
        while lines and _blank(lines[0]):
            lines.pop(0)
        return lines

    def _settled_lines(self, source: str, lines: list[Line]) -> int:
        """Count the leading lines of an unfinished block that further text cannot change."""
        if len(_block_starts(source)) > 1:
            return 0  # the last line is not certain yet: it may belong to the block before it
        tokens = parse(source)
        kind = tokens[0].type if tokens else ""
        if kind in ("fence", "code_block"):
            return len(lines) - 2
        if kind in ("bullet_list_open", "ordered_list_open"):
            return len(self._render(_first_lines(source, _last_item(tokens))))
        if kind in ("paragraph_open", "blockquote_open"):
            texts = ["".join(segment.text for segment in line) for line in lines[:-2]]
            doubtful = (n for n, text in enumerate(texts) if _HALF_MARKUP.intersection(text))
            return next(doubtful, len(texts))
        return 0  # a table's columns may still change their widths


def _first_lines(source: str, count: int) -> str:
    return "".join(f"{line}\n" for line in source.split("\n")[:count])


def _last_item(tokens: list[Token]) -> int:
    """Give the source line at which the last item of the list that `tokens` begin with starts."""
    items = [t.map[0] for t in tokens if t.type == "list_item_open" and t.level == 1 and t.map]
    return items[-1]


def _without_padding(line: Line) -> Line:
    """Drop spaces at the end that show nothing, so that copied text has none."""
    while line and not line[-1].text.strip() and not (line[-1].style and line[-1].style.bgcolor):
        line = line[:-1]
    return line


def _chopped(line: Line, width: int) -> list[Line]:
    """Split a line into rows of at most `width` cells."""
    if Segment.get_line_length(line) <= width:
        return [line]
    pieces = chop_cells("".join(segment.text for segment in line), width)
    return list(Segment.divide(line, list(accumulate(map(cell_len, pieces)))))


def _blank(line: Line) -> bool:
    return not any(segment.text.strip() for segment in line)
