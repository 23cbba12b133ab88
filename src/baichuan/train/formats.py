"""From a row, in any of the layouts that users have, to what is learned from it; checks each row.

    alpaca      {"instruction": ..., "input": ..., "output": ..., "history": [[..., ...]], "system"}
    openai      {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}
    sharegpt    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", ...}]}
    text        {"text": ...}

Preferences have `chosen` and `rejected` beside the conversation. A turn's `weight`, `loss` or
`train` says whether it is learned.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from baichuan.errors import DataError
from baichuan.train.registry import Layout

#: What is not read: a row that has something there is refused, since the rest says less than it.
_REFUSED = (
    *("tools", "functions", "kto_tag"),
    *("image", "images", "video", "videos", "audio", "audios"),
)
#: Each purpose's column where the registry names none, in rows of plain text and in all others.
_TEXT_COLUMNS = {"text": "text"}
_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "system": "system",
    "chosen": "chosen",
    "rejected": "rejected",
    **{name: name for name in _REFUSED},
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
#: Keys of a turn that say whether it is learned: OpenAI's, ms-swift's and axolotl's.
_MARKS = ("weight", "loss", "train")
#: Keys of a turn that hold more than its text, or learn a part of it.
_REFUSED_KEYS = ("tool_calls", "function_call", "train_detail")
_NOTHING: tuple[object, ...] = (None, "", "[]", "{}", [], {})
#: Where the picture of a question stood, as LLaVA and LLaMA-Factory write it.
_PLACEHOLDER = re.compile(r"\A\s*<(image|video|audio)>|<(image|video|audio)>\s*\Z")


@dataclass(frozen=True)
class Example:
    """What is learned from a row.

    Attributes:
        system: the text before the conversation, "" for none.
        rounds: question and answer, oldest first; the last answer is "" for preferences.
        marks: whether question and answer of each round are learned, as the row says; None is not
            said. Empty where the row says nothing.
        chosen, rejected: the better and the worse last answer, for preferences.
        text: for plain text, which has no rounds.
    """

    system: str = ""
    rounds: tuple[tuple[str, str], ...] = ()
    marks: tuple[tuple[bool | None, bool | None], ...] = ()
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
    formatting = _formatting(row, layout, stage)
    cells = _Cells(row, layout, formatting)
    for purpose in _REFUSED:
        _refuse(cells.name(purpose), cells.get(purpose), purpose)
    example = _READERS[formatting](cells, stage == "dpo" or layout.ranking)
    _check(example, stage)
    return example


def _formatting(row: Mapping[str, Any], layout: Layout, stage: str) -> str:
    """Return the layout of a row: as the registry says, else as its columns and turns look."""
    if stage == "pt":
        return "text"
    if layout.formatting:
        return layout.formatting
    usual = {"messages": "openai", "conversations": "sharegpt"}
    if layout.columns:
        usual = {name: "sharegpt" for name in (layout.columns.get("messages"),) if name}
    name = next((name for name in usual if name in row), None)
    if name is None:
        return "sharegpt" if "messages" in layout.columns else "alpaca"
    turns = row[name]
    first = turns[0] if isinstance(turns, Sequence) and turns else None
    if not isinstance(first, Mapping) or not {"role", "from"} & first.keys():
        return usual[name]
    return "openai" if "role" in first else "sharegpt"


def _refuse(name: str | None, value: object, purpose: str) -> None:
    """Raise where a cell that is not read holds something."""
    if value not in _NOTHING:
        raise DataError(
            "its {name!r} is {given!r:.60}; {purpose} is not supported in training. Remove it, or "
            "name the columns to read under 'columns' in dataset_info.json.",
            name=name,
            given=value,
            purpose=purpose,
        )


class _Cells:
    """A row's cells by what they are for: where the registry names columns, those and no others."""

    def __init__(self, row: Mapping[str, Any], layout: Layout, formatting: str) -> None:
        self._row = row
        self._columns: Mapping[str, str] = layout.columns
        if not layout.columns and formatting == "text":
            self._columns = _TEXT_COLUMNS
        elif not layout.columns:
            usual = "messages" if formatting == "openai" else "conversations"
            other = "conversations" if formatting == "openai" else "messages"
            named = other if usual not in row and not layout.formatting else usual
            self._columns = {**_COLUMNS, "messages": named}
        self.tags = layout.tags or (_OPENAI if formatting == "openai" else _SHAREGPT)

    def name(self, purpose: str) -> str | None:
        """Return the name of the column for a purpose; None where nothing is read for it."""
        return self._columns.get(purpose)

    def needed(self, purpose: str) -> str:
        """Return the name of a column that must be there."""
        name = self.name(purpose)
        if name is None:
            raise DataError(
                "'columns' in dataset_info.json has no {purpose!r}, and only the columns named "
                "there are read: {named}.",
                purpose=purpose,
                named=", ".join(self._columns),
            )
        if name not in self._row:
            raise DataError(
                "it has no {name!r}; its columns are {columns}.",
                name=name,
                columns=", ".join(map(str, self._row)),
            )
        return name

    def get(self, purpose: str) -> Any:
        """Return a cell as it is; None where there is none."""
        name = self.name(purpose)
        return None if name is None else self._row.get(name)

    def text(self, purpose: str) -> str:
        """Return a cell of text that must be there."""
        name = self.needed(purpose)
        return _text(self._row[name], name)

    def optional_text(self, purpose: str) -> str:
        """Return a cell of text, "" where it is absent, null or empty."""
        name, value = self.name(purpose), self.get(purpose)
        return "" if name is None or value is None else _text(value, name, needed=False)

    def question(self, purpose: str) -> str:
        """Return a cell of text that stands for nothing but itself."""
        return _without_placeholder(self.text(purpose), self.needed(purpose))

    def turns(self) -> tuple[Sequence[Any], str]:
        """Return the turns of a conversation and the name of their column."""
        name = self.needed("messages")
        turns = _list(self._row[name], name)
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


