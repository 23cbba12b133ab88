"""The harness finds what it is there to find."""

import pytest

from baichuan.errors import DataError
from tests.fuzz import harness


def fails(kind):
    def case(rng):
        if rng.random() < 0.5:
            return
        match kind:
            case "traceback":
                raise KeyError("x")
            case "hang":
                while True:
                    pass
            case "memory":
                bytearray(8 << 30)

    return case


@pytest.mark.parametrize(
    ("kind", "error"), [("traceback", "KeyError"), ("hang", "TookTooLong"), ("memory", "Memory")]
)
def test_what_is_no_sentence_is_reported(kind, error, monkeypatch):
    monkeypatch.setattr(harness, "_PATIENCE", 0.05)
    with pytest.raises(AssertionError, match=error):
        harness.run_cases(10, fails(kind), name=kind)


def test_a_sentence_passes_and_a_long_one_does_not():
    def case(_):
        raise DataError("x" * length)

    length = 500
    harness.run_cases(3, case, name="short")
    length = 501
    with pytest.raises(AssertionError, match="3 of 3"):
        harness.run_cases(3, case, name="long")
