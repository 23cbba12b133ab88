"""Messages to Streamlit's Markdown: what changes, and that nothing else does."""

import pytest
from markdown_it import MarkdownIt

from baichuan.web.markdown import for_streamlit, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"\(a^2\) and \( b \)", "$a^2$ and $b$"),
        ("$a^2$, $$b$$", "$a^2$, \n$$\nb\n$$\n"),
        ("\\[\na\nb\n\\]", "\n$$\na\nb\n$$\n"),
        ("costs $5 and $10, or $ 3", r"costs \$5 and \$10, or \$ 3"),
        (r"already \$5", r"already \$5"),
        ("![spy](http://x/y)", r"!\[spy](http://x/y)"),
        ("a [link](http://x/y)", "a [link](http://x/y)"),
        (":red[no] :material/home: 10:30 x:y", r"\:red[no] \:material/home: 10:30 x:y"),
        ("one\ntwo\n\nthree", "one  \ntwo  \n  \nthree"),
    ],
)
def test_markup(text, shown):
    assert for_streamlit(text) == shown


@pytest.mark.parametrize(
    "code",
    [
        "`vec![1]` and ``a ` $b$``",
        "```rust\nlet a = vec![1]; // $x$\n:red[x]\n```",
        "~~~\n$a$\n```\n![x](y)\n~~~",
        "- list\n  ```\n  $1\n  ```",
        "```python\nunfinished = '$a$'\n![still](code)",
    ],
)
def test_code_stays_as_it_is(code):
    outside = code.replace("- list\n", "- list  \n")
    assert for_streamlit(code) == outside


def test_an_open_backtick_hides_nothing_behind_its_paragraph():
    assert for_streamlit("a ` tick\n\n![spy](u) `") == "a ` tick  \n  \n!\\[spy](u) `"


HOSTILE = "![a](u) [b](c) <i>x</i> **y** `z` $m$ :red[q] ~~s~~ # h _e_ &amp; \\ 1. 你好"


def test_plain_text_is_shown_as_it_is():
    rendered = MarkdownIt("commonmark").enable("strikethrough").render(plain(HOSTILE))
    escaped = HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert rendered == f"<p>{escaped}</p>\n"
