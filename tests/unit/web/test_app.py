"""The page as an application: its settings, its headers, its cookie."""

import json
import re
import socket
from pathlib import Path

import pytest

pytest.importorskip("streamlit", reason="needs streamlit: .[web]")

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from baichuan.errors import UsageError
from baichuan.web.app import PARTS, SETTINGS, free_port
from baichuan.web.hosts import allowed_hosts, is_loopback
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
def options(monkeypatch):
    """Streamlit's options that say who may come, as `baichuan web` sets them."""
    options = {
        "server.address": "127.0.0.1",
        "server.allowedHosts": SETTINGS["server.allowedHosts"],
        "server.corsAllowedOrigins": [],
        "server.enableCORS": True,
    }
    monkeypatch.setattr("streamlit.get_option", options.__getitem__)
    return options


async def accept(websocket):
    await websocket.accept()
    await websocket.close()


@pytest.fixture
def client(options):
    routes = [
        Route("/", lambda _: HTMLResponse("<html></html>")),
        Route("/script.js", lambda _: PlainTextResponse("1", media_type="text/javascript")),
        WebSocketRoute("/stream", accept),
    ]
    app = Starlette(routes=routes, middleware=PARTS["middleware"])
    with TestClient(app, base_url="http://localhost:8501") as client:
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


def opened(client, **headers):
    """Say whether a WebSocket with these headers is accepted."""
    try:
        with client.websocket_connect("/stream", headers=headers):
            return True
    except WebSocketDisconnect:
        return False


OURS = ["localhost", "LOCALHOST:8501", "localhost.", "127.0.0.1:8501", "[::1]:8501", "[::1]"]
FOREIGN = [
    *("evil.example", "evil.example:8501", "localhost.evil.example", "127.0.0.1.evil.example"),
    *("127.0.0.2", "192.168.0.1", "[::2]", "localhost@evil.example", "evil.example\\@localhost"),
    *("localhost/", "localhost:x", "", "*"),
]


@pytest.mark.parametrize("listed", [True, False], ids=["listed", "by the address"])
@pytest.mark.parametrize("host", OURS + FOREIGN)
def test_a_name_that_was_led_here_is_refused(client, options, host, listed):
    if not listed:  # run without config.toml
        options["server.allowedHosts"] = []
    for path in ("/", "/script.js", "/absent"):
        answer = client.get(path, headers={"host": host})
        assert (answer.status_code == 403) == (host in FOREIGN)
        assert "content-security-policy" in answer.headers
    if host in FOREIGN:
        assert "served are: localhost, 127.0.0.1, ::1" in answer.text
    assert opened(client, host=host) == (host in OURS)


def test_a_page_of_another_origin_opens_no_websocket(client, options):
    host = "localhost:8501"
    assert opened(client, host=host)
    assert opened(client, host=host, origin="http://localhost:8501")
    foreign = ("http://evil.example", "http://localhost:3000", "http://127.0.0.1:8501", "null")
    for origin in foreign:
        assert not opened(client, host=host, origin=origin)
    options["server.corsAllowedOrigins"] = ["http://evil.example"]  # Streamlit compares
    assert opened(client, host=host, origin="http://evil.example")


def test_on_a_network_every_name_is_served_and_other_origins_are_not(client, options):
    options.update({"server.address": "0.0.0.0", "server.allowedHosts": []})
    assert client.get("/", headers={"host": "box.example:8501"}).status_code == 200
    assert opened(client, host="box.example", origin="https://box.example")
    assert not opened(client, host="box.example", origin="https://evil.example")
    options["server.allowedHosts"] = ["*.example"]
    assert opened(client, host="box.example")
    assert not opened(client, host="example.org")


def test_addresses_of_this_machine_alone():
    for address in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert is_loopback(address)
        assert {"localhost", "127.0.0.1", "::1", address} == {*allowed_hosts(address)}
    for address in (None, "", "0.0.0.0", "::", "192.168.0.1", "box.example"):
        assert not is_loopback(address)
        assert allowed_hosts(address) == []
