"""What a server must survive: bad requests, strangers, people who leave, and too many at once."""

import contextlib
import json
import random
import socket
import threading
import time

import httpx
import pytest

from tests.e2e.serving import Server

KEYS = ["first-key", "schlüssel-二"]
HEADERS = {"Authorization": f"Bearer {KEYS[0]}"}
CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "世界上第二高的山峰是哪座"}]
ENDLESS = {"messages": QUESTION, "max_tokens": 900, "temperature": 9.0, "seed": 1, "stream": True}
WHOLE = {**ENDLESS, "stream": False}
MAX_BODY = 30_000


@pytest.fixture(scope="module")
def server():
    keys = [option for key in KEYS for option in ("--api-key", key)]
    limits = ["--max-body", str(MAX_BODY), "--max-batch", "2", "--max-queue", "2"]
    limits += ["--cache-tokens", "4096"]
    limits += ["--allow-origin", "http://page.example", "--allow-host", "api.example"]
    with Server(*keys, *limits, descriptors=256) as server:
        server.wait_until_ready()
        server.http.headers.update(HEADERS)
        yield server


@pytest.fixture(autouse=True)
def nothing_left(server):
    yield
    server.wait_until_idle()
    figures = server.metrics()
    assert figures["baichuan_kv_tokens"] == 0
    assert figures["baichuan_kv_tokens_kept"] <= figures["baichuan_kv_tokens_limit"] == 4096


def error_of(response):
    """Check the shape of an error; give what it says."""
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    return error


