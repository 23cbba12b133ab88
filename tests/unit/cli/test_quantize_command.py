"""What `baichuan quantize` shows: a bar once all is checked, the size at the end."""

import pytest
from tests.conftest import tiny_config

import baichuan
from baichuan.checkpoint.load import DEMO
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
        ("free", 5, None, UsageError, "bits is 5; allowed is 8, 4 or 3"),
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


def test_calibrated_and_to_a_budget(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("Rivers run to the sea. 百川东到海。\n" * 40, "utf-8")
    run_quantize(str(DEMO), tmp_path / "three", 3, 64, calibrate=True, texts=[text])
    run_quantize(str(DEMO), tmp_path / "mixed", None, None, texts=[text], budget="6.2 mb")
    shown = capsys.readouterr()
    assert "int3" in shown.err and "what each matrix loses" in shown.err
    mixed = sum(file.stat().st_size for file in (tmp_path / "mixed").glob("*.safetensors"))
    assert 6_100_000 < mixed <= 6_200_000
    model, tokenizer = baichuan.load(str(tmp_path / "mixed"))
    assert "Paris" in model.chat(tokenizer, [{"role": "user", "content": "The capital of France?"}])


@pytest.mark.parametrize("budget", ["six", "-6GB", "6PB", "", "6", "6000000000", "850.5"])
def test_a_budget_that_is_no_size(source, tmp_path, budget):
    with pytest.raises(UsageError, match="give the size of the result with its unit, such as 6GB"):
        run_quantize(source, tmp_path / "target", None, None, budget=budget)


def test_a_budget_beside_bits(source, tmp_path):
    with pytest.raises(UsageError, match="--budget was given with --bits"):
        run_quantize(source, tmp_path / "target", 4, None, budget="6GB")


def test_an_existing_target_is_noticed_before_anything_is_fetched(tmp_path):
    with pytest.raises(UsageError, match="exists"):
        run_quantize("no-such/model", tmp_path, 4, None)
