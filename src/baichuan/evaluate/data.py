"""Questions from a data set's tables, checked row by row.

Knows which columns the benchmarks' files have; no file format (tables.py), no prompt and no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baichuan.errors import DataError, UsageError
from baichuan.evaluate.subjects import Benchmark
from baichuan.evaluate.tables import Files, Line, find, has_header, lines_of, open_files
from baichuan.language import translate

LETTERS = ("A", "B", "C", "D")
_TEXT = ("question", "a", "b", "c", "d")
_ANSWER = "answer"


@dataclass(frozen=True)
class Question:
    """One row.

    Attributes:
        subject: its subject.
        number: what the file numbers it by, else its place in the file, from 0.
        text: the question.
        choices: of A to D.
        answer: the right letter; None where the file does not say.
    """

    subject: str
    number: str
    text: str
    choices: tuple[str, ...]
    answer: str | None


@dataclass(frozen=True)
class Data:
    """The rows of a benchmark.

    Attributes:
        benchmark: which.
        split: where the questions are from.
        shots: subject to its rows of `dev`, in the file's order.
        questions: subject to its rows, in the file's order.
        remarks: what a user should know about the files, as sentences.
    """

    benchmark: Benchmark
    split: str
    shots: dict[str, list[Question]]
    questions: dict[str, list[Question]]
    remarks: list[str]

    @property
    def digest(self) -> str:
        """SHA-256 of all rows: the same text has the same digest, in whatever files it lies."""
        total = hashlib.sha256()
        for rows in (self.shots, self.questions):
            for subject in sorted(rows):
                for row in rows[subject]:
                    total.update(repr((subject, row)).encode())
        return total.hexdigest()


def read_data(
    benchmark: Benchmark,
    source: str | None = None,
    *,
    split: str | None = None,
    subjects: Sequence[str] = (),
    shots: int = 5,
    limit: int | None = None,
) -> Data:
    """Read and check a benchmark's rows.

    Args:
        benchmark: which.
        source: a folder, a .zip or .tar file, or the name of a data set on the hub; None is the
            benchmark's own on the hub.
        split: where the questions are from; None is the benchmark's usual one.
        subjects: only these; empty for all.
        shots: rows of `dev` that each subject must have.
        limit: only so many questions of each subject, the first ones.

    Raises:
        DataError: a file is missing, or a row is not as it should be; names file and line.
        UsageError: a subject or split that there is not, or a number that is not allowed.
        DownloadError: the data set could not be fetched.
    """
    split = benchmark.splits[0] if split is None else split
    _check_choice("split", split, benchmark.splits)
    for subject in subjects:
        _check_choice("subject", subject, tuple(benchmark.names))
    if limit is not None and limit < 1:
        raise UsageError("limit is {given}; allowed is 1 or more.", given=limit)
    place = source or benchmark.hub
    reader = _Reader(benchmark, place, open_files(place))
    chosen = [name for name in benchmark.names if not subjects or name in subjects]
    questions = {name: reader.rows(name, split)[:limit] for name in chosen}
    examples = {name: reader.rows(name, "dev") for name in chosen} if shots else {}
    for name, rows in examples.items():
        if len(rows) < shots:
            raise DataError(
                "The dev file of {subject} in {place} has {count} rows, but {shots} examples were "
                "asked for. Ask for fewer with --shots.",
                subject=name,
                place=place,
                count=len(rows),
                shots=shots,
            )
    return Data(benchmark, split, examples, questions, reader.remarks)


def _check_choice(what: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise UsageError(
            "{what} is {given!r}; allowed is one of: {allowed}.",
            what=what,
            given=given,
            allowed=", ".join(allowed),
        )


class _Reader:
    """Reads files of one benchmark from one place."""

    def __init__(self, benchmark: Benchmark, place: str, files: Files) -> None:
        self.remarks: list[str] = []
        self._benchmark = benchmark
        self._place = place
        self._files = files

    def rows(self, subject: str, split: str) -> list[Question]:
        """Read one file.

        Raises:
            DataError: it is missing, or a row is wrong.
        """
        name = find(self._files, self._place, subject, split)
        lines = lines_of(name, self._files[name]())
        columns = self._columns(name, lines)
        if self._benchmark.name == "ceval" and split == "test":
            # It was published without answers, or with empty ones, and later with them.
            lines = iter(kept := list(lines))
            answered = _has_answers(columns, kept)
        else:
            answered = True
        if answered and _ANSWER not in columns:
            raise _wrong_columns(name, list(columns))
        rows: list[Question] = []
        seen: dict[tuple[str, ...], int] = {}
        for line, cells in lines:
            row = _question(name, line, cells, columns, subject, len(rows), answered)
            body = (row.text, *row.choices)
            if body in seen:
                self.remarks.append(
                    translate(
                        "{file}, line {line}: the same question as in line {first}; both count.",
                        file=name,
                        line=line,
                        first=seen[body],
                    )
                )
            seen.setdefault(body, line)
            rows.append(row)
        if not rows:
            raise DataError("{file} has no questions; fetch it again.", file=name)
        return rows

    def _columns(self, name: str, lines: Iterator[Line]) -> dict[str, int]:
        """Map names of columns, in small letters, to their places."""
        if not has_header(name, self._benchmark.has_header):
            return {column: place for place, column in enumerate((*_TEXT, _ANSWER))}
        _, header = next(lines, (1, []))
        columns = {cell.strip().lower(): place for place, cell in enumerate(header)}
        if not columns.keys() >= set(_TEXT):
            raise _wrong_columns(name, header)
        return columns


def _wrong_columns(name: str, header: Sequence[str]) -> DataError:
    return DataError(
        "{file}, line 1: the columns are {given}; there must be question, A, B, C, D and answer.",
        file=name,
        given=", ".join(header),
    )


def _has_answers(columns: dict[str, int], lines: Sequence[Line]) -> bool:
    """Say whether any row has an answer."""
    place = columns.get(_ANSWER)
    return place is not None and any(
        "".join(cells[place : place + 1]).strip() for _, cells in lines
    )


def _question(
    name: str,
    line: int,
    cells: list[str],
    columns: dict[str, int],
    subject: str,
    place: int,
    answered: bool,
) -> Question:
    """Check one row."""
    if not any(cell.strip() for cell in cells):
        raise DataError("{file}, line {line}: the row is empty; delete it.", file=name, line=line)
    if len(cells) != len(columns):
        raise DataError(
            "{file}, line {line}: the row has {count} columns; the file has {expected}. Is a "
            "quotation mark missing?",
            file=name,
            line=line,
            count=len(cells),
            expected=len(columns),
        )
    body = [cells[columns[column]] for column in _TEXT]
    for column, text in zip(_TEXT, body, strict=True):
        if not text.strip():
            raise DataError(
                "{file}, line {line}: column {column} is empty.",
                file=name,
                line=line,
                column=column if column == "question" else column.upper(),
            )
    answer = cells[columns[_ANSWER]].strip().upper() if answered else None
    if answer is not None and answer not in LETTERS:
        raise DataError(
            "{file}, line {line}: the answer is {given!r}; allowed is A, B, C or D.",
            file=name,
            line=line,
            given=cells[columns[_ANSWER]],
        )
    number = cells[columns["id"]].strip() if "id" in columns else str(place)
    return Question(subject, number, body[0], tuple(body[1:]), answer)
