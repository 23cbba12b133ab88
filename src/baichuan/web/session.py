"""What one browser tab remembers between two runs of the page: conversation, language, trouble."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import streamlit as st

from baichuan.errors import BaichuanError
from baichuan.language import LANGUAGES, VARIABLES, language, speak
from baichuan.web.answering import Answer
from baichuan.web.browser import show_end
from baichuan.web.conversations import Conversations, data_directory, is_name, new_name
from baichuan.web.hosts import is_loopback
from baichuan.web.models import Model
from baichuan.web.talk import Talk

#: The cookie by which app.py tells browsers apart: 128 random bits, in hexadecimal.
BROWSER_COOKIE = "baichuan_browser"
_BROWSER = re.compile(r"[0-9a-f]{32}")


def choose_language() -> None:
    """Speak the language chosen in the page, or that of the address, or the browser's.

    `BAICHUAN_LANG`, where it is set, stands before the browser's.
    """
    if "language" not in st.session_state:
        named = st.query_params.get("lang")
        browsers = (st.context.locale or "").lower()
        ours = language()
        if browsers and not os.environ.get(VARIABLES[0]):
            ours = "zh" if browsers.startswith("zh") else "en"
        st.session_state.language = named if named in LANGUAGES else ours
    speak(st.session_state.language)


def attempt(act: Callable[..., None], *arguments: Any) -> None:
    """Do what a button says; a user's error is shown until the next thing is done."""
    choose_language()  # Streamlit calls back before it runs the page
    forget_trouble()
    succeeds(act, *arguments)


def forget_trouble() -> None:
    """Take the errors away that the page shows, for something else is done now."""
    st.session_state.trouble = []


def succeeds(act: Callable[..., object], *arguments: Any) -> bool:
    """Do something, and say whether it was done; else the page shows why not.

    Streamlit draws the page anew for reasons of its own, when an answer ends, for example; so an
    error stays until `forget_trouble`.
    """
    try:
        act(*arguments)
    except BaichuanError as error:
        st.session_state.setdefault("trouble", []).append(str(error))
        show_end()
        return False
    return True


def current_talk(model: Model) -> Talk:
    """Give the conversation that this tab shows; the address names it, so a reload finds it."""
    if "name" not in st.session_state:
        named = st.query_params.get("c", "")
        st.session_state.name = named if is_name(named) else new_name()
    talk = talk_named(model, st.session_state.name)
    if not succeeds(lambda: talk.conversation):  # a file that is damaged; the others are shown
        talk = talk_named(model, new_name())
        st.session_state.name = talk.name
    if talk.conversation.messages:
        st.query_params["c"] = talk.name
    else:
        st.query_params.pop("c", None)
    return talk


def talk_named(model: Model, name: str) -> Talk:
    """Return a conversation of this browser's user."""
    earlier = st.session_state.setdefault("earlier", {})
    return Talk(model, conversations(), name, _answers(), earlier)


def go_to(name: str) -> None:
    """Show another conversation, without the errors of this one."""
    forget_trouble()
    show_conversation(name)


def show_conversation(name: str) -> None:
    """Show another conversation, at its end."""
    st.session_state.name = name
    st.session_state.pop("editing", None)
    show_end()


def conversations() -> Conversations:
    """Give the conversations of whoever sits before this page.

    At a loopback address they are those of the user who runs it, whatever the browser. Elsewhere
    each browser has its own.
    """
    directory = data_directory()
    if not is_loopback(st.get_option("server.address")):
        directory /= _browser()
    return _conversations(directory)


def _browser() -> str:
    cookie = st.context.cookies.get(BROWSER_COOKIE, "")
    if _BROWSER.fullmatch(cookie):
        return cookie
    # No cookies: this tab's own, and gone with it.
    return str(st.session_state.setdefault("browser", new_name() + new_name()))


@st.cache_resource(show_spinner=False)
def _conversations(directory: Any) -> Conversations:
    return Conversations(directory)


@st.cache_resource(show_spinner=False)
def _answers() -> dict[str, Answer]:
    """Give the process's answers: whichever tab shows the conversation, finds its answer."""
    return {}


def stop_all() -> None:
    """End every answer on its way, so that what was said is saved; for the process's end."""
    for answer in list(_answers().values()):
        if not answer.ended:
            answer.stop()
