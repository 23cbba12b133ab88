"""Messages to Streamlit's Markdown: what changes, and that nothing else does."""

import pytest
from markdown_it import MarkdownIt

from baichuan.web.markdown import for_streamlit, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r"\(a^2\) and \( b \)", "$a^2$ and $b$"),
        ("$a^2$, $$b$$", "$a^2$, \n$$\nb\n$$"),
        ("\\[\na\nb\n\\]", "$$\na\nb\n$$"),
        ("costs $5 and $10, or $ 3", r"costs \$5 and \$10, or \$ 3"),
        (r"already \$5", r"already \$5"),
        ("![spy](http://x/y)", r"!\[spy](http://x/y)"),
        ("a [link](http://x/y)", "a [link](http://x/y)"),
        (":red[no] :material/home: 10:30 x:y", r"\:red[no] \:material/home: 10:30 x\:y"),
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
    shown = for_streamlit("a ` tick\n\n![spy](u) `")
    assert shown == r"a \` tick" + "  \n  \n" + r"!\[spy]\(u) \`"


HOSTILE = "![a](u) [b](c) <i>x</i> **y** `z` $m$ :red[q] ~~s~~ # h _e_ &amp; \\ 1. 你好"


def test_plain_text_is_shown_as_it_is():
    rendered = MarkdownIt("commonmark").enable("strikethrough").render(plain(HOSTILE))
    escaped = HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert rendered == f"<p>{escaped}</p>\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *(
            (link, link.replace("](", r"]\("))
            for link in ("[x](/rel)", "[x](#part)", "[x](//host)")
        ),
        ("[x](javascript:alert(1))", r"[x]\(javascript\:alert(1))"),
        ("[x](%6aavascript:alert(1))", r"[x]\(%6aavascript\:alert(1))"),
        ("[x](&#106;avascript:y)", r"[x]\(&#106;avascript\:y)"),
        ("[x](data:text/html,1) [y](file:/e)", r"[x]\(data\:text/html,1) [y]\(file:/e)"),
        ("[x](<blob:y>)", r"[x]\(\<blob\:y>)"),
        ("<data:1> <javascript:x>", r"\<data:1> \<javascript\:x>"),
        ("[x][r]\n\n[r]: data:1", "[x][r]  \n  \n&#91;r]\\: data:1"),
        ("- [a`b]: data:1 ` [x][a`b]", "- &#91;a`b]: data:1 ` [x][a\\`b]"),
        ("[^1]: [x](data:1)", r"&#91;^1]\: [x]\(data:1)"),
        ("[x](https://a.b/`) [y](data:1) `", r"[x]\(https\://a.b/`) [y](data:1) `"),
        ("https://a.b/` [y](data:1) `", r"https\://a.b/` [y](data:1) `"),
        ("![i](https://a.b)` [y](data:1) `", r"!\[i]\(https\://a.b)` [y](data:1) `"),
        ("# a `\n[x](data:1) `", "# a \\`  \n[x]\\(data:1) \\`"),
        ("a `\n# [x](data:1) `", "a \\`  \n# [x]\\(data:1) \\`"),
        ("> a `b\n> c` d", "> a `b c` d"),
        ("\\``a` [x](data:1) `", r"\``a` [x]\(data:1) \`"),
        ('<a href="`">[x](data:1)`', r'\<a href="`">[x](data:1)`'),
        ("$a ` b$ [x](data:1) `", r"\$a ` b$ [x](data:1) `"),
        ("\\[ a\n$$\n[x](data:1) \\]", "\\[ a  \n\\$\\$  \n[x]\\(data:1) \\]"),
        ("![i](http://a.b)[x](<data:1>)", r"!\[i]\(http\://a.b)[x]\(\<data:1>)"),
        ("http://a.b<data:1>", r"http\://a.b\<data:1>"),
        ("    [x](data:1)", r"[x]\(data:1)"),
        ("| ` | [x](data:1) ` |\n|---|---|", "| \\`  | [x]\\(data:1) \\`  |  \n |--- |--- |"),
        ("| a |\n|---|\n    [x](data:1)", "| a  |  \n |--- |  \n    [x]\\(data:1)"),
    ],
)
def test_what_leads_elsewhere_than_to_the_web_is_text(text, shown):
    assert for_streamlit(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "[x](https://a.b/c_(d)?e=f#g), [y](HTTP://a.b) [z](mailto:a@b.c)",
        "<https://a.b> https://a.b/c?d=1&e=2, (www.a.b) a@b.c",
        "**[x](https://a.b)** [`code`](https://a.b)",
    ],
)
def test_links_to_the_web_stay(text):
    assert for_streamlit(text) == text
