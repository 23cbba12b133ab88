"""One evaluation from prompts to a result file: resumable, and shared by several processes.

What is scored goes to a journal beside the result, a line per batch, as soon as it is known; a run
that was killed goes on behind the last whole line. Knows scorers by their interface alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed

from baichuan.errors import UsageError
from baichuan.evaluate.data import Data
from baichuan.evaluate.prompts import Prompt, PromptMaker
from baichuan.evaluate.results import Answer, Result, Settings, read_result
from baichuan.evaluate.scorers import Scorer, Scores
from baichuan.evaluate.server import MISSING
from baichuan.files import check_writable, locked
from baichuan.json_files import parse_json
from baichuan.language import translate
from baichuan.outputs import unwritable

#: Told how many questions are scored, of how many, and how many of them in this run.
Tell = Callable[[int, int, int], None]

_JOURNAL, _BEGIN = ".partial", b'{"settings": '
#: How long one process may wait for the others.
_PATIENCE = timedelta(days=30)
#: Known questions that a server is asked again, and how far, in nats, its scores may be from what
#: they were: on a GPU they depend on the other requests of a batch.
_ASKED_AGAIN, _TOLERANCE = 8, 0.25


@dataclass(frozen=True)
class Share:
    """Which process this is, of how many; torchrun and `accelerate launch` say it."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of_this_process(cls) -> Share:
        """Read what the launcher said; alone without one."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def device(self) -> str | None:
        """The GPU of this process among several; None leaves the choice to the loader."""
        if self.count > 1 and torch.cuda.is_available():
            return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return None

    def subjects(self, sizes: dict[str, int]) -> list[str]:
        """Give this process its subjects: whole ones, so that batches are the same for any count.

        Args:
            sizes: questions of each subject.
        """
        loads = [0] * self.count
        mine = []
        for subject in sorted(sizes, key=lambda name: (-sizes[name], name)):
            least = loads.index(min(loads))
            loads[least] += sizes[subject]
            if least == self.rank:
                mine.append(subject)
        return mine


def evaluate(
    settings: Settings,
    data: Data,
    scorer: Scorer,
    maker: PromptMaker,
    target: Path,
    tell: Tell | None = None,
) -> Result | None:
    """Score what is not scored yet and write the result.

    Args:
        settings: what the result depends on; a journal of other settings is refused.
        data: the questions.
        scorer: scores them.
        maker: makes their prompts.
        target: the result's file; its journal lies beside it.
        tell: told of progress.

    Several processes (`Share.of_this_process`) must be `connected`.

    Returns:
        The result; None in all processes but the first.

    Raises:
        UsageError: the file, or what is left of an earlier run, is of other settings; or another
            run is writing it.
    """
    share = Share.of_this_process()
    prompts = {
        subject: [maker.prompt(row, data.shots.get(subject, [])) for row in data.questions[subject]]
        for subject in share.subjects({name: len(rows) for name, rows in data.questions.items()})
    }
    with _alone(target, share):
        with closing(Journal(target, settings, share)) as journal:
            served = settings.served is not None
            answers = _answered(prompts, scorer, journal, tell, served)
        gathered = _gathered(answers, share)
        if gathered is None:
            return None
        rows = [answer for subject in data.questions for answer in gathered[subject]]
        result = Result(settings, rows, data.remarks + _shortened(rows, settings))
        result.save(target)
        Journal.remove_all(target, settings)
        return result


@contextmanager
def _alone(target: Path, share: Share) -> Iterator[None]:
    """Keep other runs away from the file; of several processes the first speaks for all."""
    if share.rank > 0:
        yield
        return
    with ExitStack() as held:
        try:
            check_writable(target)  # the lock would make the directory
            held.enter_context(locked(target.with_name(f"{target.name}.lock")))
        except TimeoutError as error:
            raise UsageError(
                "Another run is writing {target}; wait until it ends, or name another file with "
                "--out.",
                target=target,
            ) from error
        except OSError as error:
            raise unwritable(target, error) from error
        yield


def _answered(
    prompts: dict[str, list[Prompt]],
    scorer: Scorer,
    journal: Journal,
    tell: Tell | None,
    served: bool,
) -> dict[str, list[Answer]]:
    """Score what the journal has not, and predict."""
    known = {subject: journal.known.get(subject, {}) for subject in prompts}
    if served:
        _require_same_answers(prompts, known, scorer, journal)
    total = sum(map(len, prompts.values()))
    before = done = sum(map(len, known.values()))
    if tell is not None:
        tell(done, total, 0)
    for subject, asked in prompts.items():
        for batch in scorer.scores(asked, known[subject].keys()):
            journal.add(subject, batch)
            done += len(batch.keys() - known[subject].keys())
            known[subject].update(batch)
            if tell is not None:
                tell(done, total, done - before)
    return {
        subject: [Answer.of(prompt, known[subject][i]) for i, prompt in enumerate(asked)]
        for subject, asked in prompts.items()
    }


def _require_same_answers(
    prompts: dict[str, list[Prompt]],
    known: dict[str, Scores],
    scorer: Scorer,
    journal: Journal,
) -> None:
    """Ask a server some known questions again; nothing else tells which weights it has."""
    pairs = [(subject, index) for subject, scores in known.items() for index in sorted(scores)]
    chosen = pairs[:: -(-len(pairs) // _ASKED_AGAIN) or 1]
    asked = [prompts[subject][index] for subject, index in chosen]
    for batch in scorer.scores(asked, ()):
        for place, scores in batch.items():
            subject, index = chosen[place]
            if not _alike(scores, known[subject][index]):
                raise UsageError(
                    "The server answers otherwise than when {path} was written: question {number} "
                    "of {subject} scored {before}, now {now}. It seems to serve other weights; "
                    "name another file with --out, or delete this one.",
                    path=journal.path,
                    number=asked[place].question.number,
                    subject=subject,
                    before=known[subject][index],
                    now=scores,
                )


def _alike(first: Sequence[float], second: Sequence[float]) -> bool:
    """Compare log-probabilities of the letters that were among the most likely tokens twice."""
    pairs = [pair for pair in zip(first, second, strict=True) if MISSING not in pair]
    return first == second if not pairs else all(abs(a - b) <= _TOLERANCE for a, b in pairs)


def finished(target: Path, settings: Settings) -> Result | None:
    """Give the result if it is there already.

    Raises:
        UsageError: the file is the result of other settings, or of a server: its weights cannot be
            known, so they may have changed.
        DataError: it is no result at all.
    """
    if not target.exists():
        return None
    result = read_result(target)
    _require_same(target, settings, result.settings)
    if settings.served is not None:
        raise UsageError(
            "{path} holds a finished evaluation of the server at {server}, which may serve other "
            "weights by now. Show it with `baichuan eval compare {path}`, or evaluate again with "
            "another --out.",
            path=target,
            server=settings.backend,
        )
    share = Share.of_this_process()
    if share.rank == 0:
        # A run that was killed when the result was written left its journal.
        with suppress(UsageError), _alone(target, share):
            Journal.remove_all(target, settings)
    return result


@contextmanager
def connected(share: Share) -> Iterator[None]:
    """Connect the processes of a shared run for `require_same_everywhere` and `evaluate`."""
    if share.count == 1:
        yield
        return
    torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def require_same_everywhere(settings: Settings, share: Share) -> None:
    """Compare the settings of all connected processes, before any of them computes.

    Raises:
        UsageError: they differ, as where machines hold different weights under one name.
    """
    if share.count == 1:
        return
    found: list[Any] = [None] * share.count
    torch.distributed.all_gather_object(found, settings)
    for rank, other in enumerate(found):
        differing = other.differing(found[0])
        if differing:
            raise UsageError(
                "Processes 0 and {rank} would evaluate different things ({differing}). All "
                "processes must load the same checkpoint and the same data.",
                rank=rank,
                differing="; ".join(differing),
            )


class Journal:
    """Scores of a run that is not finished, a line of JSON per batch.

    Attributes:
        known: subject to index to scores, of all earlier runs, by however many processes.
        path: of this process's own file.
    """

    def __init__(self, target: Path, settings: Settings, share: Share) -> None:
        """Read what earlier runs wrote, and begin a file.

        Raises:
            UsageError: a file is of other settings or no journal, or the disk does not take it.
        """
        self.known: dict[str, Scores] = {}
        self._target, self._settings = target, settings
        for path in _journals(target):
            for subject, scores in _read(path, settings):
                self.known.setdefault(subject, {}).update(scores)
        number = f".{share.rank}" if share.count > 1 else ""
        self.path = target.with_name(f"{target.name}{_JOURNAL}{number}")
        try:
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._line({"settings": asdict(settings)})

    def add(self, subject: str, scores: Scores) -> None:
        """Write a batch."""
        self._line({"subject": subject, "scores": list(scores.items())})

    def close(self) -> None:
        """End it; what it holds stays for the next run."""
        self._file.close()

    @staticmethod
    def remove_all(target: Path, settings: Settings) -> None:
        """Delete all processes' journals: the result is written.

        Raises:
            UsageError: one is of other settings or no journal, or cannot be deleted.
        """
        for path in _journals(target):
            for _ in _read(path, settings):
                pass
            try:
                path.unlink()
            except OSError as error:
                raise unwritable(path, error) from error

    def _line(self, entry: dict[str, Any]) -> None:
        # Behind a line that was cut off, a new one begins.
        left = memoryview(b"\n" + json.dumps(entry).encode() + b"\n")
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise unwritable(self.path, error) from error


def _journals(target: Path) -> list[Path]:
    """List the journals of a result, of however many processes."""
    name = re.compile(re.escape(target.name + _JOURNAL) + r"(\.\d+)?")
    return sorted(path for path in target.parent.iterdir() if name.fullmatch(path.name))


def _read(path: Path, settings: Settings) -> Iterator[tuple[str, Scores]]:
    """Read the batches of a journal.

    Raises:
        UsageError: it is of other settings, or no journal.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError.unreadable(path, error) from error
    lines = [line for line in lines if line.strip()]
    if lines and not (lines[0].startswith(_BEGIN) or _BEGIN.startswith(lines[0])):
        raise _no_journal(path, lines[0])
    for line in lines:
        try:
            entry = parse_json(line.decode())
        except ValueError:  # cut off when the run was killed
            continue
        try:
            if "settings" in entry:
                _require_same(path, settings, Settings.from_dict(entry["settings"]))
            else:
                yield entry["subject"], {int(i): _four(scores) for i, scores in entry["scores"]}
        except UsageError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise _no_journal(path, line) from error


