"""Markdown on the terminal: nothing lost, nothing dangerous, Chinese wrapped well."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from baichuan.cli.markdown import AnswerMarkdown, visible, wrap_offsets


def shown(source: str, width: int = 40) -> str:
    console = Console(width=width, color_system=None, force_terminal=True, highlight=False)
    with console.capture() as capture:
        console.print(AnswerMarkdown(source))
    return "\n".join(line.rstrip() for line in capture.get().strip("\n").split("\n"))


@pytest.mark.parametrize(
    "written",
    [
        "[red]no markup[/red] of rich",
        "std::vector<int> and <div> stay",
        "<script>alert(1)</script>",
        "[1]: https://example.com",
        "5 * 3 * 2 = 30",
        "snake_case_name",
    ],
)
def test_what_is_no_markdown_is_shown_as_written(written):
    assert shown(written) == written


def test_line_breaks_of_a_poem_are_kept():
    poem = "床前明月光，\n疑是地上霜。"
    assert shown(poem) == poem


def test_links_show_where_they_lead():
    assert shown("[here](https://a.example)") == "here (https://a.example)"
    assert shown("<https://a.example>") == "https://a.example"


def test_numbered_items_keep_their_numbers_and_indent():
    assert shown("9. nine\n10. ten").split("\n") == [" 9. nine", "10. ten"]
    assert shown("3. three") == " 3. three"


def test_code_can_be_copied():
    assert shown("```python\nif x:\n    y()\n```") == "if x:\n    y()"


def test_terminal_control_characters_are_shown_not_obeyed():
    hostile = "\x1b[2J\x1b]0;title\x07 \x9b31m \x7f a\tb\r\nc\rd"
    clean = visible(hostile)
    assert clean == "␛[2J␛]0;title␇ �31m ␡ a\tb\nc␍d"
    assert "\x1b[2J" not in shown(visible("```\n\x1b[2J\n```"))


@pytest.mark.parametrize(
    "hostile",
    [
        "<https://a.example/%1b]8;;https://b.example%1b\\>",
        "<https://a.example/%1B[2J%9b31m%07>",
        "&#27;]0;title&#7; &#x1b;[2J &#155;31m &#13;over &#12; &#8;",
        "[x](https://a.example/%1b]8) [y](&#27;]8;;z) ![&#27;[2J\x1b[2J](https://a.example)",
        "```\x1b]8\n\x1b[2J\x9b31m\r\n```\n\n    \x1b[2J\n\n`\x1b[2J`",
        "| \x1b[2J |\n|---|\n| &#27;[2J |",
        "# \x07\n\n> \x9b31m\n\n- \x1bc",
        "\u202egnp.exe &#x202e;abc \u2066x\u2069 \ud83d",
    ],
)
def test_nothing_of_an_answer_is_a_control_character(hostile):
    """Neither as it is written, nor by what Markdown makes of it."""
    control = "[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    for width in (10, 40):
        assert re.findall(control, shown(hostile, width)) == []


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("使用Python编写程序很长很长", ["使用", "Python编", "写程序很", "长很长"]),
        ("你好世界，再见", ["你好世", "界，再见"]),
        ("一二三（四五）", ["一二三", "（四五）"]),
        ("one two three", ["one two", "three"]),
        ("abcdefghijkl", ["abcdefgh", "ijkl"]),
    ],
)
def test_wrapping(text, lines):
    offsets = [0, *wrap_offsets(text, 8), len(text)]
    parts = [text[a:b].rstrip() for a, b in pairwise(offsets)]
    assert parts == lines


@given(st.text(alphabet="ab 你好，。（）“” \tx", max_size=60), st.integers(2, 20))
def test_wrapped_parts_join_to_the_text_and_fit(text, width):
    offsets = [0, *wrap_offsets(text, width), len(text)]
    parts = [text[a:b] for a, b in pairwise(offsets)]
    assert "".join(parts) == text
    assert all(cell_len(part.rstrip()) <= width for part in parts)
