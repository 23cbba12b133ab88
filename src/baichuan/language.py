"""The user's language, and this package's sentences in it, by the standard library's gettext.

Sentences stand in the source in English, as templates for `str.format`; `make messages` collects
them in locale/zh/LC_MESSAGES/baichuan.po. Knows no error and no terminal: both say things by this.
"""

from __future__ import annotations

import gettext
import locale
import os
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

#: The first one that is set decides; the first is this package's own (`en` or `zh`).
VARIABLES = ("BAICHUAN_LANG", "LC_ALL", "LC_MESSAGES", "LANG")


#: The languages there are, each by its own name.
LANGUAGES = {"en": "English", "zh": "中文"}

#: What `speak` chose, per thread or task: one process may serve people of both languages.
_chosen: ContextVar[str | None] = ContextVar("language", default=None)


def speak(code: str) -> None:
    """Choose the language of what this thread or task says from now on."""
    _chosen.set(code)


def language() -> str:
    """Give the language chosen here, or `zh` where the environment or else the system is Chinese.

    It is `en` elsewhere.
    """
    if chosen := _chosen.get():
        return chosen
    set_here = filter(None, map(os.environ.get, VARIABLES))
    named = next(set_here, None) or locale.getlocale()[0] or ""
    return "zh" if named.lower().startswith(("zh", "chinese")) else "en"


def translate(template: str, /, **facts: object) -> str:
    """Say a sentence in the user's language (gettext's `_`).

    Args:
        template: in English, written out where it is used, so that the catalogue gets it.
        facts: what its `{names}` stand for; without any, braces mean themselves.
    """
    sentence = _catalogue(language()).gettext(template)
    return sentence.format(**facts) if facts else sentence


def phrase(text: str) -> str:
    """Put a text in the catalogue for someone who will `translate` it later (gettext's `N_`)."""
    return text


@lru_cache
def _catalogue(code: str) -> gettext.NullTranslations:
    """Read a language's sentences; English has none, being what is looked up."""
    where = Path(__file__).with_name("locale")
    return gettext.translation("baichuan", where, [code], fallback=True)
