"""The web page by `streamlit run web_demo.py`, as in 2023; `baichuan web` does the same."""

from streamlit import App

from baichuan.web.app import PAGE, PARTS

app = App(PAGE, **PARTS)
