"""Where the names of data sets lead."""

from __future__ import annotations

import json

import pytest

from baichuan.errors import DataError, UsageError
from baichuan.train.registry import Layout, Source, find

TAGS = {"role_tag": "who", "content_tag": "said", "user_tag": "U", "assistant_tag": "A"}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "rows.json").write_text("[]")
    entries = {
        "mine": {
            "file_name": "rows.json",
            "file_sha1": "ignored",
            "formatting": "sharegpt",
            "columns": {"messages": "talk"},
            "tags": TAGS,
            "num_samples": 3,
        },
        "pairs": {"file_name": "rows.json", "ranking": True},
        "hub": {"hf_hub_url": "owner/rows", "subset": "zh", "split": "test", "folder": "f"},
        "alpaca_gpt4_zh": {"file_name": "rows.json"},
        "lost": {"file_name": "lost.json"},
        "script": {"script_url": "owner/code"},
        "odd": {"file_name": "rows.json", "formatting": "xml"},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(entries))
    return tmp_path


def test_entries_of_the_registry(root):
    mine, pairs, hub = find(["mine", "pairs", "hub"], str(root))
    layout = Layout("sharegpt", {"messages": "talk"}, TAGS)
    files = (root / "rows.json",)
    assert mine == Source("mine", layout, files, split="train", num_samples=3)
    assert pairs.layout == Layout(ranking=True)
    assert hub == Source("hub", Layout(), hub="owner/rows", subset="zh", split="test", folder="f")


def test_names_without_an_entry(root, monkeypatch):
    monkeypatch.chdir(root)
    inside, here, folder, hub = find(["rows.json", "./rows.json", ".", "a/b"], str(root))
    assert inside.files[0].samefile(here.files[0])
    assert [file.name for file in folder.files] == ["rows.json"]  # and not the registry
    assert hub.hub == "a/b"


def test_the_readmes_names_are_known_and_give_way_to_the_registry(root):
    english, chinese = find(["alpaca_gpt4_en", "alpaca_gpt4_zh"], str(root))
    assert english.hub == "llamafactory/alpaca_gpt4_en"
    assert chinese.files == (root / "rows.json",)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("mime", "There is no data set 'mime'. Is 'mine' meant?"),
        ("nothing.json", "There is no data set 'nothing.json': it is not in"),
        ("a/b.json", "There is no data set 'a/b.json'"),
    ],
)
def test_names_that_lead_nowhere(root, name, problem):
    with pytest.raises(UsageError, match=problem):
        find([name], str(root))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("lost", "is said to be in .*lost.json, which is not there"),
        ("script", "cannot be used: .*script_url"),
        ("odd", "formatting of 'odd' .* is 'xml'; allowed is alpaca, sharegpt, openai"),
    ],
)
def test_entries_that_cannot_be_used(root, name, problem):
    with pytest.raises(DataError, match=problem):
        find([name], str(root))


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"colums": {}}, "unknown key, 'colums'. Is 'columns' meant"),
        ({"columns": {"promt": "q"}}, r"'columns.promt'. Is 'columns.prompt' meant"),
        ({"columns": {"message": "q"}}, r"'columns.message'. Is 'columns.messages' meant"),
        ({"tags": {**TAGS, "sytem_tag": "S"}}, r"'tags.sytem_tag'. Is 'tags.system_tag' meant"),
        ({"tags": {"role_tag": "who"}}, 'allowed is {"role_tag": "...", "content_tag": "..."'),
        ({"columns": {"prompt": 3}}, r"columns.prompt of 'a' in dataset_info.json is 3"),
        ({"ranking": "false"}, "ranking of 'a' in dataset_info.json is 'false'; allowed is true"),
        ({"num_samples": "10"}, "num_samples of 'a' in dataset_info.json is '10'"),
        ({"num_samples": 0}, "num_samples of 'a' in dataset_info.json is 0"),
        ({"subset": "zh"}, "subset of 'a' .* allowed is null, beside file_name"),
        ({"file_name": ["rows.json", 1]}, "file_name of 'a' in dataset_info.json is 1"),
        ({"split": "test"}, "rows.json has no split 'test'; it has train"),
    ],
)
def test_what_would_have_no_effect_is_refused(tmp_path, more, problem):
    (tmp_path / "rows.json").write_text("[]")
    entry = {"file_name": "rows.json", "ms_hub_url": "other/place", "file_sha1": None, **more}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"a": entry, "b": {"unasked": 1}}))
    with pytest.raises(DataError, match=problem):
        find(["a"], str(tmp_path))


def test_several_files_and_a_folder_of_one_entry(tmp_path):
    names = ["b.jsonl", "a.json", "more/c.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    entries = {
        "files": {"file_name": names[:2]},
        "folder": {"file_name": ".", "folder": "more", "columns": {"prompt": "q", "query": None}},
    }
    (tmp_path / "dataset_info.json").write_text("\ufeff" + json.dumps(entries))
    files, folder = find(["files", "folder"], str(tmp_path))
    assert files.files == (tmp_path / "b.jsonl", tmp_path / "a.json")
    assert folder.files == (tmp_path / "more" / "c.csv",)
    assert folder.layout.columns == {"prompt": "q"}


@pytest.mark.parametrize(("content", "problem"), [("{", "is not JSON"), ("[]", "one object")])
def test_a_broken_registry(tmp_path, content, problem):
    (tmp_path / "dataset_info.json").write_text(content)
    with pytest.raises(DataError, match=problem):
        find(["x"], str(tmp_path))