def _four(scores: Any) -> tuple[float, ...]:
    a, b, c, d = scores
    return float(a), float(b), float(c), float(d)


def _no_journal(path: Path, line: bytes) -> UsageError:
    return UsageError(
        "{path} is no journal of `baichuan eval`, which would write there (its line {line}). Move "
        "it away, or name another file with --out.",
        path=path,
        line=repr(line.decode("utf-8", "replace")[:60]),
    )


def _require_same(path: Path, settings: Settings, found: Settings) -> None:
    differing = settings.differing(found)
    if differing:
        raise UsageError(
            "{path} is of an evaluation with other settings ({differing}). Name another file with "
            "--out, or delete it.",
            path=path,
            differing="; ".join(differing),
        )


def _shortened(answers: Sequence[Answer], settings: Settings) -> list[str]:
    """Say how many prompts lost examples."""
    count = sum(answer.shots < settings.shots for answer in answers)
    if not count:
        return []
    return [
        translate(
            "Prompts with fewer examples, to fit into {limit} tokens: {count} of {total}.",
            count=count,
            limit=settings.max_length,
            total=len(answers),
        )
    ]


def _gathered(answers: dict[str, list[Answer]], share: Share) -> dict[str, list[Answer]] | None:
    """Bring all processes' answers to the first, and wait for it; None elsewhere."""
    if share.count == 1:
        return answers
    found: list[Any] | None = [None] * share.count if share.rank == 0 else None
    torch.distributed.gather_object(answers, found)
    if found is None:
        return None
    return {subject: rows for part in found for subject, rows in part.items()}
