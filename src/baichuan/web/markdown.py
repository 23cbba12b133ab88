"""From what a model or a person wrote to Markdown that Streamlit shows as it was meant.

This is about looks: that no text can run a script or fetch anything is seen to by Streamlit, which
shows HTML as text, and by the page's Content-Security-Policy (app.py). Knows no Streamlit.
"""

from __future__ import annotations

import re

_PARTS = re.compile(
    r"""
      (?P<code> ^[ \t]*(?P<fence>`{3,}|~{3,})[^\n]*\n .*? (?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)
              | (?<!`)(?P<ticks>`+)(?!`) (?:(?!\n[ \t]*\n).)+? (?<!`)(?P=ticks)(?!`) )
    | \\\[ (?P<display>.+?) \\\]
    | \$\$ (?P<dollars_display>.+?) \$\$
    | \\\( (?P<inline>.+?) \\\)
    # As pandoc has it: "$5 and $10" is no formula.
    | \$(?=[^\s$]) (?P<dollars_inline>[^$\n]*?[^\s$\\]) \$(?!\d)
    | (?P<escaped> \\. )
    | (?P<plain> \$ | (?<=!)\[ | :(?=[a-z-]+\[|material/) )
    | (?P<line_break> \n )
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


def for_streamlit(text: str) -> str:
    r"""Give Markdown for `st.markdown`; code stays as it is.

    - `\(...\)` and `\[...\]`, which models write, become Streamlit's dollars; a dollar that begins
      no formula stays a dollar.
    - An image is shown as the text it is written with: it would be fetched from where it says.
    - A line break is one, as in the message. Streamlit's own markup (`:red[...]`) is text.
    """
    return _PARTS.sub(_shown, text)


def plain(text: str) -> str:
    """Give Markdown that shows a text as it is: for labels and remarks."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)


def _shown(part: re.Match[str]) -> str:
    kind = part.lastgroup
    if kind == "plain":
        return "\\" + part[0]
    if kind == "line_break":
        return "  \n"
    if kind in ("display", "dollars_display"):
        return f"\n$$\n{part[kind].strip()}\n$$\n"
    if kind in ("inline", "dollars_inline"):
        return f"${part[kind].strip()}$"
    return part[0]
