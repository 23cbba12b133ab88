"""Connections, on real sockets, to a server whose event loop is the test's."""

import asyncio
import json
import logging
import resource
import socket
from contextlib import asynccontextmanager

import pytest
import uvicorn

from baichuan.serve.connections import limited
from baichuan.serve.logs import OncePerSecond
from baichuan.serve.run import http_config, listen

REQUEST = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"


class App:
    """Answers at once; /slow when told to, /large with more than any buffer holds."""

    def __init__(self):
        self.go = asyncio.Event()

    async def __call__(self, scope, receive, send):
        if scope["path"] == "/slow":
            await self.go.wait()
        body = b"x" * (1 << 25 if scope["path"] == "/large" else 2)
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(most=None, headers=60.0, reading=60.0):
    """Serve; yields the app, the server, and a function that connects and sends."""
    app, protocol = App(), limited(most)
    protocol.seconds_for_headers, protocol.seconds_for_reading = headers, reading
    server = uvicorn.Server(http_config(app, 0, protocol))
    listening = listen("127.0.0.1", 0)
    address = listening.getsockname()
    task = asyncio.create_task(server.serve(sockets=[listening]))
    opened = []

    async def connect(sent=b"", **options):
        before = server.server_state.connections.copy()
        opened.append(await asyncio.open_connection(*address, **options))
        while server.server_state.connections <= before:
            await asyncio.sleep(0)
        opened[-1][1].write(sent)
        return opened[-1]

    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield app, server, connect
    finally:
        for _, writer in opened:
            writer.transport.abort()
        server.should_exit = True
        await task


async def answer(stream):
    """Return status and body of the next answer."""
    head = await stream.readuntil(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ") for line in head.split(b"\r\n")[1:-2])
    if length := fields.get(b"content-length"):
        return int(head.split()[1]), await stream.readexactly(int(length))
    return int(head.split()[1]), await stream.read()


def test_accepted_sockets_send_at_once():
    async def main():
        async with serving() as (_, server, connect):
            await connect()
            (connection,) = server.server_state.connections
            accepted = connection.transport.get_extra_info("socket")
            return accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    assert asyncio.run(main())


@pytest.mark.parametrize("sent", [b"", b"G", REQUEST[:20], REQUEST % b"" + b"GET"])
def test_a_client_that_sends_no_request_is_let_go(sent):
    async def main():
        async with serving(headers=0.2) as (_, _, connect):
            reader, writer = await connect(sent)
            if sent.startswith(REQUEST % b""):
                assert (await answer(reader))[0] == 200

            async def dribble():
                while True:
                    await asyncio.sleep(0.05)
                    if sent:
                        writer.write(b"a")

            dribbling = asyncio.create_task(dribble())
            try:
                return await asyncio.wait_for(reader.read(), 30)
            finally:
                dribbling.cancel()

    last = asyncio.run(main())
    if not sent:
        assert last == b""
        return
    head, _, body = last.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["error"]["code"] == "request_timeout"


def test_a_kept_connection_and_a_long_answer_are_not_cut():
    async def main():
        async with serving(headers=0.2, reading=0.2) as (app, _, connect):
            reader, writer = await connect(REQUEST % b"slow")
            asyncio.get_running_loop().call_later(1, app.go.set)
            assert await answer(reader) == (200, b"xx")
            for _ in range(5):
                writer.write(REQUEST % b"")
                assert await answer(reader) == (200, b"xx")
                await asyncio.sleep(0.05)

    asyncio.run(main())


def test_a_client_that_reads_nothing_is_let_go():
    async def main():
        async with serving(reading=0.2) as (_, server, connect):
            await connect(REQUEST % b"large", limit=1024)
            for _ in range(3000):
                if not server.server_state.connections:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("it is still there")

    asyncio.run(main())


def test_a_client_in_time_takes_the_place_of_one_that_waits():
    async def main():
        async with serving(most=3) as (app, server, connect):
            asked, _ = await connect(REQUEST % b"slow")
            while not server.server_state.tasks:
                await asyncio.sleep(0)
            silent = [(await connect(sent))[0] for sent in (b"", b"GET", b"", b"")]
            assert len(server.server_state.connections) == 3
            assert [await reader.read() for reader in silent[:2]] == [b"", b""]
            served, _ = await connect(REQUEST % b"")
            assert await answer(served) == (200, b"xx")
            app.go.set()
            assert await answer(asked) == (200, b"xx")

    asyncio.run(main())


def test_where_all_are_answered_another_one_is_told_so():
    async def main():
        async with serving(most=2) as (app, server, connect):
            asked = [(await connect(REQUEST % b"slow"))[0] for _ in range(2)]
            while len(server.server_state.tasks) < 2:
                await asyncio.sleep(0)
            refused, _ = await connect(REQUEST % b"")
            status, body = await answer(refused)
            assert status == 503
            assert json.loads(body)["error"]["code"] == "too_many_connections"
            app.go.set()
            assert [await answer(reader) for reader in asked] == [(200, b"xx")] * 2

    asyncio.run(main())


@pytest.mark.parametrize(("descriptors", "most"), [(1024, 704), (256, 128), (1, 1)])
def test_the_limit_leaves_descriptors_free(descriptors, most, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert limited().most == most


def test_lines_of_one_kind_come_once_a_second():
    now = 0.0
    once = OncePerSecond(lambda: now)

    def passed(message, *args):
        record = logging.LogRecord("x", logging.INFO, "x.py", 1, message, args, None)
        return record.getMessage() if once.filter(record) else None

    assert passed("a %d", 1) == "a 1"
    assert [passed("a %d", n) for n in range(5)] == [None] * 5
    assert passed("b\nmore") == "b\nmore"
    assert passed("b\nother") is None
    now = 1.0
    assert passed("a %d", 7) == "a 7 (and 5 more like this)"
    assert passed("a %d", 8) is None
    now = 3.0
    assert passed("a %d", 9) == "a 9 (and 1 more like this)"
    now = 4.0
    assert passed("a %d", 9) == "a 9"
