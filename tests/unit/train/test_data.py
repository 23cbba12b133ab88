"""From files to rows ready for training."""

from __future__ import annotations

import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from baichuan.errors import DataError, DownloadError, UsageError
from baichuan.train import data
from baichuan.train.arguments import parse

ROWS = [{"instruction": f"question {n}", "output": "answer " * n} for n in range(1, 41)]


@pytest.fixture
def load(tmp_path, tokenizer):
    """Write rows, and load them with flags."""

    def loaded(*flags: str, rows: object = ROWS, name: str = "rows.json") -> data.Splits:
        (tmp_path / name).write_text(rows if isinstance(rows, str) else json.dumps(rows))
        out = ["--output_dir", str(tmp_path / "out")]
        recipe = parse(["--dataset", name, "--dataset_dir", str(tmp_path), *out, *flags])
        return data.load(recipe, tokenizer)

    return loaded


def test_rows_in_the_order_of_the_file(load, tokenizer):
    splits = load()
    assert splits.train.column_names == ["input_ids", "labels"]
    assert splits.evaluation is None
    assert len(splits.train) == len(ROWS)
    spoken = tokenizer.decode([i for i in splits.train[4]["labels"] if i >= 0])
    assert spoken == " " + "answer " * 5 + "</s>"


def test_several_data_sets_and_at_most_so_many_rows_of_each(load, tmp_path):
    (tmp_path / "b.jsonl").write_text(
        '{"messages": [{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}'
    )
    assert len(load("--dataset", "rows.json,b.jsonl", "--max_samples", "5").train) == 6


@pytest.mark.parametrize(("size", "kept"), [("0.01", 1), ("0.25", 10), ("7", 7)])
def test_rows_kept_for_evaluation_are_drawn_by_the_seed(load, size, kept):
    first, same = load("--val_size", size), load("--val_size", size, "--overwrite_cache")
    other = load("--val_size", size, "--seed", "7")
    assert (len(first.train), len(first.evaluation)) == (40 - kept, kept)
    assert first.evaluation[:] == same.evaluation[:]
    assert first.train[:] == same.train[:]
    assert first.evaluation[:] != other.evaluation[:]
    together = [*first.train["input_ids"], *first.evaluation["input_ids"]]
    assert sorted(together) == sorted(load().train["input_ids"])


def test_a_data_set_for_evaluation(load, tmp_path):
    (tmp_path / "held.json").write_text(json.dumps(ROWS[:3]))
    splits = load("--eval_dataset", "held.json")
    assert (len(splits.train), len(splits.evaluation)) == (40, 3)


def test_the_split_of_a_folder_is_read_and_said(load, tmp_path, tokenizer):
    for split, rows in (("train", ROWS[:3]), ("test", ROWS[3:5]), ("validation", ROWS[5:6])):
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    (tmp_path / "data").mkdir()
    for file in tmp_path.glob("*.parquet"):
        file.rename(tmp_path / "data" / file.name)
    splits = load("--dataset", "data", "--eval_dataset", "data")
    assert (len(splits.train), len(splits.evaluation)) == (3, 1)
    assert splits.notices == (
        "Of 'data' the split 'train' is read; not read: test-00000-of-00001.parquet, "
        "validation-00000-of-00001.parquet.",
        "Of 'data' the split 'validation' is read; not read: test-00000-of-00001.parquet, "
        "train-00000-of-00001.parquet.",
    )
    entry = {"file_name": "data", "split": "test"}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"held": entry}))
    assert len(load("--dataset", "held").train) == 2


