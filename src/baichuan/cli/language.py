"""The language of the terminal's own messages: Chinese in a Chinese locale, else English."""

from __future__ import annotations

import locale
import os


def chinese() -> bool:
    """Say whether the user's locale is a Chinese one (POSIX variables, else the system's)."""
    variables = (os.environ.get(name) for name in ("LC_ALL", "LC_MESSAGES", "LANG"))
    named = next(filter(None, variables), None) or locale.getlocale()[0] or ""
    return named.lower().startswith(("zh", "chinese"))


def local(english: str, chinese_text: str) -> str:
    """Choose the text in the user's language."""
    return chinese_text if chinese() else english
