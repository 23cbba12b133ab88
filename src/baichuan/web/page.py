"""The page: what is where. Streamlit runs this file from top to bottom after every click."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import streamlit as st

from baichuan.errors import BaichuanError
from baichuan.language import translate
from baichuan.model.prompt import Message, context_use
from baichuan.web.answering import Answer
from baichuan.web.browser import copy, draw_scripts, show_end
from baichuan.web.markdown import cost, for_streamlit, plain, shortened
from baichuan.web.models import Model, open_model
from baichuan.web.options import Options
from baichuan.web.session import attempt, choose_language, current_talk, forget_trouble, succeeds
from baichuan.web.sidebar import Asked, draw_sidebar
from baichuan.web.talk import Talk

#: Seconds between two drawings of an answer on its way.
_INTERVAL = 0.15
#: What the messages shown may cost a browser together; see `cost`. Each click shows as much more.
_MOST_SHOWN = 200_000
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
        draw_scripts()
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
    if answer is not None and answer is not st.session_state.get("shown"):
        st.session_state.shown = answer
        show_end()  # of what was asked just now, wherever the page stood
    dropped = answer.dropped if answer is not None else 0
    first = _draw_earlier(talk, messages)
    for number, message in enumerate(messages[first:], first):
        if 0 < dropped == number:
            st.divider()
            st.caption(_left_out(dropped))
        with st.chat_message(message["role"], avatar=_AVATARS[message["role"]]):
            if st.session_state.get("editing") == (talk.name, number):
                _draw_editor(talk, number, message, asked)
            elif message["role"] == "user":
                _draw_question(talk, number, message)
            else:
                is_latest = answer is not None and answer.is_last(messages[: number + 1])
                _draw_answer(number, message, answer if is_latest else None, model.context)
    if running:
        _follow(running, model.context)
    elif answer is not None and answer.error is not None:
        if answer.text and not answer.is_last(messages):  # it could not be saved
            with st.chat_message("assistant", avatar=_AVATARS["assistant"]):
                _draw_text(answer.text)
        st.error(plain(answer.error))
    _draw_trouble()


def _draw_earlier(talk: Talk, messages: Sequence[Message]) -> int:
    """Offer what is above the messages shown; give the number of the first of them."""
    pages = st.session_state.setdefault("pages", {})
    room = pages.get(talk.name, 1) * _MOST_SHOWN
    first = len(messages)
    while first and (room := room - cost(messages[first - 1]["content"])) > 0:
        first -= 1
    if first:
        st.button(
            translate("{count} earlier messages", count=first),
            icon=":material/expand_less:",
            type="tertiary",
            key="show-earlier",
            on_click=pages.update,
            args=({talk.name: pages.get(talk.name, 1) + 1},),
        )
    return first


def _draw_text(text: str) -> None:
    """Draw what was said; of more than a browser can take, the beginning and the end."""
    parts, left_out = shortened(text)
    for number, part in enumerate(parts):
        if number:
            st.caption(
                translate(
                    "{count} characters are not shown here; Copy and Export have all of them.",
                    count=f"{left_out:,}",
                )
            )
        st.markdown(for_streamlit(part))


def _draw_trouble() -> None:
    """Show what could not be done."""
    for trouble in st.session_state.get("trouble", []):
        st.error(plain(trouble))


def _draw_welcome(talk: Talk, model: Model, asked: Asked) -> None:
    st.markdown(f"### {plain(model.name)}")
    if model.is_demo:
        st.caption(
            translate(
                "A small demo that comes with the package: it knows little and is often wrong."
            )
        )
    with st.container(key="suggestions"):
        for question in (
            translate("Who are you?"),
            translate("What is the second highest mountain in the world?"),
            translate("How do you make tea?"),
        ):
            st.button(question, on_click=attempt, args=(talk.say, question, *asked))


def _draw_question(talk: Talk, number: int, message: Message) -> None:
    with st.container(horizontal=True):
        with st.container():
            _draw_text(message["content"])
        _draw_copy(number, message)
        st.button(
            "",
            icon=":material/edit:",
            type="tertiary",
            help=translate("Edit"),
            key=f"edit-{number}",
            on_click=st.session_state.update,
            kwargs={"editing": (talk.name, number)},
        )


def _draw_answer(number: int, message: Message, answer: Answer | None, context: int | None) -> None:
    """Draw a complete answer; `answer` says how it came, where that is known."""
    _draw_text(message["content"])
    with st.container(horizontal=True, vertical_alignment="center"):
        _draw_copy(number, message)
        if answer is not None:
            st.caption(_figures(answer, context))
    if answer is None:
        return
    if answer.finish_reason == "length":
        st.caption(translate("The answer was cut: it reached the most tokens allowed."))
    if answer.dropped:
        st.caption(_left_out(answer.dropped))


def _left_out(count: int) -> str:
    return translate(
        "The context is full: the model did not see the oldest {count} messages.", count=count
    )


def _draw_copy(number: int, message: Message) -> None:
    st.button(
        "",
        icon=":material/content_copy:",
        type="tertiary",
        help=translate("Copy"),
        key=f"copy-{number}",
        on_click=copy,
        args=(message["content"],),
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
def _follow(answer: Answer, context: int | None) -> None:
    """Draw an answer on its way, again and again, without the rest of the page."""
    ended, text = answer.ended, answer.text
    with st.chat_message("assistant", avatar=_AVATARS["assistant"]):
        _draw_text(text or translate("thinking"))
        st.caption(_figures(answer, context))
    if ended:
        st.rerun()


def _figures(answer: Answer, context: int | None) -> str:
    figures = answer.figures
    if not figures.tokens:
        return translate("{seconds} s", seconds=f"{figures.waited:.1f}")
    said = translate(
        "{tokens} tokens · {speed} tokens/s · first token after {seconds} s",
        tokens=figures.tokens,
        speed="–" if figures.speed is None else f"{figures.speed:,.1f}",
        seconds=f"{figures.waited:.2f}",
    )
    if context is None or figures.prompt_tokens is None:
        return said
    return f"{said} · {context_use(figures.prompt_tokens + figures.tokens, context)}"


def _draw_bottom(talk: Talk, asked: Asked) -> None:
    """Draw what is always in sight: the buttons of the conversation, and where to write."""
    empty = not talk.conversation.messages
    with st.bottom, st.container(horizontal=True):
        if talk.running:
            _button("stop", translate("Stop"), talk.stop)
        else:
            _button("regenerate", translate("Regenerate"), talk.regenerate, *asked, off=empty)
        _button("clear", translate("Clear"), talk.clear, off=empty)
        if talk.can_undo:
            _button("undo", translate("Undo"), talk.undo)
    # Outside of `st.bottom`, where it lands all the same: only so the page follows what is new.
    if "unsent" in st.session_state:  # to be shortened, or sent with another setting
        st.session_state.message = st.session_state.pop("unsent")
    if text := st.chat_input(translate("Message"), key="message"):
        forget_trouble()
        if not succeeds(talk.say, text, *asked):
            st.session_state.unsent = text
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
        # Whoever stops an answer has not read the errors yet that came meanwhile.
        on_click=act if kind == "stop" else attempt,
        args=() if kind == "stop" else (act, *arguments),
    )


if __name__ == "__main__":
    show(sys.argv[1:])
