"""Which files of a folder are of the split that is read."""

from __future__ import annotations

import datasets
import pytest

from baichuan.errors import DataError
from baichuan.train.folders import find_files
from baichuan.train.registry import EVALUATION, TRAINING, find
from baichuan.train.rows import rows_of


@pytest.fixture
def folder(tmp_path):
    """Make a folder of empty files."""

    def made(*names: str):
        root = tmp_path / "test"  # the folder's own name says nothing of what is in it
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        return root

    return made


def names_of(root, files):
    return [file.relative_to(root).as_posix() for file in files]


SHARDS = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
HELD = "test-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("train", "evaluation", "others"),
    [
        (SHARDS, [HELD], []),
        (SHARDS, ["validation-00000.parquet"], [HELD]),
        (["train.jsonl"], ["test.jsonl"], []),
        (["zh_train.json"], ["zh_dev.json"], []),
        (["a.json", "b.csv"], ["Eval.txt"], []),
        (["train/a.json"], ["val/a.json"], ["test/a.json"]),
        (["data/train.json"], ["data/test.json"], []),
    ],
)
def test_files_of_a_split(folder, train, evaluation, others):
    root = folder(*train, *evaluation, *others, "README.md", "dataset_infos.json")
    found = find_files(root, TRAINING, named=False)
    assert (found.split, names_of(root, found.files)) == ("train", train)
    assert sorted(names_of(root, found.others)) == sorted([*evaluation, *others])
    assert names_of(root, find_files(root, EVALUATION, named=False).files) == evaluation


def test_names_that_only_hold_such_a_word(folder):
    root = folder("contest.json", "latest.json", "training_1.json", "devil.json")
    found = find_files(root, EVALUATION, named=False)
    assert (found.split, len(found.files), found.others) == ("train", 4, ())


def test_a_folder_without_the_split_is_refused(folder):
    root = folder("validation.json", HELD)
    with pytest.raises(DataError, match="has no split 'train'; it has test, validation"):
        find_files(root, TRAINING, named=False)


def test_shards_name_their_split(folder):
    kinds = ("train_sft", "train_gen", "test_sft")
    root = folder(*(f"{kind}-{n:05}-of-00002.parquet" for kind in kinds for n in range(2)))
    found = find_files(root, ("train_sft",), named=True)
    shards = [f"train_sft-{n:05}-of-00002.parquet" for n in range(2)]
    assert names_of(root, found.files) == shards
    assert len(found.others) == 4
    assert find_files(root, EVALUATION, named=False).split == "test_sft"  # the only one of tests
    assert find_files(root / shards[0], ("train_sft",), named=True).files == (root / shards[0],)
    with pytest.raises(DataError, match="no split 'train'; it has test_sft, train_gen, train_sft"):
        find_files(root, TRAINING, named=False)


def test_a_file_is_its_own_split_unless_the_registry_names_another(folder):
    root = folder("test.json")
    for splits, named in ((TRAINING, False), (TRAINING, True), (("test",), True)):
        assert find_files(root / "test.json", splits, named=named).files == (root / "test.json",)
    with pytest.raises(DataError, match="has no split 'validation'; it has test"):
        find_files(root / "test.json", ("validation",), named=True)


def test_a_folder_without_rows(folder):
    with pytest.raises(DataError, match=r"holds no file that ends in \.json"):
        find_files(folder("README.md", "state.txt2"), TRAINING, named=False)


def saved(n: int) -> datasets.Dataset:
    return datasets.Dataset.from_list([{"instruction": f"q{i}", "output": "a"} for i in range(n)])


def read(path, splits=TRAINING):
    (source,) = find([str(path)], "nowhere", splits)
    return [row["instruction"] for _, row in rows_of(source)]


def test_what_save_to_disk_wrote(tmp_path):
    saved(25).save_to_disk(tmp_path / "rows", num_shards=12)  # data-00010 after data-00009
    assert read(tmp_path / "rows") == [f"q{i}" for i in range(25)]
    both = datasets.DatasetDict({"train": saved(3), "test": saved(2), "validation": saved(1)})
    both.save_to_disk(tmp_path / "both")
    assert read(tmp_path / "both") == ["q0", "q1", "q2"]
    assert read(tmp_path / "both", EVALUATION) == ["q0"]
    assert read(tmp_path / "both" / "test") == ["q0", "q1"]


def test_a_split_that_save_to_disk_did_not_write(tmp_path):
    datasets.DatasetDict({"a": saved(1), "b": saved(1)}).save_to_disk(tmp_path / "rows")
    with pytest.raises(DataError, match="has no split 'train'; it has a, b"):
        read(tmp_path / "rows")
    (tmp_path / "rows" / "a" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"state.json cannot be read: '_data_files'"):
        read(tmp_path / "rows")
