"""The page as an application: its settings, its headers, its cookie."""

import json
import re
import socket
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="needs streamlit: .[web]")

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from baichuan.errors import UsageError
from baichuan.web.app import PARTS, SETTINGS, free_port
from baichuan.web.session import BROWSER_COOKIE

CONFIG = Path(__file__).parents[3] / ".streamlit" / "config.toml"


def test_streamlit_run_has_the_same_settings():
    found, section = {}, ""
    for line in CONFIG.read_text().splitlines():
        if heading := re.fullmatch(r"\[(.+)\]", line):
            section = heading[1]
        elif line and not line.startswith("#"):
            name, value = line.split(" = ")
            found[f"{section}.{name}"] = json.loads(value)
    ours = {**SETTINGS}
    del ours["logger.hideWelcomeMessage"]  # the command says the address itself
    assert found == ours


def test_a_port_that_is_taken_is_followed_by_the_next():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 100
    assert free_port("127.0.0.1", 0) == 0
    with pytest.raises(UsageError, match=r"cannot listen at 192\.0\.2\.1"):
        free_port("192.0.2.1", port)


@pytest.fixture
def client():
    routes = [
        Route("/", lambda _: HTMLResponse("<html></html>")),
        Route("/script.js", lambda _: PlainTextResponse("1", media_type="text/javascript")),
    ]
    with TestClient(Starlette(routes=routes, middleware=PARTS["middleware"])) as client:
        yield client


def test_every_answer_has_the_policy(client):
    for path in ("/", "/script.js", "/absent"):
        headers = client.get(path).headers
        assert "img-src 'self' data: blob:" in headers["content-security-policy"]
        assert headers["x-dns-prefetch-control"] == "off"
        assert headers["referrer-policy"] == "no-referrer"


def test_a_browser_gets_one_cookie_with_the_page(client):
    assert "set-cookie" not in client.get("/script.js").headers
    cookie = client.get("/").headers["set-cookie"]
    assert re.match(rf"{BROWSER_COOKIE}=[0-9a-f]{{32}};", cookie)
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Secure" not in cookie  # by http, it would never come back
    assert "set-cookie" not in client.get("/").headers


def test_two_browsers_get_two(client):
    first = client.get("/").cookies[BROWSER_COOKIE]
    client.cookies.clear()
    assert client.get("/").cookies[BROWSER_COOKIE] != first
