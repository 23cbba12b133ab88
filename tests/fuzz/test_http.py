"""Hostile requests: bodies of another shape at the app, and bytes that are hardly HTTP at a socket.

The model's side is the real one, with the demo model, on a thread of this process.
"""

import asyncio
import json
import logging
import pickle
import re

import httpx
import pytest
import torch
import uvicorn

import baichuan
from baichuan.serve.app import ApiOptions, make_app
from baichuan.serve.connections import limited
from baichuan.serve.protocol import Ready, WorkerOptions
from baichuan.serve.run import http_config, listen
from baichuan.serve.supervisor import ModelProcess
from baichuan.serve.worker import Worker
from tests.fuzz.harness import mutated, mutated_json, run_cases

CHAT, COMPLETIONS, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
TOOL = {"name": "f", "description": "x", "parameters": {"type": "object", "properties": {}}}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 3, "n": 1}
SAMPLING |= {"presence_penalty": 0.1, "frequency_penalty": 0.1, "repetition_penalty": 1.1}
SAMPLING |= {"stop": ["x", "yy"], "stream": False, "max_tokens": 1, "user": "u", "model": "demo"}
MESSAGES = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "你好"}]},
    {"role": "assistant", "content": None, "tool_calls": []},
    {"role": "tool", "tool_call_id": "c", "content": "5"},
    {"role": "user", "content": "hi"},
]
BODIES = [
    (CHAT, {"messages": MESSAGES, **SAMPLING, "logprobs": True, "top_logprobs": 2}),
    (CHAT, {"messages": MESSAGES[4:], "max_completion_tokens": 1, "metadata": {"a": "b"}}),
    (CHAT, {"messages": MESSAGES[:2], "tools": [{"type": "function", "function": TOOL}],
            "tool_choice": "auto", "max_tokens": 1, "stream": True,
            "stream_options": {"include_usage": True}}),
    (COMPLETIONS, {"prompt": ["a", "b"], **SAMPLING, "echo": True, "logprobs": 1}),
    (COMPLETIONS, {"prompt": [[5, 6], [7]], "max_tokens": 1, "best_of": 1}),
    (TOKENIZE, {"messages": MESSAGES}),
]  # fmt: skip
#: Values of the API's own words, beside those of the harness.
WORDS = ("user", "required", "none", {"type": "json_object"}, [5], [[5]], [10**9], ["x"] * 65)


class HereProcess(ModelProcess):
    """A model process that is a thread; what is sent to it is pickled all the same."""

    def __init__(self, demo, loop):
        super().__init__(WorkerOptions(None, {}, 4, 8), print)
        self.ready = Ready(192, 192, 1)
        self.worker = Worker(
            *demo, lambda replies: loop.call_soon_threadsafe(self._dispatch, replies), 4, 8, 192
        )

    def _send(self, number, call):
        self.worker.handle(number, pickle.loads(pickle.dumps(call)))


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.fixture(scope="module")
def app(loop):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the demo is small, and others compute beside
    process = HereProcess(baichuan.load(), loop)
    yield make_app(process, ApiOptions(["demo"], max_body=200_000))
    process.worker.__exit__()
    process._sender.shutdown()
    torch.set_num_threads(threads)


def check(status, body):
    """An answer is one, or OpenAI's error in a sentence."""
    if status == 200:
        return
    assert status in (400, 403, 404, 405, 408, 413, 429), (status, body[:300])
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert 0 < len(error["message"]) <= 500
    assert len(error["param"] or "") <= 100


def test_bodies(fuzz_cases, loop, app):
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=60
    )

    async def ask(path, content):
        headers = {"Content-Type": "application/json"}
        answer = await client.post(path, content=content, headers=headers)
        check(answer.status_code, answer.content)
        return answer.status_code

    def case(rng):
        path, body = rng.choice(BODIES)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            body = mutated_json(body, rng, WORDS)
        content = json.dumps(body).encode()
        if rng.random() < 0.2:
            content = mutated(content, rng)
        loop.run_until_complete(ask(path, content))

    run_cases(fuzz_cases // 2, case, name="http bodies")
    for path, body in BODIES:
        status = loop.run_until_complete(ask(path, json.dumps(body).encode()))
        assert status == 200, path
    loop.run_until_complete(client.aclose())


def request_bytes(rng):
    path, body = rng.choice(((CHAT, b'{"messages": 5}'), ("/health", b""), ("/v1/models", b"")))
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    if rng.random() < 0.3:
        lines[2] = "Transfer-Encoding: chunked"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    for header in ("Expect: 100-continue", "Connection: close", "Origin: null", "Upgrade: h2c"):
        if rng.random() < 0.2:
            lines.append(header)
    sent = "\r\n".join([*lines, "", ""]).encode() + body
    return mutated(sent * rng.choice((1, 1, 2)), rng)


def test_bytes(fuzz_cases, loop, app, caplog):
    """Each answer is well formed, no error reaches the log, and the next client is answered."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(http_config(app, 9, limited()))

    async def send(sent):
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        while not server.server_state.connections:
            await asyncio.sleep(0)
        (connection,) = server.server_state.connections
        writer.write(sent)
        for _ in range(20):  # so that the bytes are there
            await asyncio.sleep(0)
        while connection in server.server_state.connections and (
            connection not in connection.waiting
        ):
            await asyncio.sleep(0)
        writer.write_eof()
        answers = await reader.read()
        writer.close()
        while server.server_state.connections:
            await asyncio.sleep(0)
        return answers

    def case(rng):
        answers = loop.run_until_complete(send(request_bytes(rng)))
        for answer in re.split(rb"HTTP/1\.1 (?=[0-9]{3} )", answers)[1:]:
            head, _, body = answer.partition(b"\r\n\r\n")
            if not head.startswith(b"100"):
                check(int(head[:3]), body)

    started = loop.create_task(server._serve([listening]))
    caplog.set_level(logging.ERROR)
    try:
        run_cases(fuzz_cases // 2, case, name="http bytes")
        answers = loop.run_until_complete(send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        assert answers.startswith(b"HTTP/1.1 200")
    finally:
        server.should_exit = True
        loop.run_until_complete(started)
    assert [record.getMessage() for record in caplog.records] == []