def test_a_split_of_the_hub(tmp_path, tokenizer, monkeypatch):
    """`datasets` takes a folder for a repository of the hub."""
    (tmp_path / "owner" / "rows").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = parse(["--dataset", "hub", "--eval_dataset", "hub", "--dataset_dir", "."])
    for held in (2, 4):  # and again where the repository has changed
        for split, rows in (("train", ROWS[:3]), ("test", ROWS[-held:])):
            text = "\n".join(map(json.dumps, rows))
            (tmp_path / "owner" / "rows" / f"{split}.jsonl").write_text(text)
        entries = {"hub": {"hf_hub_url": "owner/rows"}}
        (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
        splits = data.load(recipe, tokenizer)
        assert (len(splits.train), len(splits.evaluation)) == (3, held)
    entries["hub"]["split"] = "validation"
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    with pytest.raises(DownloadError, match=r"could not be fetched from the hub .*validation"):
        data.load(recipe, tokenizer)


SHAPES = {
    "rows.jsonl": lambda rows: ("\ufeff" + "\n".join(map(json.dumps, rows))).encode(),
    "rows.json": lambda rows: json.dumps(rows).encode(),
    "rows.csv": lambda rows: ("\ufeffinstruction,input,output\n" + "\n".join(
        ",".join(row.values()) for row in rows)).encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", [*SHAPES, "rows.parquet", "several"])
def test_only_the_columns_that_the_registry_names_are_read(load, tmp_path, tokenizer, name):
    rows = [{"instruction": "usual", "input": "asked", "output": f"answer {n}"} for n in (1, 2)]
    if name == "several":
        for number, row in enumerate(rows):
            (tmp_path / f"{number}.jsonl").write_text(json.dumps(row))
    elif name == "rows.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(SHAPES[name](rows))
    files = ["0.jsonl", "1.jsonl"] if name == "several" else name
    entry = {"file_name": files, "columns": {"prompt": "input", "response": "output"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    texts = [
        tokenizer.decode(ids) for ids in load("--dataset", "mine", name="x").train["input_ids"]
    ]
    assert [text.split("<reserved_103>")[0].split() for text in texts] == [
        ["<reserved_102>", "asked"]
    ] * 2
    assert "answer 1" in texts[0]
    assert "answer 2" in texts[1]


def test_columns_of_the_registry_that_no_row_has(load, tmp_path):
    columns = {"prompt": "instruction", "query": "inputt", "response": "output"}
    entry = {"file_name": "rows.json", "columns": columns}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    with pytest.raises(DataError, match=r"names \(query: inputt\).* are instruction, output"):
        load("--dataset", "mine")


def test_marks_of_turns_decide_what_is_learned(load, tokenizer):
    turns = [("user", "q"), ("assistant", "masked"), ("user", "r"), ("assistant", "fine")]
    messages = [{"role": role, "content": text} for role, text in turns]
    messages[1]["weight"] = 0
    labels = load(rows=[{"messages": messages}]).train[0]["labels"]
    assert tokenizer.decode([i for i in labels if i >= 0]).split() == ["fine</s>"]


def count_learned(rows) -> int:
    return sum(label >= 0 for labels in rows["labels"] for label in labels)


def test_packed_rows_hold_all_that_is_learned(load):
    packed, plain = load("--packing", "--cutoff_len", "256").train, load().train
    assert packed.column_names == ["input_ids", "labels", "attention_mask", "position_ids"]
    assert len(packed) < len(plain)
    assert all(len(ids) <= 256 for ids in packed["input_ids"])
    learned = [
        sum(label >= 0 for row in rows["labels"] for label in row) for rows in (packed, plain)
    ]
    assert learned[0] == learned[1]


def test_evaluation_is_not_packed(load):
    splits = load("--packing", "--val_size", "4")
    assert len(splits.evaluation) == 4
    assert "position_ids" not in splits.evaluation.column_names


def test_workers_change_nothing(load):
    rows = ROWS * 30  # more than one batch
    one, two = load(rows=rows), load("--preprocessing_num_workers", "2", "--seed", "1", rows=rows)
    assert one.train[:] == two.train[:]


def test_plain_text_is_packed(load, tokenizer):
    splits = load("--dataset", "t.txt", "--stage", "pt", "--cutoff_len", "64",
                  rows="a text\n" + "long text " * 60, name="t.txt")  # fmt: skip
    assert len(splits.train) > 1
    assert max(map(len, splits.train["input_ids"])) <= 64
    ends = [i for ids in splits.train["input_ids"] for i in ids if i == tokenizer.eos_token_id]
    assert len(ends) == 2  # one of each document, however many pieces


def test_preferences(load):
    rows = [{"instruction": "q", "chosen": "good", "rejected": "bad"}]
    splits = load("--stage", "dpo", rows=rows)
    names = ["chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"]
    assert splits.train.column_names == names
    assert splits.train[0]["chosen_input_ids"] != splits.train[0]["rejected_input_ids"]


BROKEN = [*ROWS[:2], {"instruction": "q"}, {"instruction": "q", "output": ""}]


def test_broken_rows_stop_everything_and_are_named(load):
    with pytest.raises(DataError) as raised:
        load(rows=BROKEN)
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("2 rows of 'rows.json' cannot be learned from; mend them, or")
    assert "rows.json, row 3: it has no 'output'" in lines[1]
    assert "rows.json, row 4: 'output' is empty" in lines[2]


def test_broken_rows_are_left_out_and_counted_if_asked_for(load):
    splits = load("--skip_broken_rows", rows=BROKEN)
    assert len(splits.train) == 2
    assert splits.notices[0].startswith("2 broken rows of 'rows.json' are left out; the first: ")


def test_a_damaged_file_is_named(load):
    with pytest.raises(DataError, match=r"rows.json is not JSON"):
        load(rows="[{")


@pytest.mark.parametrize(("flags", "rows"), [((), []), (("--skip_broken_rows",), [{}])])
def test_no_rows(load, flags, rows):
    with pytest.raises(DataError, match=r"The data set 'rows.json' has no rows"):
        load(*flags, rows=rows)


def test_nothing_left_to_learn_from(load):
    with pytest.raises(UsageError, match=r"val_size is 40.0, which leaves nothing of 40 rows"):
        load("--val_size", "40")


LONG = "hello " * 40
MESSAGES = [
    {"role": "user", "content": LONG},
    {"role": "assistant", "content": "a", "weight": 0},
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "b"},
]


@pytest.mark.parametrize(
    ("flags", "row", "problem"),
    [
        ((), {"instruction": "q", "output": "a", "system": LONG}, "leave no room in 16 tokens"),
        (("--mask_history",), {"instruction": "q", "output": "a", "system": LONG}, "leave no room"),
        (
            (),
            {"messages": MESSAGES},
            "none of its turns that are to be learned fits into 16 tokens",
        ),
        (
            ("--stage", "dpo"),
            {"instruction": "q", "chosen": "a", "rejected": "b", "system": LONG},
            "leave no room in 16 tokens",
        ),
    ],
)
def test_a_row_that_cannot_be_encoded_is_broken_as_others_are(load, flags, row, problem):
    good = {"instruction": "q", "output": "a", "chosen": "a", "rejected": "b"}
    flags = ("--cutoff_len", "16", *flags)
    with pytest.raises(DataError) as raised:
        load(*flags, rows=[good, row, good])
    lines = str(raised.value).splitlines()
    assert lines[0].startswith("1 rows of 'rows.json' cannot be learned from; mend them, or leave")
    assert "rows.json, row 2: " in lines[1]
    assert problem in lines[1]
    splits = load(*flags, "--skip_broken_rows", rows=[good, row, good])
    assert len(splits.train) == 2
    assert "1 broken rows of 'rows.json' are left out; the first: " in splits.notices[0]
    splits = load(*flags, "--skip_broken_rows", "--val_size", "1", rows=[good, good, row, good])
    assert len(splits.train) + len(splits.evaluation) == 3
    with pytest.raises(DataError, match=r"'rows.json' has no rows"):
        load(*flags, "--skip_broken_rows", rows=[row])


def test_rows_that_were_cut_are_counted(load):
    splits = load("--cutoff_len", "64")
    cut = sum(row[-1] == 2 and len(row) == 64 for row in splits.train["input_ids"])
    assert 0 < cut < 40
    assert splits.notices == (
        f"{cut} of 40 rows are longer than 64 tokens and were cut; raise --cutoff_len to learn "
        "them whole.",
    )


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path, tokenizer):
    rows = tmp_path / "rows.jsonl"
    recipe = parse(["--dataset", str(rows), "--output_dir", str(tmp_path)])
    rows.write_text('{"instruction": "q", "output": "a"}\n')
    before = data.load(recipe, tokenizer).train.cache_files
    assert data.load(recipe, tokenizer).train.cache_files == before
    rows.write_text('{"instruction": "q", "output": "a"}\n' * 2)
    assert len(data.load(recipe, tokenizer).train) == 2


def test_a_file_changed_under_its_size_and_date_is_read_again(tmp_path, tokenizer):
    rows = tmp_path / "rows.json"
    recipe = parse(["--dataset", str(rows), "--output_dir", str(tmp_path)])
    for answer in ("fine", "good"):
        rows.write_text(json.dumps([{"instruction": "q", "output": answer}]))
        os.utime(rows, (0, 0))
        splits = data.load(recipe, tokenizer)
        assert answer in tokenizer.decode(splits.train[0]["input_ids"])


def test_a_batch_is_padded_on_the_right_to_a_multiple_of_eight(tokenizer):
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]},
        {"input_ids": list(range(9)), "labels": list(range(9))},
    ]
    batch = data.Collator(tokenizer)(rows)
    assert {name: tuple(column.shape) for name, column in batch.items()} == {
        "input_ids": (2, 16), "labels": (2, 16), "attention_mask": (2, 16)
    }  # fmt: skip
    assert batch["input_ids"][0].tolist() == [5, 6, 7] + [tokenizer.pad_token_id] * 13
    assert batch["labels"][0].tolist() == [-100, 6, 7] + [-100] * 13
    assert batch["attention_mask"].sum(1).tolist() == [3, 9]


def test_both_answers_of_a_preference_are_padded_alike(tokenizer):
    row = {"chosen_input_ids": [5] * 9, "chosen_labels": [5] * 9, "rejected_input_ids": [6],
           "rejected_labels": [6]}  # fmt: skip
    batch = data.Collator(tokenizer)([row])
    assert {column.shape for column in batch.values()} == {(1, 16)}
    assert batch["rejected_attention_mask"].sum() == 1
    assert batch["rejected_labels"][0, 1:].eq(-100).all()
