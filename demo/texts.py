"""Reads the demo's corpus: question-and-answer blocks, filled in from tables. Knows no token.

The format is described in README.md beside this file. Reading gives two lists that share no
question: what to train on (`Item`) and what to examine with (`HeldOut`).
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"

Row = dict[str, str]

#: Of a held-out phrasing over a table only this many rows are asked, or countries would outweigh all.
ROWS_PER_HELD_PHRASING = 4
_PLACEHOLDER = re.compile(r"\{(\w+)(\^?)\}")
#: "a" before a vowel, as a template's "a {en}" makes it; "a euro" and "a unit" stay as they are.
_ARTICLE = re.compile(r"\b([Aa]) (?=[aio]|e(?!u))")
_SUM_LIMIT = 20
_HELD_SUMS_EVERY = 11


@dataclass(frozen=True)
class Turn:
    """Several ways to ask, one answer."""

    questions: tuple[str, ...]
    answer: str


@dataclass(frozen=True)
class Item:
    """One conversation to train on; `weight` says how often it appears in an epoch."""

    turns: tuple[Turn, ...]
    systems: tuple[str, ...]
    weight: float


@dataclass(frozen=True)
class HeldOut:
    """A question that is not in the training text.

    Attributes:
        kind: "phrasing" (the fact is trained, these words are not), "question" (never asked about
            this in any words), or either with "beyond" (an honest refusal is expected).
        keys: what an answer must hold to be right; empty means exactly `answer`.
    """

    kind: str
    question: str
    answer: str
    keys: tuple[str, ...] = ()


@dataclass
class _Block:
    """One block as it stands in a file, before its table's rows are filled in."""

    turns: list[tuple[list[str], str]] = field(default_factory=list)
    systems: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    keys: tuple[str, ...] = ()
    held_rows: tuple[str, frozenset[str]] = ("", frozenset())
    weight: float = 1.0
    table: str = ""
    where: str = ""


def read_corpus(directory: Path = CORPUS) -> tuple[list[Item], list[HeldOut]]:
    """Read all files of a directory: what to train on, and what is kept from it."""
    items: list[Item] = []
    held: list[HeldOut] = []
    for path in sorted(directory.glob("*.txt")):
        for block in _blocks(path):
            _expand(block, directory, items, held)
    asked = {plain(question) for item in items for t in item.turns for question in t.questions}
    unseen = {plain(h.question): h for h in held if plain(h.question) not in asked}
    return items, list(unseen.values())


