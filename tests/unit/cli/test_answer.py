"""Answers on a terminal: an emulated one, so that what is tested is what a person sees."""

import io

import pyte
import pytest
from rich.cells import chop_cells
from rich.console import Console

from baichuan.cli import answer
from baichuan.cli.answer import finished_lines, print_answer
from baichuan.cli.markdown import AnswerMarkdown
from baichuan.engine.steps import Step, Usage

WIDTH, HEIGHT = 40, 8

CODE = "```python\n" + "\n".join(f"line_{n} = '{n}号'" for n in range(18)) + "\n```"
LIST = "\n".join(f"{n}. 第{n}项：" + "很长的一项，" * (n % 7) for n in range(1, 14))
NESTED = "\n".join(f"- item {n}\n  - inner *{n}*\n\n    more of {n}" for n in range(6))
PARAGRAPH = "这是一个很长的段落，没有换行，也没有任何标记；" * 12
MARKED = "a **bold** `code_name` and [half * of "
TABLE = "| a | b |\n|---|---|\n" + "\n".join(f"| {n} | {'x' * n} |" for n in range(14))
QUOTE = "\n".join(f"> quoted {n}" for n in range(14))

ANSWERS = {
    "short": "Hello, **world**.",
    "code": f"Before.\n\n{CODE}\n\nAfter.",
    "unclosed code": f"Before.\n\n{CODE[:-4]}",
    "code with rules in it": "```\n" + "# no heading\n\n---\n\n- no list\n\n" * 4 + "```\nend",
    "list": f"List:\n\n{LIST}\n\nend",
    "nested list": f"{NESTED}\n\nend",
    "paragraph": f"# Title\n\n{PARAGRAPH}\n\nend",
    "markup": f"{MARKED * 12}\n\n{MARKED * 3}",
    "table": f"{TABLE}\n\nend",
    "quote": f"{QUOTE}\n\nend",
    "everything": "\n\n".join([PARAGRAPH, LIST, CODE, "---", TABLE, QUOTE, "## end"]),
    "list becomes loose": "- a\n- b\n" * 5 + "\n- c\n\n- d",
    "numbers": "\n\n".join(str(n) for n in range(20)),
}


def steps(text: str, size: int):
    usage = Usage(1, 0, 1, 1.0, 1.0)
    for start in range(0, len(text), size):
        yield Step(0, 5, text[start : start + size], None, usage)


@pytest.fixture
def every_step_drawn(monkeypatch):
    monkeypatch.setattr(answer, "_INTERVAL", 0.0)
    monkeypatch.setattr(answer, "_SHARE", float("inf"))


def console_on(output: io.StringIO) -> Console:
    return Console(
        file=output,
        force_terminal=True,
        width=WIDTH,
        height=HEIGHT,
        highlight=False,
        legacy_windows=False,
    )


def emulated(output: str) -> list[str]:
    """Give all lines of a terminal, scrolled-back ones first."""
    screen = pyte.HistoryScreen(WIDTH, HEIGHT, history=10_000, ratio=0.5)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(output)
    old = ["".join(row[x].data for x in range(WIDTH)) for row in screen.history.top]
    lines = [line.rstrip() for line in [*old, *screen.display]]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def whole(text: str) -> list[str]:
    """Give what rich draws of the whole answer at once, but with one blank line between blocks."""
    output = io.StringIO()
    console_on(output).print(AnswerMarkdown(text))
    lines = emulated(output.getvalue())
    return [line for before, line in zip(["", *lines], lines, strict=False) if before or line]


@pytest.mark.parametrize("size", [3, 17])
@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS.keys())
def test_the_final_screen_holds_the_answer_exactly_once(text, size, every_step_drawn):
    output = io.StringIO()
    print_answer(console_on(output), steps(text, size), stream=True)
    assert emulated(output.getvalue()) == whole(text)


@pytest.mark.parametrize("text", ANSWERS.values(), ids=ANSWERS.keys())
def test_not_streamed_it_is_the_same(text):
    output = io.StringIO()
    print_answer(console_on(output), steps(text, 50), stream=False)
    assert emulated(output.getvalue()) == whole(text)


