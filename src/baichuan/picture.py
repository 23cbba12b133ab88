"""Pictures by matplotlib: fonts with Chinese glyphs where they are installed, and files.

Text that no installed font can show is written with escapes, so that no picture has empty boxes.
"""

from __future__ import annotations

import importlib.util
import io
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baichuan.language import translate
from baichuan.outputs import write_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: matplotlib's own font, which has no Chinese, and what is put behind it.
_LATIN = "DejaVu Sans"
#: Names, or beginnings of names, of fonts with simplified Chinese.
_CHINESE = (
    *("Noto Sans CJK", "Source Han Sans", "PingFang", "Microsoft YaHei", "WenQuanYi"),
    *("Hiragino Sans GB", "SimHei", "Heiti", "STHeiti", "Droid Sans Fallback", "Arial Unicode MS"),
    *("Noto Serif CJK", "Source Han Serif", "SimSun", "AR PL"),
)


def can_draw() -> bool:
    """Say whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def fonts() -> Iterator[None]:
    """Draw, within, in a font for Latin and in one for Chinese, if there is one."""
    import matplotlib

    with matplotlib.rc_context({"font.family": families()}):
        yield


def families() -> list[str]:
    """Name the fonts for text, the preferred one first."""
    from matplotlib.font_manager import fontManager

    installed = sorted({font.name for font in fontManager.ttflist})
    found = (name for wanted in _CHINESE for name in installed if name.startswith(wanted))
    return [_LATIN, *(name for name in [next(found, None)] if name)]


def readable(text: str) -> str:
    """Return a text in the characters that the fonts have.

    Others lose their accents, or become escapes such as \\u4f60. A dollar begins no formula.
    """
    return _with_glyphs(text).replace("$", r"\$")


def label(text: str) -> str:
    """Return a `phrase` in the user's language if the fonts have its characters, else as it is."""
    translated = translate(text)
    return translated if _with_glyphs(translated) == translated else text


def _with_glyphs(text: str) -> str:
    glyphs = _glyphs()
    return "".join(c if ord(c) in glyphs else _plain(c) for c in text)


def _glyphs() -> set[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    files = [findfont(FontProperties(family=name)) for name in families()]
    return {code for file in files for code in get_font(file).get_charmap()}


def _plain(character: str) -> str:
    bare = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return bare or character.encode("ascii", "backslashreplace").decode()


def save(figure: Figure, target: Path) -> None:
    """Write a figure whole or not at all, as what the file's ending says.

    The same figure gives the same bytes: no date and no random name is in them.

    Raises:
        UsageError: the file cannot be written.
    """
    import matplotlib

    drawn, kind = io.BytesIO(), target.suffix[1:].lower()
    dates: Any = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with fonts(), matplotlib.rc_context({"svg.hashsalt": "baichuan"}):
        figure.savefig(drawn, format=kind, dpi=150, metadata=dates)
    write_output(target, drawn.getvalue())