def _without_placeholder(text: str, name: str) -> str:
    """Refuse a question whose picture is not read: the answer to it could not be learned."""
    if found := _PLACEHOLDER.search(text):
        raise DataError(
            "{name!r} holds {mark!r}: pictures, video and sound are not supported in training.",
            name=name,
            mark=found[0].strip(),
        )
    return text


def _read_text(cells: _Cells, _: bool) -> Example:
    # LLaMA-Factory's registries name the text's column as the prompt's.
    return Example(text=cells.text("text" if cells.name("text") else "prompt"))


def _read_alpaca(cells: _Cells, ranking: bool) -> Example:
    question = cells.question("prompt")
    if more := cells.optional_text("query"):
        more = _without_placeholder(more, cells.needed("query"))
        question = f"{question}\n{more}"
    history = cells.get("history") or []
    name = cells.name("history") or ""
    rounds = tuple(_pair(turn, f"{name}[{n}]") for n, turn in enumerate(_list(history, name)))
    for number, (asked, _) in enumerate(rounds):
        _without_placeholder(asked, f"{name}[{number}][0]")
    system = cells.optional_text("system")
    if not ranking:
        return Example(system, (*rounds, (question, cells.text("response"))))
    if cells.get("chosen") is not None or cells.name("response") is None:
        better, worse = cells.text("chosen"), cells.text("rejected")
    else:  # as in 2023: both in the answer's column
        better, worse = _pair(cells.get("response"), cells.needed("response"))
    return Example(system, (*rounds, (question, "")), chosen=better, rejected=worse)


