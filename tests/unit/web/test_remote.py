"""A server that answers instead of a model: the page trusts nothing of what it sends."""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("streamlit", reason="needs streamlit: .[web]")

from baichuan.errors import BaichuanError, UsageError
from baichuan.transcript import Transcript
from baichuan.web import remote
from baichuan.web.answering import Answer
from baichuan.web.remote import RemoteModel

ASKED = Transcript("be brief", [{"role": "user", "content": "hello"}])
MODELS = json.dumps({"data": [{"id": "m"}]}).encode()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer(self.server.models)

    def do_POST(self):
        self.server.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(self.server.events)

    def _answer(self, answer):
        status, headers, pieces = answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in pieces:
                self.wfile.write(piece)
        except ConnectionError:
            self.server.left.set()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def listening():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server(listening):
    listening.models, listening.left = (200, {}, [MODELS]), threading.Event()
    listening.url = f"http://127.0.0.1:{listening.server_port}"
    return listening


def event(**delta):
    return b"data: %s\n\n" % json.dumps({"choices": [{"delta": delta}]}).encode()


def answered(server, *pieces, status=200, headers=None):
    """Ask, read the whole answer as the page does, and return it."""
    server.events = status, headers or {}, pieces
    answer = Answer(ASKED, RemoteModel(server.url).answer(ASKED, {"top_k": 3}), lambda _: None)
    assert answer.wait(60)
    return answer


def test_an_answer_with_its_usage(server):
    end = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}
    more = [b"data: %s\r\n\r\n" % json.dumps(x).encode() for x in (end, usage)]
    answer = answered(server, b": comment\n\n", event(content="你"), event(content="好"), *more)
    assert (answer.text, answer.error, answer.finish_reason) == ("你好", None, "length")
    assert (answer.figures.tokens, answer.figures.prompt_tokens) == (5, 7)
    assert server.asked["model"] == "m"
    assert server.asked["messages"][0] == {"role": "system", "content": "be brief"}
    assert (server.asked["top_k"], server.asked["stream"]) == (3, True)


def test_halves_of_a_character(server, caplog):
    pieces = [event(content=text) for text in ("a\ud83d", "\ude00b", "\ud83d", "c", "\udc00")]
    answer = answered(server, *pieces)
    assert (answer.text, answer.error) == ("a😀b\ufffdc\ufffd", None)
    assert caplog.records == []  # which a traceback would be in


HOSTILE = {
    "no JSON": [b"data: {\n\n"],
    "no UTF-8": [b"data: \xff\n\n"],
    "nested": [b"data: " + b"[" * 100_000 + b"\n\n"],
    "a list": [b"data: [1]\n\n"],
    "a number": [b"data: 1\n\n"],
    "choices is a table": [b'data: {"choices": {"a": 1}}\n\n'],
    "choices is text": [b'data: {"choices": "x"}\n\n'],
    "delta is text": [b'data: {"choices": [{"delta": "x"}]}\n\n'],
    "content is a list": [event(content=[1])],
    "content is a number": [event(content=5)],
    "finish_reason is a table": [b'data: {"choices": [{"finish_reason": {"a": 1}}]}\n\n'],
    "usage is text": [b'data: {"choices": [], "usage": "x"}\n\n'],
    "tokens are text": [b'data: {"choices": [], "usage": {"completion_tokens": "x"}}\n\n'],
    "a line without end": [b"x" * 65_536] * 64,
}


@pytest.mark.parametrize("pieces", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_is_no_answer_is_a_sentence(server, pieces, caplog):
    answer = answered(server, event(content="said"), *pieces)
    assert answer.text == "said"
    assert "did not answer as OpenAI's protocol says" in answer.error
    assert len(answer.error) <= 500
    assert caplog.records == []


def test_an_answer_that_never_ends_is_cut(server, monkeypatch):
    monkeypatch.setattr(remote, "_MOST_TEXT", 10_000)
    answer = answered(server, *[event(content="word " * 100)] * 100_000)
    assert "longer than 10,000 characters" in answer.error
    assert 9_000 < len(answer.text) <= 10_000
    assert server.left.wait(60)  # the connection is closed


def test_events_without_text_end_as_well(server, monkeypatch):
    monkeypatch.setattr(remote, "_MOST_BYTES", 100_000)
    assert "more than 100,000 bytes" in answered(server, *[event()] * 100_000).error


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, b'{"error": {"message": "too\\u001b[2J long"}}', r"400 too\x1b[2J long"),
        (401, b'{"error": "no"}', "401 no"),
        (500, b"<html>", "500 Internal Server Error"),
        (500, b'{"error": {"message": "%s"}}' % (b"x" * 100_000), "500 xxx"),
        (500, b"x" * (1 << 22), "500 Internal"),
    ],
)
def test_a_refusal_is_a_sentence(server, status, body, said):
    error = answered(server, body, status=status).error
    assert f"127.0.0.1:{server.server_port}/v1 says: " in error
    assert said in error
    assert len(error) <= 500


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(server, status):
    """To a file, or with the key to another host."""
    for target in ("file:///etc/passwd", f"{server.url}/elsewhere"):
        answer = answered(server, status=status, headers={"Location": target})
        assert f"says: {status}" in answer.error
        assert answer.text == ""


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate"])
def test_nothing_is_unpacked(server, coding):
    bomb = gzip.compress(b"data: " + b"0" * (1 << 24))
    assert "is compressed" in answered(server, bomb, headers={"Content-Encoding": coding}).error
    server.models = 200, {"Content-Encoding": coding}, [gzip.compress(MODELS)]
    with pytest.raises(BaichuanError, match="is compressed"):
        RemoteModel(server.url)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b"{}", b'{"data": 5}', b'{"data": {"id": 1}}', b'{"data": [5]}'),
        *(b'{"data": [{"id": 5}]}', b'{"data": [{}]}', b"\xff", b"[" * 100_000, b"x" * (1 << 22)),
    ],
)
def test_a_list_of_models_that_is_none(server, body):
    server.models = 200, {}, [body]
    with pytest.raises(BaichuanError, match="as OpenAI's protocol says") as refusal:
        RemoteModel(server.url)
    assert len(str(refusal.value)) <= 500


def test_a_list_that_comes_byte_by_byte(server, monkeypatch):
    def slowly():
        while not server.left.is_set():
            time.sleep(0.05)
            yield b" "

    monkeypatch.setattr(remote, "_PATIENCE", 1)
    server.models = 200, {}, slowly()
    with pytest.raises(BaichuanError, match="cannot be reached"):
        RemoteModel(server.url)
    server.left.set()


def test_a_long_name_is_cut(server):
    server.models = 200, {}, [json.dumps({"data": [{"id": "m" * 5_000}]}).encode()]
    assert len(RemoteModel(server.url).name) < 200


@pytest.mark.parametrize("address", ["file:///etc/passwd", "ftp://host", "data:,x", "localhost:1"])
def test_an_address_of_another_kind(address):
    with pytest.raises(UsageError, match="begins with http"):
        RemoteModel(address)
