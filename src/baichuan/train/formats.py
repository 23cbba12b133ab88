"""From a row, in any of the layouts that users have, to what is learned from it; checks each row.

    alpaca      {"instruction": ..., "input": ..., "output": ..., "history": [[..., ...]], "system"}
    openai      {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}
    sharegpt    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}
    text        {"text": ...}

Preferences have `chosen` and `rejected` beside the conversation. Knows no file and no token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baichuan.errors import DataError
from baichuan.train.registry import Layout

_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
    "chosen": "chosen",
    "rejected": "rejected",
    "text": "text",
}
#: The key and the roles inside each turn.
_SHAREGPT = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "system_tag": "system",
}
_OPENAI = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}


@dataclass(frozen=True)
class Example:
    """What is learned from a row.

    Attributes:
        system: the text before the conversation, "" for none.
        rounds: question and answer, oldest first; the last answer is "" for preferences.
        chosen, rejected: the better and the worse last answer, for preferences.
        text: for plain text, which has no rounds.
    """

    system: str = ""
    rounds: tuple[tuple[str, str], ...] = ()
    chosen: str = ""
    rejected: str = ""
    text: str = ""


def read(row: object, layout: Layout, stage: str) -> Example:
    """Read and check one row.

    Raises:
        DataError: says what is wrong, not where.
    """
    if not isinstance(row, Mapping):
        raise DataError("it is {given!r:.60}, not an object of columns.", given=row)
    if None in row:  # so csv calls what stands behind the last column
        raise DataError("it has more columns than the header.")
    cells = _Cells(row, layout)
    example = _READERS[_formatting(row, layout, stage)](cells, stage == "dpo" or layout.ranking)
    _check(example, stage)
    return example


def _formatting(row: Mapping[str, Any], layout: Layout, stage: str) -> str:
    """Say which layout a row has."""
    if stage == "pt":
        return "text"
    if layout.formatting:
        return layout.formatting
    named = layout.columns.get("messages")
    if named or "messages" in row or "conversations" in row:
        return "openai" if "messages" in row and not named else "sharegpt"
    return "alpaca"


class _Cells:
    """A row's cells by what they are for."""

    def __init__(self, row: Mapping[str, Any], layout: Layout) -> None:
        self._row = row
        self._columns = {**_COLUMNS, **layout.columns}
        self.tags = layout.tags

    def named(self, purpose: str) -> str:
        """Give the name of the column for a purpose."""
        return self._columns[purpose]

    def has(self, purpose: str) -> bool:
        """Say whether the row has a column for a purpose."""
        return self._columns.get(purpose) in self._row

    def get(self, purpose: str) -> Any:
        """Give a cell as it is; None where there is none."""
        return self._row.get(self._columns.get(purpose, ""))

    def text(self, purpose: str, *, needed: bool = True) -> str:
        """Give a cell of text; one that is not needed may be absent, null or empty."""
        name = self._columns.get(purpose, "")
        if needed and name not in self._row:
            raise DataError(
                "it has no {name!r}; its columns are {columns}.",
                name=name,
                columns=", ".join(map(str, self._row)),
            )
        value = self._row.get(name)
        if value is None and not needed:
            return ""
        return _text(value, name, needed=needed)

    def turns(self, usual: str) -> tuple[Sequence[Any], str]:
        """Give the turns of a conversation and the name of their column."""
        name = self._columns.get("messages", usual)
        turns = _list(self._row.get(name), name)
        if not turns:
            raise DataError("{name!r} is empty.", name=name)
        return turns, name


