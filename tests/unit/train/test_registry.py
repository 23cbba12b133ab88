"""Where the names of data sets lead."""

from __future__ import annotations

import json

import pytest

from baichuan.errors import DataError, UsageError
from baichuan.train.registry import Layout, Source, find


@pytest.fixture
def root(tmp_path):
    (tmp_path / "rows.json").write_text("[]")
    entries = {
        "mine": {
            "file_name": "rows.json",
            "file_sha1": "ignored",
            "formatting": "sharegpt",
            "columns": {"messages": "talk"},
            "tags": {"role_tag": "who"},
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
    layout = Layout("sharegpt", {"messages": "talk"}, {"role_tag": "who"})
    assert mine == Source("mine", layout, (root / "rows.json",), num_samples=3)
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
        ("odd", "cannot be used: .*xml"),
    ],
)
def test_entries_that_cannot_be_used(root, name, problem):
    with pytest.raises(DataError, match=problem):
        find([name], str(root))


@pytest.mark.parametrize(("content", "problem"), [("{", "cannot be read"), ("[]", "one object")])
def test_a_broken_registry(tmp_path, content, problem):
    (tmp_path / "dataset_info.json").write_text(content)
    with pytest.raises(DataError, match=problem):
        find(["x"], str(tmp_path))
