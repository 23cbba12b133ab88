"""`baichuan eval perplexity` and `baichuan eval kl`: figures over text files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn
from rich.table import Table

from baichuan.cli.loading import digests_of, load_model, model_name
from baichuan.digest import files_digest
from baichuan.evaluate.results import write_json
from baichuan.evaluate.texts import TextScore, distance, perplexity, text_of
from baichuan.language import translate
from baichuan.outputs import require_writable


def run_perplexity(
    files: Sequence[Path],
    model: str | None,
    window: int | None,
    stride: int | None,
    saved: Path | None,
    where: dict[str, Any],
) -> None:
    """Print perplexity per token and bits per byte.

    Raises:
        BaichuanError: a file or the model cannot be used, or a value is not allowed.
    """
    require_writable(saved)
    texts = [text_of(path) for path in files]
    network, tokenizer = load_model(model, **where)
    sizes = _window(network, window, stride)
    with _bar() as tell:
        score = perplexity(network, _encoded(texts, tokenizer), **sizes, tell=tell)
    name = model_name(model, where["adapter"])
    Console(highlight=False, markup=False, emoji=False).print(_scores({name: score}))
    if saved is not None:
        digests = {**digests_of(network, where["adapter"]), "texts": files_digest(files)}
        write_json(saved, {"model": name, **sizes, **_figures(score), "digests": digests})


def run_kl(
    model: str,
    original: str,
    files: Sequence[Path],
    window: int | None,
    stride: int | None,
    saved: Path | None,
    where: dict[str, Any],
) -> None:
    """Print how far a model is from its original.

    Args:
        model, original: by directory or hub name.
        files: texts to compare the predictions on.
        window, stride: see `baichuan.evaluate.texts.perplexity`; None for the usual ones.
        saved: JSON file for all figures.
        where: arguments of `baichuan.load`; `bits` and `adapter` are the model's alone.

    Raises:
        BaichuanError: a file or a model cannot be used, or a value is not allowed.
    """
    require_writable(saved)
    texts = [text_of(path) for path in files]
    network, tokenizer = load_model(model, **where)
    other, _ = load_model(original, **{**where, "bits": None, "adapter": None})
    sizes = _window(other, window, stride)
    with _bar() as tell:
        found = distance(network, other, _encoded(texts, tokenizer), **sizes, tell=tell)
    console = Console(highlight=False, markup=False, emoji=False)
    bits = where.get("bits")
    named = translate("{name} (original)", name=original)
    name = model_name(model, where["adapter"])
    names = (f"{name} int{bits}" if bits else name, named)
    console.print(_scores(dict(zip(names, (found.model, found.original), strict=True))))
    console.print(
        translate(
            "KL from the original: {kl:.5f} nats per token; same likeliest token: {same:.2f} %",
            kl=found.kl,
            same=100 * found.same,
        )
    )
    if saved is not None:
        scores = {"model": _figures(found.model), "original": _figures(found.original)}
        figures = {"kl": found.kl, "same": found.same, "scores": scores}
        digests = {
            "model": digests_of(network, where["adapter"]),
            "original": digests_of(other),
            "texts": files_digest(files),
        }
        write_json(saved, {"models": list(names), **sizes, **figures, "digests": digests})


def _window(network: Any, window: int | None, stride: int | None) -> dict[str, int]:
    chosen = network.config.context_length if window is None else window
    return {"window": chosen, "stride": max(chosen // 2, 1) if stride is None else stride}


def _encoded(texts: Sequence[str], tokenizer: Any) -> list[tuple[list[int], int]]:
    return [(tokenizer.encode_text(text), len(text.encode())) for text in texts]


def _figures(score: TextScore) -> dict[str, float]:
    derived = {"perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}
    return {**asdict(score), **derived}


def _scores(rows: dict[str, TextScore]) -> Table:
    table = Table()
    table.add_column(translate("model"), overflow="fold")
    for name in (translate("tokens"), translate("perplexity"), translate("bits per byte")):
        table.add_column(name, justify="right")
    for name, score in rows.items():
        figures = (f"{score.perplexity:.3f}", f"{score.bits_per_byte:.4f}")
        table.add_row(name, f"{score.tokens:,}", *figures)
    return table


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    notes = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    hidden = not notes.is_terminal
    with Progress(*columns, console=notes, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=None)
        try:
            yield lambda done, total: progress.update(task, completed=done, total=total)
        except KeyboardInterrupt:
            notes.print(translate("Stopped; nothing is kept, the same command begins anew."))
            raise
