"""`baichuan eval ceval|mmlu|cmmlu`: one table, one JSON file, one picture."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from baichuan.cli.loading import digests_of, load_model, model_name
from baichuan.errors import UsageError
from baichuan.evaluate.data import Data, read_data
from baichuan.evaluate.picture import can_draw, draw, require_picture
from baichuan.evaluate.prompts import PromptMaker, Scheme, scheme_of
from baichuan.evaluate.published import PUBLISHED
from baichuan.evaluate.results import Result, Settings, write_json
from baichuan.evaluate.run import (
    Share,
    Tell,
    connected,
    evaluate,
    finished,
    require_same_everywhere,
)
from baichuan.evaluate.score import Interval
from baichuan.evaluate.scorers import BaichuanScorer, Scorer, TransformersScorer
from baichuan.evaluate.server import ServerScorer
from baichuan.evaluate.subjects import BENCHMARKS
from baichuan.language import translate
from baichuan.outputs import require_writable

_LETTERS = ("first", "last", "piece", "spaced")
#: Remarks about single rows that are shown; all are in the file.
_SHOWN = 3


@dataclass(frozen=True)
class Asked:
    """What was typed; see the options of `baichuan eval ceval`."""

    benchmark: str
    model: str | None = None
    data: str | None = None
    scheme: str = "official"
    shots: int = 5
    split: str | None = None
    subjects: tuple[str, ...] = ()
    limit: int | None = None
    chat: bool = False
    letter: str | None = None
    bos: bool | None = None
    max_length: int = 2048
    seed: int = 0
    batch_tokens: int = 1024
    transformers: bool = False
    server: str | None = None
    api_key: str | None = None
    bits: int | None = None
    dtype: str | None = None
    device: str | None = None
    adapter: Path | None = None


def run_benchmark(asked: Asked, out: Path | None, plot: Path | None) -> None:
    """Evaluate, with a bar, and print the table.

    Args:
        asked: what to evaluate and how.
        out: the result file; None names it after benchmark and model.
        plot: the picture; None draws beside the result, where matplotlib is installed.

    Raises:
        BaichuanError: data or model cannot be used, a value is not allowed, or a file cannot be
            written.
    """
    require_writable(out, plot)
    if plot is not None:
        require_picture(plot)
    scheme = scheme_of(asked.benchmark, asked.scheme)
    _check(asked)
    data = read_data(
        BENCHMARKS[asked.benchmark],
        asked.data,
        split=asked.split,
        subjects=asked.subjects,
        shots=asked.shots,
        limit=asked.limit,
    )
    share = Share.of_this_process()
    scorer, facts = _scorer(asked, scheme, share)
    settings = _settings(asked, scheme, data, facts)
    target = out or Path(f"{asked.benchmark}-{data.split}-{_stem(settings)}.json")
    require_writable(target)
    maker = PromptMaker(
        scheme,
        data.benchmark.names,
        shots=asked.shots,
        chat=asked.chat,
        max_length=asked.max_length,
        seed=asked.seed,
        count=scorer.count,
    )
    with connected(share):
        require_same_everywhere(settings, share)
        result = finished(target, settings) or _evaluated(
            settings, data, scorer, maker, target, share
        )
    if result is not None and share.rank == 0:
        _finish(result, target, plot)


def _evaluated(
    settings: Settings,
    data: Data,
    scorer: Scorer,
    maker: PromptMaker,
    target: Path,
    share: Share,
) -> Result | None:
    """Evaluate with a bar; say where an interrupted run is kept."""
    notes = Console(stderr=True, quiet=share.rank > 0, highlight=False, markup=False)
    for remark in data.remarks[:_SHOWN]:
        notes.print(Text(remark, style="dim"))
    try:
        with _bar(notes) as tell:
            return evaluate(settings, data, scorer, maker, target, tell)
    except KeyboardInterrupt:
        said = translate(
            "Stopped. What is scored is kept beside {path}; the same command goes on from there.",
            path=target,
        )
        notes.print(Text(said, style="dim"))
        raise


def _check(asked: Asked) -> None:
    """Refuse what cannot be together."""
    if asked.letter not in (None, *_LETTERS):
        raise UsageError(
            "letter is {given!r}; allowed is one of {allowed}.",
            given=asked.letter,
            allowed=", ".join(_LETTERS),
        )
    own = (asked.bits, asked.dtype, asked.device, asked.letter, asked.bos, asked.adapter)
    if asked.server is not None and (asked.transformers or any(o is not None for o in own)):
        raise UsageError(
            "A server has a model of its own: leave out --transformers, --bits, --dtype, "
            "--device, --letter, --bos and --adapter with --server."
        )
    if asked.transformers and (asked.bits is not None or asked.adapter is not None):
        raise UsageError(
            "--bits and --adapter are of this package's own networks; leave them out with "
            "--transformers (--model takes an adapter's directory there)."
        )


def _scorer(asked: Asked, scheme: Scheme, share: Share) -> tuple[Scorer, dict[str, Any]]:
    """Load what scores, and say what it is."""
    if asked.server is not None:
        server = ServerScorer(asked.server, asked.model, asked.api_key)
        facts = {"model": server.model, "backend": asked.server, "served": server.served}
        return server, {**facts, "dtype": None, "bits": None}
    bos = scheme.bos if asked.bos is None else asked.bos
    # Answers of Chat models begin with what the tokenizer gives for the letter alone.
    letter: Any = asked.letter or ("last" if asked.chat else scheme.letter)
    device = asked.device or share.device
    if asked.transformers:
        model, tokenizer = _load_any(asked.model, asked.dtype, device)
        scorer: Scorer = TransformersScorer(model, tokenizer, letter, bos, asked.batch_tokens)
        backend, bits = "transformers", None
    else:
        where = {"bits": asked.bits, "dtype": asked.dtype, "device": device}
        model, tokenizer = load_model(asked.model, adapter=asked.adapter, **where)
        scorer = BaichuanScorer(model, tokenizer, letter, bos, asked.batch_tokens)
        backend, bits = "baichuan", _bits(model)
    dtype = str(model.dtype).removeprefix("torch.")
    facts = {"model": model_name(asked.model, asked.adapter), "backend": backend, "dtype": dtype}
    adapter = asked.adapter or (asked.model if asked.transformers else None)
    digests = digests_of(model, adapter)
    return scorer, {**facts, **digests, "bits": bits, "letter": letter, "bos": bos}


def _load_any(name: str | None, dtype: str | None, device: str | None) -> tuple[Any, Any]:
    """Load by transformers' Auto classes; no code of a checkpoint runs."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from baichuan.hub import DEMO

    where = name or str(DEMO)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype or "auto", device_map=device or "auto"
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            "transformers cannot load {name}: {reason}",
            name=where,
            reason=str(error).strip().splitlines()[0],
        ) from error
    return model.eval(), tokenizer