def _list(value: object, name: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise DataError("{name!r} is {given!r:.60}; it must be a list.", name=name, given=value)
    return value


def _text(value: object, name: str, *, needed: bool = True) -> str:
    """Check that a value is text that can be encoded."""
    if not isinstance(value, str):
        raise DataError("{name!r} is {given!r:.60}; it must be text.", name=name, given=value)
    if needed and not value.strip():
        raise DataError("{name!r} is empty.", name=name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            "{name!r} holds half a character (a lone surrogate) at {place}.",
            name=name,
            place=error.start,
        ) from error
    return value


def _read_text(cells: _Cells, _: bool) -> Example:
    # Registries of 2023 say it of the prompt's column.
    return Example(text=cells.text("text" if cells.has("text") else "prompt"))


def _read_alpaca(cells: _Cells, ranking: bool) -> Example:
    question = cells.text("prompt")
    if more := cells.text("query", needed=False):
        question = f"{question}\n{more}"
    history = _list(cells.get("history") or [], cells.named("history"))
    rounds = tuple(_pair(turn, number) for number, turn in enumerate(history))
    system = cells.text("system", needed=False)
    if not ranking:
        return Example(system, (*rounds, (question, cells.text("response"))))
    if cells.has("chosen"):
        better, worse = cells.text("chosen"), cells.text("rejected")
    else:  # as in 2023: both in the answer's column
        better, worse = _pair(cells.get("response"), None, cells.named("response"))
    return Example(system, (*rounds, (question, "")), better, worse)


def _pair(value: object, number: int | None, name: str = "history") -> tuple[str, str]:
    """Check two texts, one turn of a history or two answers."""
    where = name if number is None else f"{name}[{number}]"
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise DataError("{name!r} is {given!r:.60}; it must be two texts.", name=where, given=value)
    return _text(value[0], f"{where}[0]"), _text(value[1], f"{where}[1]")


def _read_openai(cells: _Cells, ranking: bool) -> Example:
    return _conversation(cells, "messages", {**_OPENAI, **cells.tags}, ranking)


def _read_sharegpt(cells: _Cells, ranking: bool) -> Example:
    return _conversation(cells, "conversations", {**_SHAREGPT, **cells.tags}, ranking)


_READERS = {
    "text": _read_text,
    "alpaca": _read_alpaca,
    "openai": _read_openai,
    "sharegpt": _read_sharegpt,
}


def _conversation(cells: _Cells, usual: str, tags: Mapping[str, str], ranking: bool) -> Example:
    turns, name = cells.turns(usual)
    said = [_turn(turn, f"{name}[{number}]", tags) for number, turn in enumerate(turns)]
    system = cells.text("system", needed=False)
    if said[0][0] == "system":
        system = said.pop(0)[1]
    for number, (role, _) in enumerate(said):
        expected = "assistant" if number % 2 else "user"
        if role != expected:
            raise DataError(
                "turn {number} of {name!r} is the {role}'s; users and assistants must take turns, "
                "a user first.",
                number=number + 1,
                name=name,
                role=role,
            )
    texts = [content for _, content in said]
    rounds = tuple(zip(texts[::2], [*texts[1::2], ""], strict=False))
    if not ranking:
        return Example(system, rounds)
    if len(texts) % 2 == 0:
        raise DataError("{name!r} must end with the user; the two answers follow.", name=name)
    better, worse = (
        _answer(cells.get(column), cells.named(column), tags) for column in ("chosen", "rejected")
    )
    return Example(system, rounds, better, worse)


def _turn(turn: object, name: str, tags: Mapping[str, str]) -> tuple[str, str]:
    """Give who says what."""
    role_key, content_key = tags["role_tag"], tags["content_tag"]
    if not isinstance(turn, Mapping) or not {role_key, content_key} <= turn.keys():
        raise DataError(
            "{name!r} is {given!r:.60}; it needs the keys {role!r} and {content!r}.",
            name=name,
            given=turn,
            role=role_key,
            content=content_key,
        )
    roles = {tags[f"{role}_tag"]: role for role in ("user", "assistant", "system")}
    if turn[role_key] not in roles:
        raise DataError(
            "{name!r} is said by {role!r}; it must be one of {allowed}.",
            name=name,
            role=turn[role_key],
            allowed=", ".join(roles),
        )
    return roles[turn[role_key]], _text(turn[content_key], f"{name}.{content_key}")


def _answer(value: object, name: str, tags: Mapping[str, str]) -> str:
    """Read a better or worse answer: text, one turn, or a list of one turn."""
    if isinstance(value, str):
        return _text(value, name)
    if isinstance(value, Sequence) and len(value) == 1:
        value = value[0]
    return _turn(value, name, tags)[1]


def _check(example: Example, stage: str) -> None:
    """See that there is something to learn."""
    if stage == "sft" and (not example.rounds or not example.rounds[-1][1]):
        raise DataError("it does not end with an answer, so there is nothing to learn from it.")
    if stage == "dpo" and example.chosen == example.rejected:
        raise DataError("its chosen and rejected answers are the same.")
