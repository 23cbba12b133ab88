"""A recipe's YAML or JSON file, read within limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from baichuan.errors import UsageError
from baichuan.files import read_text

#: Bytes; a recipe has some fifty lines.
_MOST_BYTES = 1 << 20
_MOST_DEPTH = 20


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the entries of a recipe.

    Raises:
        UsageError: the file is missing, larger than 1 MiB or no mapping of names to values, is
            nested deeper than 20, or refers to its own parts.
    """
    try:
        if not path.is_file():  # a pipe, or a device, may have no end
            path.stat()
            raise OSError("not a regular file")
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES:,} bytes")
        entries = yaml.load(read_text(path), _Loader)
    # YAML's constructors raise whatever Python does: int("") an IndexError, a date ValueError.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError("{path} cannot be read: {reason}.", path=path, reason=reason) from error
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise UsageError("{path} is no recipe; it must hold lines like `stage: sft`.", path=path)
    return entries


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # untyped base
    """Refuses aliases, which let a kilobyte stand for a billion values, and deep nesting."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("an alias, *name; write the value itself")
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise ValueError(f"nested deeper than {_MOST_DEPTH}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node