@pytest.mark.parametrize("name", ["code", "list", "paragraph", "numbers"])
def test_long_answers_scroll_while_they_come(name, every_step_drawn):
    """The newest line is on the screen, and the first ones are in the scroll-back already."""
    text = ANSWERS[name]
    half = text[: len(text) * 2 // 3]
    output = io.StringIO()
    seen: list[list[str]] = []

    def watched():
        yield from steps(half, 5)
        seen.append(emulated(output.getvalue()))

    print_answer(console_on(output), watched(), stream=True)
    lines = whole(half)
    assert len(lines) > HEIGHT
    assert seen[0][:5] == lines[:5]
    assert len(seen[0]) >= len(lines) - 2


def row(screen: pyte.Screen, y: int, width: int) -> str:
    """Return a row's text up to its last cell that shows anything, be it a background."""
    cells = [screen.buffer[y][x] for x in range(width)]
    while cells and cells[-1].data == " " and cells[-1].bg == "default":
        cells.pop()
    return "".join(cell.data for cell in cells)


def resized(output: str, change: list[tuple[int, int]]) -> str:
    """Return all characters of a terminal that wraps old lines anew at each change of its width.

    Args:
        output: everything that was printed.
        change: character of the output behind which the terminal has this width.
    """
    lines, start, width = [""], 0, WIDTH
    for end, next_width in [*change, (len(output), 0)]:
        screen = pyte.HistoryScreen(width, 80, history=10_000, ratio=0.5)
        screen.set_mode(pyte.modes.LNM)
        rows = [piece for line in lines for piece in chop_cells(line, width) or [""]]
        pyte.Stream(screen).feed("\n".join(rows) + output[start:end])
        lines = [row(screen, y, width) for y in range(screen.cursor.y + 1)]
        start, width = end, next_width
    return "".join("".join(lines).split())


@pytest.mark.parametrize("widths", [(23,), (23, 61), (61, 17), (31, 23, 17)])
@pytest.mark.parametrize("name", ["paragraph", "code", "list", "quote", "short"])
def test_a_resized_window_loses_and_repeats_nothing(name, widths, every_step_drawn, monkeypatch):
    monkeypatch.setattr(answer, "_REFLOWS", True)
    text = ANSWERS[name]
    output = io.StringIO()
    console = console_on(output)
    change: list[tuple[int, int]] = []

    def watched():
        size = len(text) // (len(widths) + 1) + 1
        for start, width in zip(range(0, len(text), size), (WIDTH, *widths), strict=False):
            if start:
                change.append((len(output.getvalue()), width))
                console.size = (width, HEIGHT)
            yield from steps(text[start : start + size], 3)

    print_answer(console, watched(), stream=True)
    shown = resized(output.getvalue(), change)
    assert shown.replace("▌", "") == "".join("".join(whole(text)).split()).replace("▌", "")


def test_a_terminal_that_wraps_nothing_anew_keeps_what_was_printed(every_step_drawn, monkeypatch):
    """xterm cuts old lines off at its border; above the tail nothing may be erased."""
    monkeypatch.setattr(answer, "_REFLOWS", False)
    text = ANSWERS["numbers"]
    output = io.StringIO()
    console = console_on(output)

    def watched():
        yield from steps(text[:20], 3)
        console.size = (9, HEIGHT)
        yield from steps(text[20:], 3)

    print_answer(console, watched(), stream=True)
    assert emulated(output.getvalue()) == whole(text)


def test_an_error_in_the_middle_leaves_what_was_said(every_step_drawn):
    def failing():
        yield from steps("said so far", 3)
        raise RuntimeError

    output = io.StringIO()
    with pytest.raises(RuntimeError):
        print_answer(console_on(output), failing(), stream=True)
    assert emulated(output.getvalue()) == ["said so far"]
    assert output.getvalue().rfind("\x1b[?25h") > output.getvalue().rfind("\x1b[?25l")  # cursor


def test_hostile_text_cannot_reach_the_terminal(every_step_drawn):
    output = io.StringIO()
    print_answer(console_on(output), steps("a\x1b[2J\x1b]0;owned\x07b [red]c", 4), stream=True)
    assert "\x1b[2J" not in output.getvalue()
    assert "\x07" not in output.getvalue()
    assert emulated(output.getvalue()) == ["a␛[2J␛]0;owned␇b [red]c"]


def test_a_pipe_gets_the_text_as_written(capfd):
    text = "# no **rendering**\n[red]\n"
    last = print_answer(Console(), steps(text, 4), stream=True)
    assert last is not None
    assert capfd.readouterr().out == text + "\n"


def test_no_answer_prints_nothing():
    output = io.StringIO()
    assert print_answer(console_on(output), iter(()), stream=True) is None
    assert emulated(output.getvalue()) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("one", 0),
        ("one\n\n", 0),
        ("one\n\ntwo\n", 2),
        ("one\n\ntw", 0),
        ("one\n\na line that goes on", 2),
        ("1. one\n\n2", 0),
        ("one\n\n```a-long-word-of", 0),
        ("```\n\na\n\n# b\n", 0),
        ("```\na\n```\nafter\n", 3),
        ("- a\n\n- b\n", 0),
        ("- a\n\n- b\n\nafter\n", 4),
        ("title\n---\nx\n", 2),
        ("", 0),
    ],
)
def test_blocks_are_finished_when_the_next_begins(source, count):
    assert finished_lines(source) == count
