"""What the page has the browser do once: show its end, copy a text.

Streamlit has no call for either. The scripts are written here; of a message nothing but a JSON
string goes into them.
"""

from __future__ import annotations

import json

import streamlit as st

#: Streamlit follows what is added below only while the end is in view. It takes note of a jump at
#: the second scroll event after the page has grown, and parts of the page are drawn late.
_SHOW_END = """
const main = document.getElementById("stMain");
const timers = [0, 150, 300, 600, 1000].map(delay => setTimeout(() => {
    main.scrollTop = main.scrollHeight;
    main.dispatchEvent(new Event("scroll"));
}, delay));
for (const moved of ["wheel", "pointerdown"])
    main.addEventListener(moved, () => timers.forEach(clearTimeout), { once: true, passive: true });
"""

#: Browsers have `navigator.clipboard` at HTTPS and loopback addresses alone.
_COPY = """
const text = %s;
const copySelected = () => {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
};
navigator.clipboard ? navigator.clipboard.writeText(text).catch(copySelected) : copySelected();
"""

#: Hide what a reader does not need: the menu's last line, which advertises, and a second Stop,
#: which ends a drawing of the page instead of the answer. Titles in the list begin at the left.
_STYLE = """<style>
[role=menu] + :has(.stMenuVersionCopyButton), [data-testid=stStatusWidget] { display: none }
[class*=st-key-open-] button > div { justify-content: flex-start }
</style>"""


def show_end() -> None:
    """Scroll to the newest message when the page is drawn next, and follow what comes."""
    _queue(_SHOW_END)


def copy(text: str) -> None:
    """Put a text into the clipboard when the page is drawn next."""
    _queue(_COPY % json.dumps(text).replace("<", "\\u003c"))


def _queue(script: str) -> None:
    st.session_state.setdefault("scripts", []).append(script)


def draw_scripts() -> None:
    """Put the queued scripts on the page; to be called once per drawing."""
    st.html(_STYLE)
    scripts = st.session_state.pop("scripts", [])
    number = st.session_state.scripts_run = st.session_state.get("scripts_run", 0) + len(scripts)
    if scripts:
        # The number makes it another element, else the browser would not run the same one twice.
        body = "".join(f"{{{script}}}" for script in scripts)
        st.html(f"<script>/* {number} */ {body}</script>", unsafe_allow_javascript=True)
