"""Answers that must be JSON: a schema becomes a constraint on tokens, in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baichuan.engine.sampling import Constraint
from baichuan.errors import UsageError
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.serve.grammar_process import (
    ERROR,
    MASK,
    MOVE,
    NUMBER,
    START,
    Vocabulary,
    serve_schema,
)

#: Seconds to wait: a fork ends itself long before, by the time that it has computed. Beyond, the
#: machine is too busy, or the process is stopped.
_SECONDS_TO_COMPILE = 60.0
_SECONDS_OF_A_MASK = 10.0
#: Schemas of which it is known what is wrong.
_MOST_REFUSALS = 256


def token_bytes(tokenizer: BaichuanTokenizer) -> list[bytes]:
    """Give what each id of the vocabulary adds to a text; nothing for control tokens."""
    pieces = tokenizer.sp_model
    return [_bytes_of(pieces, i) for i in range(pieces.vocab_size())]


def _bytes_of(pieces: Any, i: int) -> bytes:
    if pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i):
        return b""
    piece = str(pieces.id_to_piece(i))
    if pieces.is_byte(i):  # <0xE4>
        return bytes([int(piece[3:-1], 16)])
    return piece.replace("\u2581", " ").encode()


class JsonGrammars:
    """Makes constraints for one vocabulary, from any thread; also a context manager.

    At its end the process ends; constraints that are in use go on.

    Args:
        tokenizer: whose ids the network chooses among.
        vocabulary: number of logits; ids behind the tokenizer's are never allowed.
        never: ids that are no text, the role markers.
        eos: the id that ends an answer.
    """

    def __init__(
        self, tokenizer: BaichuanTokenizer, vocabulary: int, never: Iterable[int], eos: int
    ) -> None:
        self._size = vocabulary
        self._vocabulary = _vocabulary(tokenizer, never, eos)
        self._lock = threading.Lock()
        self._process: tuple[socket.socket, subprocess.Popen[bytes]] | None = None
        self._refusals: OrderedDict[str, str] = OrderedDict()

    def constraint(self, schema: dict[str, Any]) -> Callable[[], Constraint]:
        """Compile a schema; return what makes a constraint to it, one for each sequence.

        Raises:
            UsageError: the schema is wrong, too complex, or uses what llguidance does not know.
        """
        text = json.dumps(schema)
        digest = hashlib.sha256(text.encode()).hexdigest()
        reason = self._refusals.get(digest)
        if reason is None:
            try:
                connection, reason = self._compiled(text)
            except (EOFError, OSError):
                # Not kept: it may be the machine's fault.
                raise _refused("it takes too long to compile, or too much memory") from None
            if not reason:
                return partial(_Matcher, connection, self._size, count(), {})
            with self._lock:
                self._refusals[digest] = reason
                if len(self._refusals) > _MOST_REFUSALS:
                    self._refusals.popitem(last=False)
        raise _refused(reason)

    def __enter__(self) -> JsonGrammars:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._end()

    def _compiled(self, schema: str) -> tuple[Connection, str]:
        """Compile a schema in a fork; return the connection to it, and what is wrong or nothing."""
        process = self._process
        connection = self._connect()
        try:
            return connection, _reply(connection, schema)
        except (EOFError, OSError):
            if process is None or process[1].poll() is None:
                raise  # the fork ended itself
        connection = self._connect()  # what forks was killed
        return connection, _reply(connection, schema)

    def _connect(self) -> Connection:
        """Return a connection to a fresh fork."""
        if not hasattr(os, "fork"):  # on Windows a schema is compiled here, without limits of time
            ours, theirs = Pipe()
            serving = partial(serve_schema, theirs, self._vocabulary.tokenizer(), limited=False)
            threading.Thread(target=serving, daemon=True).start()
            return ours
        near, far = socket.socketpair()
        with far, self._lock:
            if self._process is not None and self._process[1].poll() is not None:
                self._end()  # it was killed
            if self._process is None:
                self._process = _start(self._vocabulary)
            socket.send_fds(self._process[0], [b"."], [far.fileno()])
        return Connection(near.detach())

    def _end(self) -> None:
        if self._process is not None:
            control, process = self._process
            control.close()
            process.wait()
            self._process = None


def _vocabulary(tokenizer: BaichuanTokenizer, never: Iterable[int], eos: int) -> Vocabulary:
    tokens = token_bytes(tokenizer)
    special = sorted({i for i, text in enumerate(tokens) if not text}.union(never))
    for i in special:
        tokens[i] = f"<special {i}>".encode()
    return Vocabulary(tokens, special, eos)


def _start(vocabulary: Vocabulary) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the process that forks."""
    near, far = socket.socketpair()
    with far:
        code = (
            f"import sys; sys.path = {sys.path!r}; "
            f"from baichuan.serve.grammar_process import main; main({far.fileno()})"
        )
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL)
    with Connection(os.dup(near.fileno())) as connection:
        connection.send(vocabulary)
    return near, process


def _reply(connection: Connection, schema: str) -> str:
    """Have a schema compiled; return what is wrong with it, or nothing.

    Raises:
        EOFError, OSError: the fork has ended, or does not answer.
    """
    connection.send_bytes(schema.encode())
    if not connection.poll(_SECONDS_TO_COMPILE):
        raise EOFError
    return connection.recv_bytes().decode()


class _Matcher:
    """A constraint whose masks another process computes, while the network computes the logits.

    Args:
        connection: to the fork of the schema, shared by the sequences of a request.
        size: number of logits.
        numbers: gives each sequence its number.
        arrived: replies that came while another sequence waited, by number.
    """

    def __init__(
        self,
        connection: Connection,
        size: int,
        numbers: Iterator[int],
        arrived: dict[int, bytes],
    ) -> None:
        self._connection, self._size, self._arrived = connection, size, arrived
        self._number = next(numbers)
        self._mask: Tensor | None = None
        self._ask(START)

    def allowed(self) -> Tensor:
        if self._mask is None:
            self._mask = self._receive()
        return self._mask

    def accept(self, token: int) -> None:
        self.allowed()  # which is on its way, and belongs to an earlier token
        self._ask(token)

    def _ask(self, token: int) -> None:
        self._mask = None
        with suppress(OSError):  # it has ended itself, which `_receive` notices
            self._connection.send_bytes(MOVE.pack(self._number, token))

    def _receive(self) -> Tensor:
        try:
            while self._number not in self._arrived:
                if not self._connection.poll(_SECONDS_OF_A_MASK):
                    raise EOFError
                reply = self._connection.recv_bytes()
                (number,) = NUMBER.unpack_from(reply)
                self._arrived[number] = reply[NUMBER.size :]
        except (EOFError, OSError):
            raise _refused("its masks take too long to compute, or too much memory") from None
        reply = self._arrived.pop(self._number)
        if reply.startswith(ERROR):
            raise _gave_up(reply[len(ERROR) :].decode())
        bits = np.frombuffer(reply, np.uint8, offset=len(MASK))
        bits = np.unpackbits(bits, count=self._size, bitorder="little")
        return torch.from_numpy(bits).bool()


def _gave_up(reason: str) -> UsageError:
    if reason.startswith("NoExtensionBias"):
        return UsageError(
            "No text satisfies the JSON schema; a $ref that never ends, for example. Correct it."
        )
    return _refused(reason)


def _refused(reason: str) -> UsageError:
    return UsageError(
        "The JSON schema cannot be used: {reason}. Give a schema that is simpler or correct.",
        reason=json.dumps(reason.partition("\n")[0].rstrip("."), ensure_ascii=False),
    )