def plain(text: str) -> str:
    """Reduce a text to what two questions must differ in to be two questions."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if c.isalnum())


def _blocks(path: Path) -> Iterator[_Block]:
    """Split one file at blank lines; directives last, except `@hold`, which is for one block."""
    table, weight = "", 1.0
    for number, chunk in enumerate(re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))):
        block = _Block(where=f"{path.name}, block {number + 1}")
        for line in chunk.splitlines():
            mark, _, rest = line.partition(" ")
            rest = rest.strip() if mark != "|" else rest
            if mark == "@table":
                table, weight = rest, 1.0
            elif mark == "@weight":
                weight = float(rest)
            elif mark and not mark.startswith("#"):
                _add_line(block, mark, rest)
        block.table, block.weight = table, weight
        if block.turns:
            yield block


def _add_line(block: _Block, mark: str, rest: str) -> None:
    """Take one line of a block; a question after an answer begins the next turn."""
    if mark == "Q:":
        if not block.turns or block.turns[-1][1]:
            block.turns.append(([], ""))
        block.turns[-1][0].append(rest)
    elif mark in ("A:", "|") and block.turns:
        questions, answer = block.turns[-1]
        block.turns[-1] = (questions, f"{answer}\n{rest}" if mark == "|" else rest)
    elif mark == "H:":
        block.held.append(rest)
    elif mark == "S:":
        block.systems.append(rest)
    elif mark == "K:":
        block.keys = tuple(rest.split("|"))
    elif mark == "@hold":
        column, _, names = rest.partition(" ")
        block.held_rows = (column, frozenset(name.strip() for name in names.split(",")))
    else:
        raise ValueError(f"{block.where}: no line begins with {mark!r}")


def _expand(block: _Block, directory: Path, items: list[Item], held: list[HeldOut]) -> None:
    """Fill in a block from each row of its table that has all the columns it names."""
    rows = _table(block.table, directory)
    needed = {name for text in _texts(block) for name, _ in _PLACEHOLDER.findall(text)}
    rows = [row for row in rows if all(row.get(name) for name in needed)]
    if not rows:
        raise ValueError(f"{block.where}: no row of {block.table!r} has {sorted(needed)}")
    column, names = block.held_rows
    trained = []
    for row in rows:
        if (column and row.get(column) in names) or row.get("held"):
            held.append(_held(block, block.turns[0][0][0], row, "question"))
        else:
            trained.append(row)
            items.append(_item(block, row))
    # A generator of its own for each block: editing one block does not change another's choice.
    pick = random.Random(block.where)
    for question in block.held:
        for row in pick.sample(trained, min(len(trained), ROWS_PER_HELD_PHRASING)):
            held.append(_held(block, question, row, "phrasing"))


def _texts(block: _Block) -> Iterator[str]:
    for questions, answer in block.turns:
        yield from (*questions, answer)


def _item(block: _Block, row: Row) -> Item:
    turns = tuple(
        Turn(tuple(_fill(question, row) for question in questions), _fill(answer, row))
        for questions, answer in block.turns
    )
    return Item(turns, tuple(block.systems), block.weight)


def _held(block: _Block, question: str, row: Row, kind: str) -> HeldOut:
    kind = f"beyond, {kind}" if block.keys else kind
    return HeldOut(kind, _fill(question, row), _fill(block.turns[0][1], row), block.keys)


def _fill(template: str, row: Row) -> str:
    """Put a row's columns in; `{name^}` begins with a capital letter, and "a" becomes "an"."""

    def value(match: re.Match[str]) -> str:
        text = row[match[1]]
        return text[:1].upper() + text[1:] if match[2] else text

    if not row:
        return template
    return _ARTICLE.sub(r"\1n ", _PLACEHOLDER.sub(value, template))


def _table(name: str, directory: Path) -> list[Row]:
    """Read a table; no name means one empty row, a calculated table is made on the spot."""
    if not name:
        return [{}]
    if name in _CALCULATED:
        return _CALCULATED[name]()
    lines = (directory / "tables" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if line.strip()]
    header = cells[0]
    for line in cells[1:]:
        if len(line) != len(header):
            raise ValueError(f"tables/{name}.txt: {line} has {len(line)} cells, not {len(header)}")
    return [dict(zip(header, line, strict=True)) for line in cells[1:]]


def _calculation(calculate: Callable[[int, int], int], pairs: list[tuple[int, int]]) -> list[Row]:
    """Rows a, b, c; every eleventh is held out, so that a right answer there was worked out."""
    return [
        {
            "a": str(a),
            "b": str(b),
            "c": str(calculate(a, b)),
            "held": "yes" if number % _HELD_SUMS_EVERY == _HELD_SUMS_EVERY - 1 else "",
        }
        for number, (a, b) in enumerate(pairs)
    ]


def _sums() -> list[Row]:
    pairs = [(a, b) for a in range(_SUM_LIMIT + 1) for b in range(_SUM_LIMIT + 1 - a)]
    return _calculation(lambda a, b: a + b, pairs)


def _differences() -> list[Row]:
    pairs = [(a, b) for a in range(_SUM_LIMIT + 1) for b in range(a + 1)]
    return _calculation(lambda a, b: a - b, pairs)


def _products() -> list[Row]:
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    return _calculation(lambda a, b: a * b, pairs)


_CALCULATED: dict[str, Callable[[], list[Row]]] = {
    "sums": _sums,
    "differences": _differences,
    "products": _products,
}
