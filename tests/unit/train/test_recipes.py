"""The recipes in the repository are read, and run as their first lines say."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from baichuan.cli.pasted import read_command
from baichuan.train.arguments import parse

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
COMMANDS = sorted((ROOT / "recipes").glob("*.sh"))
#: What would set up several processes, in the whole process of the tests.
SPREADING = ("deepspeed", "fsdp", "fsdp_config")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_and_says_how_it_is_run(path, tmp_path):
    text = path.read_text("utf-8")
    command = text.splitlines()[0].removeprefix("# ")
    assert read_command(command).arguments == (str(path.relative_to(ROOT)),)
    entries = yaml.safe_load(text)
    copy = tmp_path / path.name
    copy.write_text(yaml.safe_dump({k: v for k, v in entries.items() if k not in SPREADING}))
    recipe = parse([str(copy)])
    assert recipe.notices == ()
    assert recipe.training.output_dir.startswith("out/")
    if "deepspeed" in entries:
        json.loads((ROOT / entries["deepspeed"]).read_text())["zero_optimization"]["stage"]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_the_original_readmes_commands_stand_there_as_they_were(path):
    text = path.read_text("utf-8")
    assert text.count("\\ \n") >= 3  # the ends of lines at which a shell breaks off
    words = shlex.join(read_command(text).arguments).replace("--deepspeed deepspeed.json", "")
    assert len(parse(shlex.split(words)).notices) == 2
