"""The page: what is where. Streamlit runs this file from top to bottom after every click."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import streamlit as st

from baichuan.errors import BaichuanError
from baichuan.language import translate
from baichuan.model.prompt import Message
from baichuan.web.answering import Answer
from baichuan.web.markdown import for_streamlit, plain
from baichuan.web.models import Model, open_model
from baichuan.web.options import Options
from baichuan.web.session import attempt, choose_language, current_talk
from baichuan.web.sidebar import Asked, draw_sidebar
from baichuan.web.talk import Talk

#: Seconds between two drawings of an answer on its way.
_INTERVAL = 0.15
_AVATARS = {"user": ":material/person:", "assistant": ":material/waves:"}


def show(arguments: Sequence[str]) -> None:
    """Draw the page.

    Args:
        arguments: of the command line; see `Options`.
    """
    st.set_page_config(page_title="baichuan", page_icon="🌊")
    choose_language()
    try:
        with st.spinner(translate("Loading the model")):
            model = _model(Options.parse(arguments))
        talk = current_talk(model)
        asked = draw_sidebar(talk, model)
        _draw_messages(talk, model, asked)
        _draw_bottom(talk, asked)
    except BaichuanError as error:
        st.error(plain(str(error)))


@st.cache_resource(show_spinner=False)
def _model(options: Options) -> Model:
    """Open the model once for all browsers."""
    return open_model(options)


def _draw_messages(talk: Talk, model: Model, asked: Asked) -> None:
    running = talk.running  # asked once: it may end while the page is drawn
    messages = running.asked.messages if running else talk.conversation.messages
    if not messages:
        _draw_welcome(talk, model, asked)
    answer = talk.answer
    for number, message in enumerate(messages):
        with st.chat_message(message["role"], avatar=_AVATARS[message["role"]]):
            if st.session_state.get("editing") == (talk.name, number):
                _draw_editor(talk, number, message, asked)
            else:
                _draw_message(talk, number, message)
            if answer is not None and answer.is_last(messages[: number + 1]):
                _draw_end(answer)
    if running:
        _follow(running)
    elif answer is not None and answer.error is not None:
        if answer.text and not answer.is_last(messages):  # it could not be saved
            with st.chat_message("assistant", avatar=_AVATARS["assistant"]):
                st.markdown(for_streamlit(answer.text))
        st.error(plain(answer.error))
    _draw_trouble(keep=running is not None)


def _draw_trouble(keep: bool) -> None:
    """Show what could not be done; the page is drawn anew, unasked, when an answer ends."""
    for trouble in st.session_state.get("trouble", []):
        st.error(plain(trouble))
    if not keep:
        st.session_state.trouble = []


def _draw_welcome(talk: Talk, model: Model, asked: Asked) -> None:
    st.markdown(f"### {plain(model.name)}")
    if model.is_demo:
        st.caption(
            translate(
                "A small demo that comes with the package: it knows little and is often wrong."
            )
        )
    for question in (
        translate("Who are you?"),
        translate("What is the second highest mountain in the world?"),
        translate("Write a short poem about spring."),
    ):
        st.button(question, on_click=attempt, args=(talk.say, question, *asked))


def _draw_message(talk: Talk, number: int, message: Message) -> None:
    if message["role"] == "assistant":
        st.markdown(for_streamlit(message["content"]))
        return
    with st.container(horizontal=True):
        st.markdown(for_streamlit(message["content"]))
        st.button(
            "",
            icon=":material/edit:",
            type="tertiary",
            help=translate("Edit"),
            key=f"edit-{number}",
            on_click=st.session_state.update,
            kwargs={"editing": (talk.name, number)},
        )


def _draw_editor(talk: Talk, number: int, message: Message, asked: Asked) -> None:
    """Let a message be changed; what came after it goes, but can be brought back."""

    def send() -> None:
        text = st.session_state.edited.strip()
        if text:
            st.session_state.editing = None
            attempt(talk.edit, number, text, *asked)

    with st.form("editor", border=False):
        st.text_area(
            translate("Edit"), message["content"], key="edited", label_visibility="collapsed"
        )
        with st.container(horizontal=True):
            st.form_submit_button(translate("Send"), type="primary", on_click=send)
            st.form_submit_button(
                translate("Cancel"), on_click=st.session_state.update, kwargs={"editing": None}
            )


@st.fragment(run_every=_INTERVAL)
def _follow(answer: Answer) -> None:
    """Draw an answer on its way, again and again, without the rest of the page."""
    ended, text = answer.ended, answer.text
    with st.chat_message("assistant", avatar=_AVATARS["assistant"]):
        st.markdown(for_streamlit(text) if text else translate("thinking"))
        st.caption(_figures(answer))
    if ended:
        st.rerun()


def _draw_end(answer: Answer) -> None:
    st.caption(_figures(answer))
    if answer.finish_reason == "length":
        st.caption(translate("The answer was cut: it reached the most tokens allowed."))


def _figures(answer: Answer) -> str:
    figures = answer.figures
    if not figures.tokens:
        return translate("{seconds} s", seconds=f"{figures.waited:.1f}")
    return translate(
        "{tokens} tokens · {speed} tokens/s · first token after {seconds} s",
        tokens=figures.tokens,
        speed="–" if figures.speed is None else f"{figures.speed:,.1f}",
        seconds=f"{figures.waited:.2f}",
    )


def _draw_bottom(talk: Talk, asked: Asked) -> None:
    """Draw what is always in sight: the buttons of the conversation, and where to write."""
    empty = not talk.conversation.messages
    with st.bottom:
        with st.container(horizontal=True):
            if talk.running:
                _button("stop", translate("Stop"), talk.stop)
            else:
                _button("regenerate", translate("Regenerate"), talk.regenerate, *asked, off=empty)
            _button("clear", translate("Clear"), talk.clear, off=empty)
            if talk.can_undo:
                _button("undo", translate("Undo"), talk.undo)
        if text := st.chat_input(translate("Message")):
            attempt(talk.say, text, *asked)
            st.rerun()


_ICONS = {
    "stop": ":material/stop_circle:",
    "regenerate": ":material/refresh:",
    "clear": ":material/delete:",
    "undo": ":material/undo:",
}


def _button(kind: str, label: str, act: Any, *arguments: Any, off: bool = False) -> None:
    st.button(
        label,
        icon=_ICONS[kind],
        key=f"do-{kind}",
        disabled=off,
        on_click=attempt,
        args=(act, *arguments),
    )


if __name__ == "__main__":
    show(sys.argv[1:])