def _pair(value: object, name: str) -> tuple[str, str]:
    """Check two texts, one turn of a history or two answers."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise DataError("{name!r} is {given!r:.60}; it must be two texts.", name=name, given=value)
    return _text(value[0], f"{name}[0]"), _text(value[1], f"{name}[1]")


@dataclass(frozen=True)
class _Turn:
    """What one side says, and whether it is learned; None is not said."""

    role: str
    text: str
    mark: bool | None = None


def _read_conversation(cells: _Cells, ranking: bool) -> Example:
    turns, name = cells.turns()
    said = [_turn(turn, f"{name}[{number}]", cells.tags) for number, turn in enumerate(turns)]
    system, mark = cells.optional_text("system"), None
    if said[0].role == "system":
        first = said.pop(0)
        system, mark = first.text, first.mark
    for number, turn in enumerate(said):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            raise DataError(
                "turn {number} of {name!r} is the {role}'s; users and assistants must take turns, "
                "a user first.",
                number=number + 1,
                name=name,
                role=turn.role,
            )
    texts = [turn.text for turn in said]
    rounds = tuple(zip(texts[::2], [*texts[1::2], ""], strict=False))
    marks = _marks(said, mark)
    if not ranking:
        return Example(system, rounds, marks)
    if len(texts) % 2 == 0:
        raise DataError("{name!r} must end with the user; the two answers follow.", name=name)
    better, worse = (_answer(cells, purpose) for purpose in ("chosen", "rejected"))
    return Example(system, rounds, marks, better, worse)


_READERS = {
    "text": _read_text,
    "alpaca": _read_alpaca,
    "openai": _read_conversation,
    "sharegpt": _read_conversation,
}


def _marks(
    said: Sequence[_Turn], system: bool | None
) -> tuple[tuple[bool | None, bool | None], ...]:
    """Return the marks of each round; a system text is encoded, and learned, with the question."""
    marks = [turn.mark for turn in said]
    if system is not None and marks:
        if marks[0] not in (None, system):
            raise DataError(
                "the system text is marked {system}, the first question {question}; they are "
                "learned together, or neither is.",
                system=system,
                question=marks[0],
            )
        marks[0] = system
    if not any(mark is not None for mark in marks):
        return ()
    return tuple(zip(marks[::2], [*marks[1::2], None], strict=False))


def _turn(turn: object, name: str, tags: Mapping[str, str]) -> _Turn:
    """Check one turn."""
    role_key, content_key = tags["role_tag"], tags["content_tag"]
    if not isinstance(turn, Mapping) or not {role_key, content_key} <= turn.keys():
        raise DataError(
            "{name!r} is {given!r:.60}; it needs the keys {role!r} and {content!r}.",
            name=name,
            given=turn,
            role=role_key,
            content=content_key,
        )
    roles = {
        tags[f"{role}_tag"]: role
        for role in ("user", "assistant", "system")
        if f"{role}_tag" in tags
    }
    role = turn[role_key]
    if not isinstance(role, str) or role not in roles:
        raise DataError(
            "{name!r} is said by {role!r}; it must be one of {allowed}.",
            name=name,
            role=role,
            allowed=", ".join(roles),
        )
    more = {key: value for key, value in turn.items() if key not in (role_key, content_key)}
    for key in (*_REFUSED_KEYS, *_REFUSED):
        _refuse(f"{name}.{key}", more.get(key), key)
    text = _text(turn[content_key], f"{name}.{content_key}")
    if roles[role] == "user":
        _without_placeholder(text, f"{name}.{content_key}")
    return _Turn(roles[role], text, _mark(more, name))


def _mark(turn: Mapping[str, Any], name: str) -> bool | None:
    """Return whether a turn says that it is learned; of several marks, one that denies it wins."""
    marks = {key: turn[key] for key in _MARKS if turn.get(key) is not None}
    for key, value in marks.items():
        if value not in (0, 1):  # False and True are equal to these
            raise DataError(
                "{name!r} is {given!r:.60}; allowed is 0 or false (the turn is not learned), and "
                "1 or true.",
                name=f"{name}.{key}",
                given=value,
            )
    return all(marks.values()) if marks else None


def _answer(cells: _Cells, purpose: str) -> str:
    """Read a better or worse answer: text, one turn, or a list of one turn."""
    name = cells.needed(purpose)
    value = cells.get(purpose)
    if isinstance(value, str):
        return _text(value, name)
    if isinstance(value, Sequence) and len(value) == 1:
        value = value[0]
    turn = _turn(value, name, cells.tags)
    if turn.mark is False:
        raise DataError("{name!r} is marked as not to be learned; leave the row out.", name=name)
    return turn.text


def _check(example: Example, stage: str) -> None:
    """Raise where there is nothing to learn."""
    if stage == "sft" and (not example.rounds or not example.rounds[-1][1]):
        raise DataError("it does not end with an answer, so there is nothing to learn from it.")
    if stage == "dpo" and example.chosen == example.rejected:
        raise DataError("its chosen and rejected answers are the same.")
