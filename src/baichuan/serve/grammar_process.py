"""A process in which JSON schemas become masks of tokens, by llguidance: a fork for each schema.

What a schema costs cannot be told from its size: a few patterns compile for hours, and a chain of
references overflows the stack. So the model process leaves it to this one, which holds the
vocabulary and forks. A fork has limits of time and memory, and whatever happens in it happens to
the requests of its schema alone. Imports no torch, so that it starts at once.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

#: What is asked for: the next mask of a sequence, once it has taken a token; `START` takes none.
MOVE = struct.Struct("<ii")
START = -1
#: How a reply begins: with the number of the sequence, and what it is.
NUMBER = struct.Struct("<i")
MASK, ERROR = b"m", b"e"

#: Seconds of a processor: to compile a schema, for one mask, for all masks together, and of those
#: for each token. An ordinary schema takes some 10 ms, and 1 ms for a mask. The engine waits for
#: masks, so what one request may take of its time is bounded in all.
_SECONDS_TO_COMPILE = 3.0
_SECONDS_OF_A_MASK = 0.3
_SECONDS_OF_MASKS = 0.5
_SECONDS_OF_A_TOKEN = 0.005
#: Bytes that a fork may allocate.
_MEMORY = 1 << 29

_OPTIONS: JsonCompileOptions = {
    # White space as Python's `json.dumps` puts it. Free to put any, a model that is not sure how
    # to go on fills the whole answer with it.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # What it cannot enforce becomes a warning, which `_check_warnings` judges.
    "coerce_one_of": True,
    "lenient": True,
}
#: A `format` is an annotation (JSON Schema 2020-12, validation, 7.2.1); a `oneOf` whose branches
#: may overlap is enforced as `anyOf`.
_HARMLESS = ("Unknown format:", "oneOf not fully supported")
#: What a schema may cost: some 40 ms to read and 15 ms per token by the library's own figures.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=2_000_000, step_lexer_fuel=200_000, max_grammar_size=100_000
)


@dataclass(frozen=True)
class Vocabulary:
    """A vocabulary as llguidance wants to see it.

    Attributes:
        tokens: bytes of each id.
        special_token_ids: ids that no text contains.
        eos_token_id: the id that ends an answer.
    """

    tokens: list[bytes]
    special_token_ids: list[int]
    eos_token_id: int
    bos_token_id: None = None

    def __post_init__(self) -> None:
        spoken = set(range(len(self.tokens))).difference(self.special_token_ids)
        ids = {self.tokens[i]: i for i in sorted(spoken, reverse=True)}
        object.__setattr__(self, "_ids", ids)
        object.__setattr__(self, "_longest", max(map(len, ids)))

    def __call__(self, text: bytes) -> list[int]:
        """Cut what the grammar forces into the longest tokens; there is one for each byte.

        sentencepiece's own cut would put a space before it and normalise it: other bytes.
        """
        ids: dict[bytes, int] = self._ids  # type: ignore[attr-defined]
        longest: int = self._longest  # type: ignore[attr-defined]
        cut = []
        while text:
            ends = range(min(longest, len(text)), 0, -1)
            end = next(end for end in ends if text[:end] in ids)
            cut.append(ids[text[:end]])
            text = text[end:]
        return cut

    def tokenizer(self) -> LLTokenizer:
        """Return llguidance's tokenizer."""
        return LLTokenizer(TokenizerWrapper(self), slices=LLTokenizer.json_slices())


def serve_schema(connection: Connection, tokenizer: LLTokenizer, *, limited: bool) -> None:
    """Compile one schema and compute the masks that are asked for, until the other end is closed.

    Args:
        connection: the schema arrives first, as JSON; the reply is empty, or says what is wrong.
            Each `MOVE` that follows is answered by the sequence's `NUMBER` and by `MASK` with a bit
            for each token, lowest first, or by `ERROR` and a reason.
        tokenizer: of the vocabulary.
        limited: end this process when the limits of time are reached.
    """
    clock = _Clock(limited)
    with suppress(EOFError, OSError):
        with clock.at_most(_SECONDS_TO_COMPILE):
            matcher, reason = _compile(connection.recv_bytes().decode(), tokenizer)
        connection.send_bytes(reason.encode())
        if matcher is None:
            return
        sequences: dict[int, LLMatcher] = {}
        began, moves = time.process_time(), 0
        while True:
            sequence, token = MOVE.unpack(connection.recv_bytes())
            moves += 1
            spent = time.process_time() - began
            if limited and spent > _SECONDS_OF_MASKS + moves * _SECONDS_OF_A_TOKEN:
                late = ERROR + b"its masks take too long to compute"
                connection.send_bytes(NUMBER.pack(sequence) + late)
                return
            with clock.at_most(_SECONDS_OF_A_MASK):
                if token == START:
                    sequences[sequence] = matcher.deep_copy()
                reply = _mask(sequences[sequence], token, tokenizer.eos_token)
            connection.send_bytes(NUMBER.pack(sequence) + reply)


def _compile(schema: str, tokenizer: LLTokenizer) -> tuple[LLMatcher | None, str]:
    """Return a matcher, or None and what is wrong with the schema."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
    except ValueError as error:
        return None, str(error)
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
    if matcher.is_error():
        return None, matcher.get_error()
    ignored = _unenforced(matcher.get_grammar_warnings())
    return (None, ignored) if ignored else (matcher, "")


def _unenforced(warnings: Iterable[str]) -> str:
    """Return the first keyword that would not be enforced, or nothing."""
    return next((warning for warning in warnings if not warning.startswith(_HARMLESS)), "")


def _mask(matcher: LLMatcher, token: int, eos: int) -> bytes:
    if token != START and not matcher.is_stopped():
        matcher.consume_token(token)
    mask = b"" if matcher.is_stopped() else matcher.compute_bitmask()
    if matcher.is_error():
        return ERROR + matcher.get_error().encode()
    if matcher.is_stopped():  # the answer is complete
        mask = (1 << eos).to_bytes(eos // 32 * 4 + 4, "little")
    return MASK + mask


class _Clock:
    """Ends the process, whatever it computes, after some seconds of a processor.

    A signal without a handler does that, in native code as well.
    """

    def __init__(self, running: bool) -> None:
        self._running = running
        self._seconds = 0.0

    def at_most(self, seconds: float) -> _Clock:
        self._seconds = seconds
        return self

    def __enter__(self) -> None:
        if self._running:
            signal.setitimer(signal.ITIMER_PROF, self._seconds)

    def __exit__(self, *_: object) -> None:
        if self._running:
            signal.setitimer(signal.ITIMER_PROF, 0)


def main(descriptor: int) -> None:
    """Fork for each connection that arrives on a socket, until the other end is closed.

    Args:
        descriptor: of the socket; a `Vocabulary` arrives first, from the model process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the model process decides
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks leave no zombies
    with socket.socket(fileno=descriptor) as control:
        tokenizer = Connection(os.dup(descriptor)).recv().tokenizer()
        gc.freeze()
        while True:
            told, (*descriptors,), _, _ = socket.recv_fds(control, 1, 1)
            if not told:
                return
            _fork(control, Connection(descriptors[0]), tokenizer)


def _fork(control: socket.socket, connection: Connection, tokenizer: LLTokenizer) -> None:
    with connection, suppress(OSError):  # no more processes: the other end reads that it is closed
        if os.fork() == 0:
            try:
                control.close()
                _limit_memory()
                serve_schema(connection, tokenizer, limited=True)
            finally:
                os._exit(0)


def _limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # no /proc
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
        most = pages * resource.getpagesize() + _MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