BAD_BODIES = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'{"messages": "hello"}',
    b'{"messages": []}',
    b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    b"\xff\xfe\x00",
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"messages": [{"role": "\\ud800", "content": "x"}]}',
    b"[" * 20_000,
    b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_bodies_that_are_none(server, body):
    headers = {"Content-Type": "application/json"}
    response = server.http.post(CHAT, content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert error_of(response)["type"] == "invalid_request_error"


def test_a_forgotten_header_is_named(server):
    content = json.dumps({"messages": QUESTION})
    response = server.http.post(CHAT, content=content)
    assert response.status_code == 400
    assert "Content-Type: application/json" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", v) for v in (-1, "0.5", 1e400, 1e-9, True, [], float("nan"))),
        *(("max_tokens", v) for v in (0, -1, 1.5, "4", 10**6, 10**400)),
        *(("n", v) for v in (0, 17, "2", 10**9)),
        *(("seed", v) for v in (2**70, 1.5)),
        *(("top_p", v) for v in (0, 1.1)),
        *(("stop", v) for v in (["x"] * 17, 5, "x" * 2000)),
        *(("presence_penalty", v) for v in (3, float("nan"))),
        *(("top_logprobs", v) for v in (21, -1)),
        ("logit_bias", {"5": 100}),
        ("functions", [{"name": "f"}]),
        ("stream", "yes"),
        ("response_format", {"type": "xml"}),
        ("response_format", {"type": "json_schema"}),
        ("tools", [{"type": "function", "function": {"name": "not a name"}}]),
        ("tool_choice", "required"),
        ("messages", [{"role": "king", "content": "x"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("top_logprobs", 3),
        ("continue_final_message", True),
        ("add_generation_prompt", False),
    ],
)
def test_values_that_cannot_be(server, field, value):
    body = json.dumps({"messages": QUESTION, "max_tokens": 4, field: value})
    headers = {"Content-Type": "application/json"}
    response = server.http.post(CHAT, content=body, headers=headers)
    assert response.status_code == 400, response.text
    assert error_of(response)["message"].endswith(".")


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize(
    ("field", "sentence"),
    [
        ({"guided_json": {"type": "object"}}, "guided_json is not supported and would be without"),
        ({"best_of": 3}, "best_of: Input should be 1."),
        ({"stop_token_ids": [5]}, "stop_token_ids is not supported"),
        ({"max_new_tokens": 5}, "no field max_new_tokens; did you mean max_tokens?"),
        ({"temprature": 0.5}, "did you mean temperature?"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format"),
    ],
)
def test_a_field_that_would_be_without_effect_is_named(server, path, field, sentence):
    own = {"messages": QUESTION} if path == CHAT else {"prompt": "x"}
    response = server.http.post(path, json={**own, "max_tokens": 2, **field})
    assert response.status_code == 400, response.text
    assert sentence in error_of(response)["message"]
    assert error_of(response)["param"].startswith(next(iter(field)))


@pytest.mark.parametrize(
    "change",
    [
        *({"prompt": prompt} for prompt in ([], [-1], [10**9], [[]], 5, ["x", 5], "", ["x"] * 65)),
        {"prompt": [5], "echo": True},
        {"prompt": "x", "suffix": "y"},
        {"prompt": "x", "echo": None, "messages": QUESTION},
    ],
)
def test_completions_that_cannot_be(server, change):
    response = server.http.post("/v1/completions", json={"max_tokens": 2, **change})
    assert response.status_code == 400, response.text
    error_of(response)


def test_a_prompt_beyond_the_context(server):
    long = [{"role": "user", "content": "山峰 " * 2000}]
    error = error_of(server.http.post(CHAT, json={"messages": long}))
    assert error["code"] == "context_length_exceeded"
    assert "1024" in error["message"]


def test_what_is_not_there(server):
    assert error_of(server.http.get("/v1/nothing"))["message"].startswith("There is no /v1/nothing")
    response = server.http.get(CHAT)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    error_of(response)
    response = server.http.post(CHAT, json={"model": "\u4e00other", "messages": QUESTION})
    assert (response.status_code, error_of(response)["param"]) == (404, "model")


def test_keys(server):
    for key in KEYS:
        given = {"Authorization": f"bearer {key}".encode()}
        assert httpx.get(f"{server.url}/v1/models", headers=given).status_code == 200
    for given in ({}, {"Authorization": "Bearer second"}, {"Authorization": f"Basic {KEYS[0]}"}):
        for path in ("/v1/models", "/tokenize", CHAT, "/v1/nothing"):
            response = httpx.post(f"{server.url}{path}", headers=given, content=b"x" * 99)
            assert response.status_code == 401
            assert error_of(response)["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_other_pages_may_not_call(server):
    asked = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{server.url}{CHAT}", headers=asked)
    assert answer.headers["access-control-allow-origin"] == "http://page.example"
    asked["Origin"] = "http://other.example"
    refused = httpx.options(f"{server.url}{CHAT}", headers=asked)
    assert (refused.status_code, error_of(refused)["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in refused.headers
    for origin, status in (("http://page.example", 401), (server.url, 401), ("null", 403)):
        answer = httpx.post(f"{server.url}{CHAT}", headers={"Origin": origin})
        assert answer.status_code == status
        assert ("access-control-allow-origin" in answer.headers) == ("page" in origin)


def test_a_name_led_here_by_a_stranger_gets_nothing(server):
    paths = ("/v1/models", CHAT, "/metrics", "/health", "/docs", "/openapi.json", "/nothing")
    for path in paths:
        for method in ("GET", "POST", "OPTIONS"):
            headers = {**HEADERS, "Host": "evil.example:8000", "Origin": "http://evil.example:8000"}
            refused = httpx.request(method, f"{server.url}{path}", headers=headers)
            assert refused.status_code == 403
            assert error_of(refused)["code"] == "host_not_allowed"
            assert "--allow-host" in error_of(refused)["message"]
    for host in ("api.example", "API.example.:443", "localhost:1"):
        answer = httpx.get(f"{server.url}/v1/models", headers={**HEADERS, "Host": host})
        assert answer.status_code == 200


def test_large_bodies(server):
    large = json.dumps({"messages": [{"role": "user", "content": "x" * MAX_BODY}]}).encode()
    for content in (large, (large[i : i + 1000] for i in range(0, len(large), 1000))):
        response = server.http.post(CHAT, content=content)
        assert (response.status_code, error_of(response)["code"]) == (413, "request_too_large")


def test_whoever_leaves_frees_the_engine(server):
    """In a stream, while waiting for a whole answer, and in the queue."""
    begun = server.metrics()["baichuan_requests_cancelled_total"]
    with server.http.stream("POST", CHAT, json=ENDLESS) as answer:
        next(answer.iter_lines())
    server.wait_until_idle()
    with pytest.raises(httpx.ReadTimeout):
        server.http.post(CHAT, json=WHOLE, timeout=0.2)
    server.wait_until_idle()
    with contextlib.ExitStack() as leaving:
        for _ in range(2):
            leaving.enter_context(server.http.stream("POST", CHAT, json=ENDLESS))
        with pytest.raises(httpx.ReadTimeout):
            server.http.post(CHAT, json=ENDLESS, timeout=0.1)
    server.wait_until_idle()
    assert server.metrics()["baichuan_requests_cancelled_total"] == begun + 5
    server.wait_for_line('"disconnected": true')


def test_a_full_queue_says_when_to_come_back(server):
    with contextlib.ExitStack() as leaving:
        for _ in range(2):
            answer = leaving.enter_context(server.http.stream("POST", CHAT, json=ENDLESS))
            assert answer.status_code == 200
        many = {"messages": QUESTION, "n": 3}
        response = server.http.post(CHAT, json=many)
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) > 0
        assert error_of(response)["code"] == "queue_full"
    server.wait_until_idle()
    assert server.http.post(CHAT, json={"messages": QUESTION}).status_code == 200


def test_slow_readers_hold_up_nobody(server):
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({**ENDLESS, "max_tokens": 300, "logprobs": True, "top_logprobs": 20}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: application/json\r\nAuthorization: {HEADERS['Authorization']}\r\n\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(head.encode() + body)
        assert slow.recv(10).startswith(b"HTTP/1.1")
        server.wait_until_idle()  # the engine is done, whatever is read
        assert server.http.post(CHAT, json={"messages": QUESTION}).status_code == 200


def test_more_silent_clients_than_descriptors(server):
    """They make room for those who ask, and fill no log."""
    host, port = server.url.removeprefix("http://").split(":")
    lines = len(server.log)
    with contextlib.ExitStack() as silent:
        for sent in [b"", b"GET / HTTP/1.1\r\n"] * 200:
            client = silent.enter_context(socket.create_connection((host, int(port))))
            with contextlib.suppress(OSError):  # it had to make room before
                client.sendall(sent)
        for _ in range(3):
            assert httpx.get(f"{server.url}/health").status_code == 200
            assert httpx.post(f"{server.url}{CHAT}").status_code == 401
    new = server.log[lines:]
    assert not any("Traceback" in line for line in new), "\n".join(new)
    assert len(new) < 60
    server.wait_for_line("connections; the one that sent nothing for longest is closed", lines)


def test_bytes_that_are_no_request(server):
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\n".encode()
    keyed = head + f"Authorization: {HEADERS['Authorization']}\r\n".encode()
    lines = len(server.log)
    for sent in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9,
        b"GET /health HTTP/1.1\r\n\r\n",
        head + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        keyed + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000,
    ):
        with socket.create_connection((host, int(port))) as client:
            client.sendall(sent)
            answer = b"".join(iter(lambda client=client: client.recv(9999), b""))
        top, _, body = answer.partition(b"\r\n\r\n")
        assert top.startswith(b"HTTP/1.1 400"), answer
        assert json.loads(body)["error"]["message"] == "This is not a valid HTTP/1.1 request."
    server.wait_until_idle()
    assert not any("Traceback" in line for line in server.log[lines:])


def test_random_faults_leave_nothing(server):
    """Half of the requests leave early, the others are odd or right; no 5xx, nothing stays."""
    chance = random.Random(0)
    statuses = []

    def send(kind):
        gone = contextlib.suppress(httpx.TimeoutException)
        with gone, httpx.Client(base_url=server.url, headers=HEADERS) as http:
            if kind < 0.4:
                http.post(CHAT, json=WHOLE, timeout=0.01 + kind / 4)
            elif kind < 0.5:
                with http.stream("POST", CHAT, json=ENDLESS) as answer:
                    for _ in zip(answer.iter_lines(), range(int(kind * 20)), strict=False):
                        pass
            elif kind < 0.8:
                body, headers = chance.choice(BAD_BODIES), {"Content-Type": "application/json"}
                statuses.append(http.post(CHAT, content=body, headers=headers).status_code)
            else:
                asked = {"messages": QUESTION, "max_tokens": 5}
                statuses.append(http.post(CHAT, json=asked).status_code)

    for _ in range(15):
        threads = [threading.Thread(target=send, args=(chance.random(),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(statuses) <= {200, 400, 429}
    assert {200, 400} <= set(statuses)


def test_too_slow_an_answer():
    with Server("--timeout", "0.4") as server:
        server.wait_until_ready()
        began = time.monotonic()
        response = server.http.post(CHAT, json={**WHOLE, "n": 8})
        assert time.monotonic() - began >= 0.4
        assert (response.status_code, error_of(response)["code"]) == (504, "timeout")
        with server.http.stream("POST", CHAT, json=ENDLESS) as answer:
            lines = list(answer.iter_lines())
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        server.wait_until_idle()


#: Each is small, and stopped the server for everybody or killed the model process.
COSTLY = {
    "patterns": {
        "allOf": [{"type": "string", "pattern": f"(a|b)*a(a|b){{{i}}}"} for i in range(20)]
    },
    "a constant": {"const": "x" * 5_000},
    "nesting": json.loads('{"items":' * 90 + "{}" + "}" * 90),
}


@pytest.mark.parametrize("door", ["response_format", "tools"])
@pytest.mark.parametrize("schema", COSTLY.values(), ids=COSTLY)
def test_a_costly_schema_is_refused_while_others_are_answered(server, schema, door):
    if door == "tools":
        function = {"name": "f", "parameters": {"type": "object", "properties": {"a": schema}}}
        asked = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    else:
        named = {"name": "n", "schema": schema}
        asked = {"response_format": {"type": "json_schema", "json_schema": named}}
    starts = server.metrics()["baichuan_model_starts_total"]
    with server.http.stream("POST", CHAT, json={**ENDLESS, "max_tokens": 300}) as stream:
        lines = stream.iter_lines()
        next(lines)
        refused = server.http.post(CHAT, json={"messages": QUESTION, **asked}, timeout=300)
        assert refused.status_code == 400, refused.text
        assert "schema" in error_of(refused)["message"]
        assert server.http.get("/health").status_code == 200
        assert "data: [DONE]" in list(lines)
    assert server.metrics()["baichuan_model_starts_total"] == starts
