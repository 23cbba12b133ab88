"""The metadata of a GGUF file: values by key, each read as the type and range that it must have.

Whoever wrote the file chose the types. A reader that takes a value as it is fails far from here, or
computes something else in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan.errors import CheckpointError
from baichuan.language import translate

#: What GGUF's integers can hold, signed or not.
_LEAST, _MOST = -(2**63), 2**64 - 1


class Metadata(Mapping[str, Any]):
    """Key to a number, a string, a list of strings or a numpy array of numbers.

    The methods return a value of the type in their name; each raises CheckpointError for a value of
    another type or outside the range, and for a key that is missing and has no default.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        """Take the values of a file; its path is for messages."""
        self.path, self._values = path, dict(values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def integer(
        self, key: str, least: int = _LEAST, most: int = _MOST, default: int | None = None
    ) -> int:
        """Return an integer between two limits, both allowed."""
        value = self._values.get(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(
                key, translate("an integer from {least} to {most}", least=least, most=most)
            )
        return value

    def number(
        self, key: str, least: float, most: float, default: float | None = None
    ) -> float | int:
        """Return an integer or a floating-point number between two limits; NaN is outside."""
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            value = math.nan
        if not least <= value <= most:
            raise self.wrong(
                key, translate("a number from {least} to {most}", least=least, most=most)
            )
        return value

    def boolean(self, key: str, default: bool) -> bool:
        """Return a truth value."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, translate("true or false"))
        return value

    def string(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        value = self._values.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, translate("a string"))
        return value

    def strings(self, key: str) -> list[str]:
        """Return a list of strings, empty where there is none."""
        value = self._values.get(key, [])
        if not isinstance(value, list):
            raise self.wrong(key, translate("an array of strings"))
        return value

    def integers(self, key: str, least: int, most: int) -> list[int]:
        """Return an array of integers between two limits, empty where there is none."""
        value = self._array(key, "iu", translate("an array of integers"))
        if len(value) and not (least <= value.min() and value.max() <= most):
            raise self.wrong(
                key,
                translate("an array of integers from {least} to {most}", least=least, most=most),
            )
        return [int(number) for number in value]

    def numbers(self, key: str) -> list[float]:
        """Return an array of finite numbers, empty where there is none."""
        value = self._array(key, "iuf", translate("an array of numbers"))
        if not np.isfinite(value).all():
            raise self.wrong(key, translate("an array of finite numbers"))
        return [float(number) for number in value]

    def octets(self, key: str) -> bytes | None:
        """Return an array of 8-bit integers as bytes, None where there is none."""
        if key not in self._values:
            return None
        needed = translate("an array of 8-bit integers")
        value = self._array(key, "iu", needed)
        if value.itemsize != 1:
            raise self.wrong(key, needed)
        return value.tobytes()

    def _array(self, key: str, kinds: str, needed: str) -> NDArray[Any]:
        value = self._values.get(key, np.empty(0, np.uint8))
        if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds:
            raise self.wrong(key, needed)
        return value

    def wrong(self, key: str, needed: str) -> CheckpointError:
        """Return the error for a value that cannot be used.

        Args:
            key: of the value.
            needed: what it must be, in the user's language.
        """
        return CheckpointError(
            "{path} cannot be used: its {key} is {value}; needed is {needed}. Fetch the file "
            "again, or one that llama.cpp runs.",
            path=self.path,
            key=key,
            value=_shown(self._values.get(key)),
            needed=needed,
        )


def _shown(value: object) -> str:
    """Return a value, or of an array, which may have millions, the type and the length."""
    match value:
        case None:
            return "-"
        case list():
            return f"string[{len(value):,}]"
        case np.ndarray():
            return f"{value.dtype}[{len(value):,}]"
        case str():
            return repr(value[:100])
    return repr(value)
