"""Questions from a data set's tables, checked row by row.

Knows which columns the benchmarks' files have; no file format (tables.py), no prompt and no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from baichuan.errors import DataError, UsageError
from baichuan.evaluate.layouts import Tables
from baichuan.evaluate.subjects import Benchmark
from baichuan.evaluate.tables import Files, Line, lines_of, open_files
from baichuan.language import translate

LETTERS = ("A", "B", "C", "D")
_TEXT = ("question", "a", "b", "c", "d")
_ANSWER = "answer"
#: Subjects that one remark names.
_NAMED = 5


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
    whole = {name: reader.rows(name, split) for name in chosen}
    questions = {name: rows[:limit] for name, rows in whole.items()}
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
    remarks = [
        *_unofficial(benchmark, split, whole),
        *_unofficial(benchmark, "dev", examples),
        *reader.remarks,
    ]
    return Data(benchmark, split, examples, questions, remarks)


def _unofficial(
    benchmark: Benchmark, split: str, questions: Mapping[str, Sequence[Question]]
) -> list[str]:
    """Say which files have fewer or more rows than the official ones."""
    official = benchmark.rows[split]
    found = [
        f"{subject} {len(rows)}/{official[subject]}"
        for subject, rows in questions.items()
        if len(rows) != official[subject]
    ]
    if not found:
        return []
    more = f", … (+{len(found) - _NAMED})" if len(found) > _NAMED else ""
    return [
        translate(
            "Not the official number of rows in {split}: {subjects}. These scores cannot be "
            "compared with published ones.",
            split=split,
            subjects=", ".join(found[:_NAMED]) + more,
        )
    ]


def _check_choice(what: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise UsageError(
            "{what} is {given!r}; allowed is one of: {allowed}.",
            what=what,
            given=given,
            allowed=", ".join(allowed),
        )


class _Part(NamedTuple):
    """One file: the places of its columns, by names in small letters, their number, its rows."""

    name: str
    columns: dict[str, int]
    width: int
    lines: list[Line]


class _Reader:
    """Reads files of one benchmark from one place."""

    def __init__(self, benchmark: Benchmark, place: str, files: Files) -> None:
        self.remarks: list[str] = []
        self._benchmark = benchmark
        self._tables = Tables(files, place, benchmark)
        self._files = files
        self._mixed = lru_cache(maxsize=None)(self._part)

    def rows(self, subject: str, split: str) -> list[Question]:
        """Read one table.

        Raises:
            DataError: it is missing, there are several, or a row is wrong.
        """
        table = self._tables.find(subject, split)
        if table.mixed:
            parts = [_of_subject(self._mixed(name), subject) for name in table.names]
        else:
            parts = [self._part(name) for name in table.names]
        # C-Eval's test split was published without answers, or with empty ones, then with them.
        unpublished = self._benchmark.name == "ceval" and split == "test"
        answered = not unpublished or any(map(_has_answers, parts))
        rows: list[Question] = []
        seen: dict[tuple[str, ...], str] = {}
        for part in parts:
            if answered and _ANSWER not in part.columns:
                raise _wrong_columns(part.name, list(part.columns))
            for line, cells in part.lines:
                row = _question(part, line, cells, subject, len(rows), answered)
                self._remark_repetition(row, part.name, line, seen)
                rows.append(row)
        if not rows:
            raise DataError(
                "{file} has no questions of {subject}; fetch it again.",
                file=table.names[0],
                subject=subject,
            )
        return rows

    def _remark_repetition(
        self, row: Question, name: str, line: int, seen: dict[tuple[str, ...], str]
    ) -> None:
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
        seen.setdefault(body, str(line))

    def _part(self, name: str) -> _Part:
        """Read one file, whose first line names the columns, unless it is of MMLU's own CSV."""
        lines = list(lines_of(name, self._files[name]()))
        header = lines[0][1] if lines else []
        while header and not header[-1].strip():  # Excel adds columns
            header = header[:-1]
        columns = {cell.strip().lower(): place for place, cell in enumerate(header)}
        if columns.keys() >= set(_TEXT):
            return _Part(name, columns, len(header), lines[1:])
        if self._benchmark.has_header or name.endswith(".parquet"):
            raise _wrong_columns(name, header)
        usual = (*_TEXT, _ANSWER)
        return _Part(name, dict(zip(usual, range(len(usual)), strict=True)), len(usual), lines)


def _of_subject(part: _Part, subject: str) -> _Part:
    """Keep the rows of one subject.

    Raises:
        DataError: no column names the subjects.
    """
    place = part.columns.get("subject")
    if place is None:
        raise DataError(
            "{file} holds all subjects, but has no column named subject to tell them apart.",
            file=part.name,
        )
    lines = [(line, cells) for line, cells in part.lines if cells[place : place + 1] == [subject]]
    return part._replace(lines=lines)


def _wrong_columns(name: str, header: Sequence[str]) -> DataError:
    return DataError(
        "{file}, line 1: the columns are {given}; there must be question, A, B, C, D and answer.",
        file=name,
        given=", ".join(header),
    )


def _has_answers(part: _Part) -> bool:
    """Say whether any row has an answer."""
    place = part.columns.get(_ANSWER)
    return place is not None and any(
        "".join(cells[place : place + 1]).strip() for _, cells in part.lines
    )


def _question(
    part: _Part, line: int, cells: list[str], subject: str, place: int, answered: bool
) -> Question:
    """Check one row."""
    name, columns, width, _ = part
    if not any(cell.strip() for cell in cells):
        raise DataError("{file}, line {line}: the row is empty; delete it.", file=name, line=line)
    if not any(cell.strip() for cell in cells[width:]):
        cells = cells[:width]
    if len(cells) != width:
        raise DataError(
            "{file}, line {line}: the row has {count} columns; the file has {expected}. Is a "
            "quotation mark missing?",
            file=name,
            line=line,
            count=len(cells),
            expected=width,
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
