"""From a recipe to the rows that are learned: read, checked, split, encoded, packed.

Each step is kept by `datasets` on the disk, under a fingerprint of all that it depends on; a second
run with the same data and settings begins at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from baichuan.digest import file_digest
from baichuan.errors import BaichuanError, DataError, UsageError
from baichuan.language import language, translate
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.train import formats
from baichuan.train.collate import Collator
from baichuan.train.encoding import Encoded, Encoding
from baichuan.train.formats import Example
from baichuan.train.packing import pack
from baichuan.train.recipe import DataArguments, Recipe
from baichuan.train.registry import EVALUATION, Source, find
from baichuan.train.rows import hub_dataset, rows_of
from baichuan.train.templates import TEMPLATES

__all__ = ["Collator", "Splits", "load"]

_Result = TypeVar("_Result")

#: Rows that are encoded, and packed, at once.
_BATCH = 1000
_PACKED_AT_ONCE = 20_000
#: Broken rows that an error shows, and files that a notice does.
_SHOWN = 5
#: Raised whenever the same rows come out differently; it keeps old files from being used.
_VERSION = 2

_ROW = Features(
    {
        "system": Value("string"),
        "rounds": List(List(Value("string"))),
        "marks": List(List(Value("bool"))),
        "chosen": Value("string"),
        "rejected": Value("string"),
        "text": Value("string"),
        "place": Value("string"),
        "problem": Value("string"),
    }
)


@dataclass(frozen=True)
class Splits:
    """Rows ready for training.

    Attributes:
        train: `input_ids` and `labels` (-100 = not learned), lists of int; packed rows also have
            `attention_mask`, the segment numbers 1, 2, 3..., and `position_ids`, which restart with
            each segment. For dpo: `chosen_input_ids`, `chosen_labels`, `rejected_input_ids`,
            `rejected_labels`.
        evaluation: the same, never packed; None without any.
        notices: what the user should know, as sentences.
    """

    train: Dataset
    evaluation: Dataset | None
    notices: tuple[str, ...]


def load(recipe: Recipe, tokenizer: BaichuanTokenizer) -> Splits:
    """Prepare all rows. Of several processes, let one be first: the others read its result.

    Raises:
        DataError: a file is missing or broken, or rows are: names file and row.
        UsageError: a data set that there is not, or too few rows to keep some for evaluation.
        DownloadError: a data set could not be fetched.
    """
    notices: list[str] = []
    train = _read(find(recipe.data.dataset, recipe.data.dataset_dir), recipe, notices)
    evaluation = None
    if recipe.data.eval_dataset:
        held = find(recipe.data.eval_dataset, recipe.data.dataset_dir, EVALUATION)
        evaluation = _read(held, recipe, notices)
    elif recipe.data.val_size:
        train, evaluation = _split(train, recipe.data.val_size, recipe.training.seed)
    names = recipe.data.dataset
    train = _encoded(train, names, recipe, tokenizer, notices)
    if evaluation is not None:
        names = recipe.data.eval_dataset or names
        evaluation = _encoded(evaluation, names, recipe, tokenizer, notices)
    if recipe.packs:
        train = _packed(train, recipe.data)
    return Splits(train, evaluation, tuple(notices))


def _read(sources: Sequence[Source], recipe: Recipe, notices: list[str]) -> Dataset:
    """Read and check data sets, one behind the other."""
    parts = []
    for source in sources:
        if source.others:
            more = ", ..." if len(source.others) > _SHOWN else ""
            notices.append(
                translate(
                    "Of {name!r} the split {split!r} is read; not read: {others}.",
                    name=source.name,
                    split=source.split,
                    others=", ".join(file.name for file in source.others[:_SHOWN]) + more,
                )
            )
        rows = _generated(source, recipe)
        if limit := recipe.data.max_samples:
            rows = rows.select(range(min(limit, len(rows))))
        parts.append(_without_broken(rows, source.name, recipe.data, notices))
    return concatenate_datasets(parts)


def _generated(source: Source, recipe: Recipe) -> Dataset:
    """Read one data set; what is wrong with a row stands in its column `problem`."""
    # By content: size and date can stay as they were (cp -p, rsync).
    stamps: list[Any] = [(str(file), _digest(file)) for file in source.files]
    if source.hub:
        stamps.append(hub_dataset(source)._fingerprint)  # of what the hub has now
    if recipe.data.overwrite_cache:
        stamps.append(time.time_ns())
    # The last two only tell one result from another.
    settings = {"stage": [recipe.method.stage], "stamps": [stamps], "version": [_VERSION]}
    try:
        return Dataset.from_generator(
            _checked_rows,
            features=_ROW,
            gen_kwargs={"source": source, "tongue": language(), **settings},
            cache_dir=recipe.model.cache_dir,
        )
    except DatasetGenerationError as error:
        cause = error.__cause__
        if isinstance(cause, BaichuanError):
            raise cause from error
        raise DataError(
            "The data set {name!r} cannot be read: {reason}.",
            name=source.name,
            reason=str(cause or error).splitlines()[0],
        ) from error


def _digest(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError as error:
        raise DataError("{file} cannot be read: {reason}.", file=file, reason=error) from error


def _checked_rows(source: Source, stage: list[str], **_: object) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    empty = True
    for place, row in rows_of(source):
        empty = False
        seen.update(row if isinstance(row, Mapping) else ())
        problem, example = "", Example()
        try:
            example = formats.read(row, source.layout, stage[0])
        except DataError as error:
            problem = f"{place}: {error}"
        yield {**asdict(example), "place": place, "problem": problem}
    if empty:
        raise _no_rows(source.name)
    _check_columns(source, seen)


def _check_columns(source: Source, seen: set[str]) -> None:
    """Raise where the registry names columns that no row has."""
    named = source.layout.columns.items()
    absent = [f"{purpose}: {column}" for purpose, column in named if column not in seen]
    if absent and source.num_samples is None:
        raise DataError(
            "No row of {name!r} has the columns that dataset_info.json names ({absent}); the rows' "
            "columns are {columns}.",
            name=source.name,
            absent=", ".join(absent),
            columns=", ".join(sorted(map(str, seen))),
        )


def _no_rows(name: str) -> DataError:
    return DataError("The data set {name!r} has no rows.", name=name)


def _without_broken(rows: Dataset, name: str, data: DataArguments, notices: list[str]) -> Dataset:
    """Stop at broken rows, or leave them out if that was asked for."""
    problems = [problem for problem in rows["problem"] if problem]
    if problems and not data.skip_broken_rows:
        raise DataError(
            "{count} rows of {name!r} cannot be learned from; mend them, or leave them out with "
            "--skip_broken_rows.\n{problems}",
            count=len(problems),
            name=name,
            problems="\n".join(f"  {problem}" for problem in problems[:_SHOWN]),
        )
    if problems:
        notices.append(
            translate(
                "{count} broken rows of {name!r} are left out; the first: {problem}",
                count=len(problems),
                name=name,
                problem=problems[0],
            )
        )
        whole = [number for number, problem in enumerate(rows["problem"]) if not problem]
        rows = rows.select(whole)
    if not len(rows):
        raise _no_rows(name)
    return rows.remove_columns("problem")


def _split(rows: Dataset, size: float, seed: int) -> tuple[Dataset, Dataset]:
    """Keep some rows, drawn by the seed, for evaluation; at least one."""
    count = int(size) if size >= 1 else max(1, round(size * len(rows)))
    if count >= len(rows):
        raise UsageError(
            "val_size is {given}, which leaves nothing of {count} rows to learn from.",
            given=size,
            count=len(rows),
        )
    parts: DatasetDict = rows.train_test_split(test_size=count, seed=seed)
    return parts["train"], parts["test"]


def _encoded(
    rows: Dataset,
    names: Sequence[str],
    recipe: Recipe,
    tokenizer: BaichuanTokenizer,
    notices: list[str],
) -> Dataset:
    """Turn rows into ids and labels; a row that finds no room is a broken one, too."""
    encoding = Encoding(
        tokenizer,
        TEMPLATES[recipe.data.template],
        recipe.data.cutoff_len,
        recipe.data.train_on_prompt,
        recipe.data.mask_history,
    )
    workers = min(recipe.data.preprocessing_num_workers or 1, 1 + len(rows) // _BATCH)
    encoded = rows.map(
        partial(_BATCHES[recipe.method.stage], encoding),
        batched=True,
        batch_size=_BATCH,
        remove_columns=rows.column_names,
        num_proc=workers if workers > 1 else None,
        load_from_cache_file=not recipe.data.overwrite_cache,
        new_fingerprint=_fingerprint(rows, recipe, encoding),
        desc=translate("encoding"),
    )
    encoded = _without_broken(encoded, ",".join(names), recipe.data, notices)
    if cut := sum(encoded["cut"]):
        notices.append(
            translate(
                "{cut} of {count} rows are longer than {limit} tokens and were cut; raise "
                "--cutoff_len to learn them whole.",
                cut=cut,
                count=len(encoded),
                limit=recipe.data.cutoff_len,
            )
        )
    return encoded.remove_columns("cut")


def _fingerprint(rows: Dataset, recipe: Recipe, encoding: Encoding) -> str:
    """Name the result by all that it depends on; the tokenizer by its vocabulary and its flag."""
    tokenizer = encoding.tokenizer
    assert isinstance(tokenizer, BaichuanTokenizer)
    vocabulary = Hasher.hash(tokenizer.sp_model.serialized_model_proto())
    return str(
        Hasher.hash(
            (
                rows._fingerprint,
                _VERSION,
                recipe.method.stage,
                recipe.data.template,
                encoding.cutoff_len,
                encoding.train_on_prompt,
                encoding.mask_history,
                vocabulary,
                tokenizer.add_bos_token,
                tokenizer.eos_token_id,
                language(),  # of what is wrong with rows
            )
        )
    )


def _packed(rows: Dataset, data: DataArguments) -> Dataset:
    """Put several rows in one."""
    return rows.map(
        partial(pack, capacity=data.cutoff_len),
        batched=True,
        batch_size=_PACKED_AT_ONCE,
        remove_columns=rows.column_names,
        load_from_cache_file=not data.overwrite_cache,
        new_fingerprint=str(Hasher.hash((rows._fingerprint, _VERSION, data.cutoff_len, "packed"))),
        desc=translate("packing"),
    )


_Batch = dict[str, list[Any]]
_NOTHING = Encoded([], [])


def _examples(batch: _Batch) -> Iterator[Example]:
    kept = [name for name in batch if name != "place"]
    for values in zip(*(batch[name] for name in kept), strict=True):
        cells = dict(zip(kept, values, strict=True))
        rounds, marks = (tuple(map(tuple, cells.pop(name))) for name in ("rounds", "marks"))
        yield Example(rounds=rounds, marks=marks, **cells)


def _encode_each(
    encode: Callable[[Example], _Result], nothing: _Result, batch: _Batch
) -> tuple[list[_Result], list[str]]:
    """Encode rows; return also what is wrong with each, "" where it is nothing."""
    results, problems = [], []
    for place, example in zip(batch["place"], _examples(batch), strict=True):
        result, problem = nothing, ""
        try:
            result = encode(example)
        except DataError as error:
            problem = f"{place}: {error}"
        results.append(result)
        problems.append(problem)
    return results, problems


def _columns(encoded: Sequence[Encoded], prefix: str = "") -> _Batch:
    return {
        f"{prefix}input_ids": [row.ids for row in encoded],
        f"{prefix}labels": [row.labels for row in encoded],
    }


def _answer_batch(encoding: Encoding, batch: _Batch) -> _Batch:
    rows, problems = _encode_each(encoding.answers, _NOTHING, batch)
    return {**_columns(rows), "cut": [row.cut for row in rows], "problem": problems}


def _text_batch(encoding: Encoding, batch: _Batch) -> _Batch:
    rows = [piece for text in batch["text"] for piece in encoding.text(text)]
    return {**_columns(rows), "cut": [False] * len(rows), "problem": [""] * len(rows)}


def _preference_batch(encoding: Encoding, batch: _Batch) -> _Batch:
    pairs, problems = _encode_each(encoding.preference, (_NOTHING, _NOTHING), batch)
    better, worse = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    cut = [pair[0].cut for pair in pairs]
    both = {**_columns(better, "chosen_"), **_columns(worse, "rejected_")}
    return {**both, "cut": cut, "problem": problems}


_BATCHES: dict[str, Callable[[Encoding, _Batch], _Batch]] = {
    "sft": _answer_batch,
    "pt": _text_batch,
    "dpo": _preference_batch,
}
