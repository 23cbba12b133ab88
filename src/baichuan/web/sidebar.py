"""The page's side: the model's name, the conversations, the settings, the language."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import streamlit as st

from baichuan import transcript
from baichuan.errors import PromptError
from baichuan.language import LANGUAGES, phrase, translate
from baichuan.transcript import Transcript
from baichuan.web.conversations import Entry, new_name, title
from baichuan.web.markdown import plain
from baichuan.web.models import Model
from baichuan.web.session import (
    attempt,
    conversations,
    forget_trouble,
    go_to,
    show_conversation,
    succeeds,
    talk_named,
)
from baichuan.web.talk import Talk

#: Conversations that are listed; a search finds the others.
_LISTED = 30
#: torch's generators take 64 bits, a browser's numbers are exact to 53.
_LARGEST_SEED = 2**53 - 1


class Asked(NamedTuple):
    """What goes with each question: the system text, and the settings that were changed."""

    system: str | None
    settings: Mapping[str, Any]


def draw_sidebar(talk: Talk, model: Model) -> Asked:
    """Draw it and give what was set there."""
    with st.sidebar:
        st.markdown(f"**{plain(model.name)}**")
        st.button(
            translate("New conversation"),
            icon=":material/add:",
            width="stretch",
            key="new",
            on_click=go_to,
            args=(new_name(),),
        )
        with st.expander(translate("Settings"), icon=":material/tune:", key="settings"):
            asked = Asked(_draw_system(talk), _draw_settings(model))
        with st.expander(translate("Export and import"), icon=":material/swap_vert:", key="files"):
            _draw_export(talk)
            _draw_import()
        _draw_language()
        _draw_list(talk, model)
    return asked


def _draw_list(talk: Talk, model: Model) -> None:
    words = st.text_input(
        translate("Search"),
        placeholder=translate("Search"),
        label_visibility="collapsed",
        icon=":material/search:",
        key="search",
    )
    entries = conversations().find(words)
    # In the row's place, so that no other row moves under the pointer.
    place, deleted = st.session_state.get("deleted", (-1, None))
    for number, entry in enumerate(entries[:_LISTED]):
        if number == place:
            _draw_undo(deleted, talk, model)
        with st.container(horizontal=True, gap="small", wrap=False):
            st.button(
                plain(entry.title),
                key=f"open-{entry.name}",
                icon=":material/chat_bubble:" if entry.name == talk.name else None,
                type="tertiary",
                width="stretch",  # as wide as the row allows: a long title leaves room to delete it
                wrap=False,
                on_click=go_to,
                args=(entry.name,),
            )
            st.button(
                "",
                key=f"delete-{entry.name}",
                icon=":material/delete:",
                type="tertiary",
                help=translate("Delete"),
                on_click=attempt,
                args=(_delete, model, number, entry),
            )
    if place >= len(entries[:_LISTED]):
        _draw_undo(deleted, talk, model)
    if words and not entries:
        st.caption(translate("Nothing found"))
    if len(entries) > _LISTED:
        st.caption(translate("{count} more: search for them", count=len(entries) - _LISTED))


def _delete(model: Model, place: int, entry: Entry) -> None:
    talk_named(model, entry.name).clear()
    st.session_state.deleted = place, entry


def _draw_undo(entry: Entry, talk: Talk, model: Model) -> None:
    """Offer to bring a deleted conversation back; the one shown has a button of its own."""
    if entry.name == talk.name:
        return
    deleted = talk_named(model, entry.name)
    if deleted.can_undo and not deleted.conversation.messages:
        st.button(
            translate("Undo: {title}", title=plain(entry.title)),
            key="undelete",
            icon=":material/undo:",
            wrap=False,
            on_click=attempt,
            args=(deleted.undo,),
        )


def _draw_system(talk: Talk) -> str | None:
    key = f"system-{talk.name}"

    def save() -> None:
        attempt(talk.set_system, st.session_state[key].strip() or None)

    text = st.text_area(
        translate("System prompt"), talk.conversation.system or "", key=key, on_change=save
    )
    return text.strip() or None


_LABELS = {
    "temperature": phrase("Temperature (0 is greedy)"),
    "top_p": phrase("Top p"),
    "top_k": phrase("Top k (0 is off)"),
    "repetition_penalty": phrase("Repetition penalty (1 is off)"),
    "max_tokens": phrase("Most tokens"),
    "seed": phrase("Seed"),
}
#: Least, most and step of each.
_RANGES: dict[str, tuple[float, float, float]] = {
    "temperature": (0.0, 5.0, 0.05),
    "top_p": (0.01, 1.0, 0.05),
    "top_k": (0, 1000, 1),
    "repetition_penalty": (0.5, 2.0, 0.05),
    "max_tokens": (1, 1_000_000, 64),
    "seed": (0, _LARGEST_SEED, 1),
}


def _draw_settings(model: Model) -> Mapping[str, Any]:
    """Draw the sampling parameters; give those that differ from the model's own."""
    chosen: dict[str, Any] = {}
    for name, label in _LABELS.items():
        least, most, step = _RANGES[name]
        chosen[name] = st.number_input(
            translate(label),
            min_value=least,
            max_value=most,
            value=model.defaults[name],
            step=step,
            placeholder=translate("any") if name == "seed" else translate("the model's own"),
            key=name,
        )
    stops = st.multiselect(
        translate("Stop before"), [], accept_new_options=True, placeholder="", key="stop"
    )
    chosen["stop"] = tuple(stops) or model.defaults["stop"]
    return {
        name: value
        for name, value in chosen.items()
        if value is not None and value != model.defaults[name]
    }


