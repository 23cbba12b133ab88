"""Windows' editors put a byte order mark before a text; no reader takes it for a part of it."""

import io
import json
import shutil
import sys

import pytest

from baichuan.checkpoint.calibrate import calibration_rows
from baichuan.checkpoint.load import DEMO
from baichuan.cli.train import _text
from baichuan.evaluate.texts import text_of
from baichuan.model.pretrained import read_config
from baichuan.train.arguments import parse
from baichuan.train.deepspeed import read as read_deepspeed
from baichuan.transcript import read as read_transcript


def recipe(path):
    return parse([str(path)]).data.dataset


def calibration(path):
    return calibration_rows(DEMO, [path]).tolist()


def conversation(path):
    return read_transcript(path, "nothing was read")


def deepspeed(path):
    return read_deepspeed(str(path))


def command(path):
    return _text(str(path))


TALK = {"system": None, "messages": [{"role": "user", "content": "你好"}]}


@pytest.mark.parametrize(
    ("read", "name", "content"),
    [
        (text_of, "text.txt", "你好，很高兴认识你。"),
        (calibration, "text.txt", "你好，很高兴认识你。"),
        (recipe, "recipe.yaml", "dataset: rows.json\noutput_dir: out\n"),
        (command, "train.sh", "baichuan train --dataset rows.json"),
        (deepspeed, "deepspeed.json", '{"zero_optimization": {"stage": 2}}'),
        (conversation, "talk.json", json.dumps(TALK)),
    ],
)
def test_with_and_without(tmp_path, read, name, content):
    path = tmp_path / name
    path.write_text(content, "utf-8")
    found = read(path)
    path.write_text(content, "utf-8-sig")
    assert read(path) == found


def test_a_configuration(tmp_path):
    shutil.copy(DEMO / "config.json", tmp_path)
    text = (tmp_path / "config.json").read_text("utf-8")
    (tmp_path / "config.json").write_text(text, "utf-8-sig")
    assert read_config(tmp_path).to_dict() == read_config(DEMO).to_dict()


def test_a_command_that_is_pasted(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffbaichuan train"))
    assert _text("-") == "baichuan train"


def test_the_mark_alone_is_no_text(tmp_path):
    (tmp_path / "text.txt").write_bytes("\ufeff".encode())
    with pytest.raises(ValueError, match=r"text\.txt holds no text"):
        text_of(tmp_path / "text.txt")