def _bits(model: Any) -> int | None:
    settings = getattr(model.config, "quantization_config", None)
    return None if settings is None else int(settings.plan.scheme.bits)


def _settings(asked: Asked, scheme: Scheme, data: Data, facts: dict[str, Any]) -> Settings:
    served = asked.server is not None
    return Settings(
        benchmark=asked.benchmark,
        scheme=scheme.name,
        split=data.split,
        average=scheme.average,
        shots=asked.shots,
        subjects=asked.subjects,
        limit=asked.limit,
        chat=asked.chat,
        max_length=None if served or scheme.shorten == "none" else asked.max_length,
        seed=asked.seed,
        data=data.digest,
        **{"letter": "any", "bos": None, **facts},
    )


def _stem(settings: Settings) -> str:
    """Name a file after a model."""
    name = re.sub(r"[^\w.-]+", "-", settings.model.rstrip("/").rpartition("/")[2])
    return f"{name}-int{settings.bits}" if settings.bits else name


@contextmanager
def _bar(notes: Console) -> Iterator[Tell]:
    """Show questions done, how many a second, and the time that is left."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = not notes.is_terminal
    with Progress(*columns, console=notes, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=None, speed="")
        started = time.monotonic()

        def tell(done: int, total: int, new: int) -> None:
            speed = new / max(time.monotonic() - started, 1e-9)
            said = translate("{speed} questions/s", speed=f"{speed:.1f}") if new else ""
            progress.update(task, completed=done, total=total, speed=said)

        yield tell


def _finish(result: Result, target: Path, plot: Path | None) -> None:
    """Print the table, draw the picture, and say where the files are."""
    console = Console(highlight=False, markup=False, emoji=False)
    settings = result.settings
    if result.scored:
        console.print(_table(result))
        picture = plot or (target.with_suffix(".png") if can_draw() else None)
        if picture is not None:
            draw([result], [settings.model], picture)
    for remark in _remarks(result):
        console.print(Text(remark, style="dim"))
    if settings.benchmark == "ceval" and settings.split == "test":
        # Not to be taken for a result by `baichuan eval compare ceval-*.json`.
        submission = target.with_name(f"submission-{target.name}")
        write_json(submission, result.submission())
        console.print(translate("for C-Eval's site: {path}", path=submission))
    console.print(translate("every prediction: {path}", path=target))


def _table(result: Result) -> Table:
    settings, benchmark = result.settings, result.benchmark
    columns = result.columns()
    table = Table(title=f"{benchmark.title}, {settings.split}", title_justify="left")
    table.add_column(translate("Model {shots}-shot", shots=settings.shots), overflow="fold")
    for name in columns:
        table.add_column(name, justify="right")
    table.add_row(_name(settings), *(f"{100 * i.value:.1f}" for i in columns.values()))
    table.add_row(translate("interval of 95 %"), *map(_ends, columns.values()), style="dim")
    other: Any = "macro" if settings.average == "micro" else "micro"
    averages = [f"{100 * i.value:.1f}" for i in result.columns(other).values()]
    words = {
        "micro": translate("micro: over questions"),
        "macro": translate("macro: over subjects"),
    }
    table.add_row(words[other], *averages, style="dim")
    if not settings.subjects and settings.limit is None and "baichuan" in settings.model.lower():
        for model, row in PUBLISHED[settings.benchmark].items():
            published = translate("{name}, its README", name=model)
            table.add_row(published, *(f"{value:.1f}" for value in row), style="dim")
    return table


def _name(settings: Settings) -> str:
    return f"{settings.model} int{settings.bits}" if settings.bits else settings.model


def _ends(interval: Interval) -> str:
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"


def _remarks(result: Result) -> list[str]:
    """Say how it was done: each of these choices moves the figures."""
    settings = result.settings
    said = [
        translate(
            "{count} questions; scheme {scheme}, {average} average; letters by {letter}; {form}; "
            "{dtype}; computed by {backend}.",
            count=len(result.answers),
            scheme=settings.scheme,
            average=settings.average,
            letter=settings.letter,
            form=translate("chat format") if settings.chat else translate("plain text"),
            dtype=settings.dtype or "?",
            backend=settings.backend,
        )
    ]
    if not result.scored:
        said.append(translate("The data have no answers, so there are predictions but no scores."))
    return [*said, *result.remarks[:_SHOWN], *result.remarks[_SHOWN:][-1:]]
