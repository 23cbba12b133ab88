"""What `baichuan quantize` shows: a bar once all is checked, the size at the end."""

import pytest
from tests.conftest import tiny_config

import baichuan
from baichuan.cli.quantize import run_quantize
from baichuan.errors import CheckpointError, UsageError


@pytest.fixture
def source(tmp_path):
    baichuan.BaichuanForCausalLM(tiny_config()).save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


def test_the_bar_and_the_size(source, tmp_path, capsys):
    run_quantize(source, tmp_path / "target", 4, 32)
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'target'}: 0.00 GB\n"
    assert "int4" in shown.err and "%" in shown.err


@pytest.mark.parametrize(
    ("name", "bits", "group", "error", "message"),
    [
        ("taken", 4, None, UsageError, "taken exists; give a name that is free"),
        ("free", 3, None, UsageError, "bits is 3; allowed is 8 or 4"),
        ("free", 4, 100, UsageError, "group_size is 100; allowed is 32, 64, 128, 256"),
        ("taken/config.json/free", 4, None, CheckpointError, "cannot be made"),
    ],
)
def test_what_is_wrong_is_said_without_a_bar(
    source, tmp_path, capsys, name, bits, group, error, message
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").touch()
    with pytest.raises(error, match=message):
        run_quantize(source, tmp_path / name, bits, group)
    assert capsys.readouterr() == ("", "")


def test_an_existing_target_is_noticed_before_anything_is_fetched(tmp_path):
    with pytest.raises(UsageError, match="exists"):
        run_quantize("no-such/model", tmp_path, 4, None)
