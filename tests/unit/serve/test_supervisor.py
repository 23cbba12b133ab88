"""The model process seen from the HTTP process: one that hangs is started again."""

import asyncio
import os
import signal
import sys
import types

import psutil

from baichuan.serve import supervisor
from baichuan.serve.protocol import Encode, Encoded, Failure, Job, WorkerOptions
from baichuan.serve.supervisor import ModelProcess

PATIENCE = 300


async def until(holds):
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.05)


def stopped_by(action):
    """Send a signal to the model process."""
    (model,) = (p for p in psutil.Process().children() if "spawn_main" in " ".join(p.cmdline()))
    os.kill(model.pid, action)


async def ask(process, call):
    async with asyncio.timeout(PATIENCE):
        return await process.ask(call)


def test_a_process_that_hangs_is_started_again_and_its_requests_end(monkeypatch):
    # A new process runs the main module again, which a page's test may have replaced.
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    monkeypatch.setattr(supervisor, "_SECONDS_BETWEEN_PINGS", 0.1)
    monkeypatch.setattr(supervisor, "_SECONDS_OF_SILENCE", (1.0, 20.0))

    async def run():
        process = ModelProcess(WorkerOptions(None, {}, 2, 2, 2048), lambda reason: None)
        process.start()
        try:
            await until(lambda: process.responsive)
            nested = []
            for _ in range(100_000):
                nested = [nested]
            unsent = await ask(process, Job([nested]))
            assert isinstance(unsent, Failure) and unsent.kind == "internal"
            assert isinstance(await ask(process, Encode("Hello")), Encoded)
            stopped_by(signal.SIGSTOP)
            waiting = asyncio.create_task(ask(process, Encode("Hello")))
            await until(lambda: not process.responsive)
            assert isinstance(await waiting, Failure)
            await until(lambda: process.responsive)
            assert process.starts == 2
            assert isinstance(await ask(process, Encode("Hello")), Encoded)
        finally:
            await process.close()

    asyncio.run(run())