def _draw_export(talk: Talk) -> None:
    conversation = talk.conversation
    heading = title(conversation)
    files = {
        "JSON": ("json", transcript.to_json(*conversation)),
        "Markdown": ("md", transcript.to_markdown(heading, *conversation)),
    }
    with st.container(horizontal=True):
        for label, (ending, content) in files.items():
            st.download_button(
                label,
                content.encode(),
                f"{_file_name(heading)}.{ending}",
                icon=":material/download:",
                on_click="ignore",
                disabled=not conversation.messages,
                key=f"export-{ending}",
            )


def _file_name(heading: str) -> str:
    """Leave out of a title what no file system wants."""
    return re.sub(r'[\s<>:"/\\|?*\x00-\x1f.]+', "-", heading).strip("-") or "baichuan"


def _draw_import() -> None:
    round_number = st.session_state.setdefault("imports", 0)
    files = st.file_uploader(
        translate("Conversations, JSON or Markdown"),
        type=["json", "md"],
        accept_multiple_files=True,
        key=f"import-{round_number}",
    )
    if not files:
        return
    forget_trouble()
    for file in files:
        succeeds(_import, file.name, file.getvalue())
    st.session_state.imports += 1  # an uploader anew, without these files
    st.rerun()


def _import(file_name: str, content: bytes) -> None:
    """Save a file's conversation as a new one and show it."""
    read = transcript.from_markdown if file_name.lower().endswith(".md") else transcript.from_json
    try:
        conversation = read(content.decode("utf-8-sig"))
        if not conversation.messages:
            raise ValueError(translate("it has no messages"))
    except ValueError as error:
        raise PromptError(
            "{path} is no saved conversation ({reason}); {advice}.",
            path=file_name,
            reason=error,
            advice=translate("nothing was imported"),
        ) from error
    name = new_name()
    conversations().put(name, Transcript(*conversation))
    show_conversation(name)


def _draw_language() -> None:
    def choose() -> None:
        st.query_params["lang"] = st.session_state.language

    st.segmented_control(
        "语言 Language",
        list(LANGUAGES),
        format_func=LANGUAGES.__getitem__,
        required=True,
        label_visibility="collapsed",
        key="language",
        on_change=choose,
    )
