"""Run one door of the package over many hostile inputs, each made from a number.

A case passes when the door opens, or refuses in one sentence of at most 500 characters. Anything
else is a fault: another exception, a case that takes longer than a sentence should, or memory that
grows with a number in a file instead of with the file.
"""

import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from baichuan.errors import BaichuanError

#: Seconds for a case: generous, because other work runs on the same cores.
_PATIENCE = 20
#: Bytes that a case may allocate, above what the process has.
_ROOM = 2 << 30


class TookTooLongError(BaseException):
    """A case hangs; no `except Exception` swallows it."""


def run_cases(
    count: int,
    case: Callable[[random.Random], object],
    *,
    name: str,
    refusals: tuple[type[Exception], ...] = (BaichuanError,),
) -> None:
    """Run `count` cases and report the numbers of those that fail, to be run again by themselves.

    Args:
        count: how many; `--fuzz-cases` on the command line.
        case: makes an input from the generator and opens it.
        name: seeds the generators, with the number of the case.
        refusals: errors that are a refusal in a sentence.
    """
    faults = []
    with _room(_ROOM):
        for number in range(count):
            try:
                with _patience(_PATIENCE):
                    case(random.Random(f"{name} {number}"))
            except refusals as refusal:
                if not 0 < len(str(refusal)) <= 500:
                    faults.append(f"{number}: a message of {len(str(refusal))} characters")
            except (Exception, TookTooLongError) as error:
                faults.append(f"{number}: {type(error).__name__}: {str(error)[:200]}")
    shown = "\n".join(faults[:20])
    assert not faults, f"{len(faults)} of {count} cases of {name!r} failed:\n{shown}"


@contextmanager
def _room(more: int) -> Iterator[None]:
    """Let the process allocate so many bytes more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TookTooLongError(f"after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with one to four mistakes: changed, cut, repeated, inserted or overwritten."""
    out = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:]
            case 2:
                del out[at : at + rng.randint(1, 64)]
            case 3:
                out[at:at] = out[at : at + rng.randint(1, 256)]
            case 4:
                out[at:at] = rng.randbytes(rng.randint(1, 16))
            case _:
                extreme = rng.choice((b"\xff" * 8, b"\x00" * 8, (1 << 62).to_bytes(8, "little")))
                out[at : at + 8] = extreme
    return bytes(out)


#: What may stand where another value is meant, in a file that someone else wrote.
_VALUES = (
    *(None, True, False, 0, 1, -1, 2, 1_000_000, 2**31, 2**63, 2**70, -(2**63), 0.5, 1e308),
    *(
        float("nan"),
        float("inf"),
        "",
        "x",
        "0",
        "1e9",
        "float16",
        "../../etc/passwd",
        "a" * 100_000,
    ),
    *("\ud800", "\x00", "os.system", [], [[]], [1, "x"], {}, {"a": {}}, [0] * 10_000),
)


def mutated_json(value: object, rng: random.Random, values: tuple[object, ...] = ()) -> object:
    """Return a copy of a JSON value in which one value, somewhere, is another or is missing."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: mutated_json(value[key], rng, values)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        at = rng.randrange(len(value))
        return [*value[:at], mutated_json(value[at], rng, values), *value[at + 1 :]]
    if rng.random() < 0.05:
        nested: object = 0
        for _ in range(rng.choice((10, 500))):
            nested = [nested] if rng.random() < 0.5 else {"a": nested}
        return nested
    return rng.choice(_VALUES + values)
