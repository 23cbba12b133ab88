"""`baichuan eval compare`: results of several models beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from baichuan.errors import UsageError
from baichuan.evaluate.picture import draw, require_picture
from baichuan.evaluate.results import Result, read_result, write_json
from baichuan.evaluate.score import Paired, paired
from baichuan.language import translate
from baichuan.outputs import require_writable

#: Settings that belong to a model, and so may differ without a remark.
_OF_MODELS = ("model", "dtype", "bits", "backend", "checkpoint", "adapter", "served")


def run_compare(paths: Sequence[Path], saved: Path | None, plot: Path | None) -> None:
    """Print a table per benchmark; each result is compared with the first of its benchmark.

    Raises:
        DataError: a file is no result.
        UsageError: results that cannot be compared, or a file that cannot be written.
    """
    require_writable(saved, plot)
    if plot is not None:
        require_picture(plot)
    groups: dict[str, list[Result]] = {}
    for path in paths:
        result = read_result(path)
        if not result.scored:
            raise UsageError(
                "{path} has no scores, since its data have no answers; leave it out.", path=path
            )
        groups.setdefault(result.settings.benchmark, []).append(result)
    if plot is not None and len(groups) > 1:
        raise UsageError("A picture shows one benchmark; these are {count}.", count=len(groups))
    console = Console(highlight=False, markup=False, emoji=False)
    figures: dict[str, Any] = {}
    for benchmark, results in groups.items():
        names = _names(results)
        pairs = [_compared(results[0], other, names) for other in results[1:]]
        _print(console, results, names, pairs)
        figures[benchmark] = _figures(results, names, pairs)
    if len(groups) > 1:
        console.print(_overview(groups))
    if saved is not None:
        write_json(saved, figures)
    if plot is not None:
        ((_, results),) = groups.items()
        draw(results, _names(results), plot)


def _names(results: Sequence[Result]) -> list[str]:
    """Name models as shortly as tells them apart."""
    names = []
    for result in results:
        settings = result.settings
        name = settings.model.rstrip("/").rpartition("/")[2]
        names.append(f"{name} int{settings.bits}" if settings.bits else name)
    if len(set(names)) < len(names):
        names = [
            f"{name} {result.settings.dtype}" for name, result in zip(names, results, strict=True)
        ]
    if len(set(names)) < len(names):
        names = [f"{number}: {name}" for number, name in enumerate(names, 1)]
    return names


def _compared(first: Result, other: Result, names: Sequence[str]) -> Paired:
    keys = [[(a.subject, a.number, a.answer) for a in r.answers] for r in (first, other)]
    if keys[0] != keys[1]:
        raise UsageError(
            "The results of {names} are of different questions of {benchmark}; compare results of "
            "one split, the same subjects and the same limit.",
            names=", ".join(names),
            benchmark=first.benchmark.title,
        )
    return paired(first.right(), other.right(), first.settings.average)


def _print(
    console: Console, results: Sequence[Result], names: Sequence[str], pairs: Sequence[Paired]
) -> None:
    settings = results[0].settings
    columns = [result.columns() for result in results]
    title = f"{results[0].benchmark.title}, {settings.split}"
    table = Table(title=title, title_justify="left")
    table.add_column(translate("Model {shots}-shot", shots=settings.shots), overflow="fold")
    for name in columns[0]:
        table.add_column(name, justify="right")
    for name, row in zip(names, columns, strict=True):
        table.add_row(name, *(f"{100 * interval.value:.1f}" for interval in row.values()))
    console.print(table)
    for name, pair in zip(names[1:], pairs, strict=True):
        difference = pair.difference
        console.print(
            translate(
                "{name} − {first}: {value:+.2f} points (95 %: {low:+.2f} to {high:+.2f}); "
                "{gained} questions gained, {lost} lost of {total}; McNemar p = {p}",
                name=name,
                first=names[0],
                value=100 * difference.value,
                low=100 * difference.low,
                high=100 * difference.high,
                gained=pair.gained,
                lost=pair.lost,
                total=pair.total,
                p=f"{pair.p:.2g}",
            )
        )
    for name, result in zip(names[1:], results[1:], strict=True):
        for remark in _differences(settings.differing(result.settings)):
            console.print(Text(f"{name}: {remark}", style="dim"))


def _differences(found: Sequence[str]) -> list[str]:
    """Say what else differs than the model: the scores may come of that."""
    return [
        translate("other settings: {setting}", setting=setting)
        for setting in found
        if setting.partition(":")[0] not in _OF_MODELS
    ]


def _overview(groups: dict[str, list[Result]]) -> Table:
    """Make the README's quantization table: averages, a column per benchmark."""
    rows: dict[str, dict[str, str]] = {}
    for benchmark, results in groups.items():
        for name, result in zip(_names(results), results, strict=True):
            value = f"{100 * result.columns()['Average'].value:.1f}"
            rows.setdefault(name, {})[benchmark] = value
    table = Table(title=translate("Averages"), title_justify="left")
    table.add_column(translate("model"), overflow="fold")
    for results in groups.values():
        table.add_column(results[0].benchmark.title, justify="right")
    for name, found in rows.items():
        table.add_row(name, *(found.get(benchmark, "—") for benchmark in groups))
    return table


def _figures(
    results: Sequence[Result], names: Sequence[str], pairs: Sequence[Paired]
) -> dict[str, Any]:
    return {
        "models": [
            {
                "name": name,
                "settings": asdict(result.settings),
                "columns": {column: asdict(i) for column, i in result.columns().items()},
            }
            for name, result in zip(names, results, strict=True)
        ],
        "differences_from_the_first": [
            {"name": name, **asdict(pair)} for name, pair in zip(names[1:], pairs, strict=True)
        ],
    }
