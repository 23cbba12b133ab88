"""A run that was stopped: what it resumes from, and what is noticed to have changed since."""

import errno
import json
import os
import shutil

import pytest
import torch
from tests.conftest import CreatesFile

import baichuan
from baichuan.errors import CheckpointError, UsageError

pytest.importorskip("datasets")

from baichuan.train import lock
from baichuan.train.arguments import parse
from baichuan.train.resume import last_checkpoint
from baichuan.train.run import run

SAVING = ["--save_strategy", "steps", "--save_steps", "2"]


def train(command, *more):
    run(parse([*command, *SAVING, *more]))


def stop(out):
    """Leave a finished run as kill -9 leaves one behind its last checkpoint but one."""
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "ended": False}))
    shutil.rmtree(out / "checkpoint-4", ignore_errors=True)


def rates(out):
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [record["learning_rate"] for record in history if "learning_rate" in record]


@pytest.fixture
def stopped(command, small, rows, tmp_path):
    """A command whose run was stopped behind step 2, with a model and data of its own."""
    shutil.copytree(small, tmp_path / "model")
    shutil.copy(rows, tmp_path / "own.json")
    command += ["--model_name_or_path", str(tmp_path / "model")]
    command += ["--dataset", str(tmp_path / "own.json")]
    train(command)
    stop(tmp_path / "out")
    return command


def test_weights_alone_are_not_resumed(command, tmp_path):
    out = tmp_path / "out"
    train(command, "--save_only_model", "true")
    stop(out)
    problem = (
        r"checkpoint-2 has weights, but no optimizer.pt, scheduler.pt, rng_state.pth .*"
        r"--adapter_name_or_path .*checkpoint-2 and another --output_dir"
    )
    for asked in ([], ["true"], [str(out / "checkpoint-2")]):
        resumed = ["--resume_from_checkpoint", *asked] if asked else []
        with pytest.raises(CheckpointError, match=problem):
            train(command, "--save_only_model", "true", *resumed)
    train(command, "--adapter_name_or_path", str(out / "checkpoint-2"), "--output_dir", f"{out}2")
    assert rates(tmp_path / "out2") == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def test_a_checkpoint_without_all_of_its_state_is_passed_over(stopped, tmp_path):
    out = tmp_path / "out"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"):
        shutil.copytree(out / "checkpoint-2", out / "checkpoint-3")
        (out / "checkpoint-3" / name).unlink()
        assert last_checkpoint(out) == out / "checkpoint-2"
        shutil.rmtree(out / "checkpoint-3")
    (out / "checkpoint-2" / "scheduler.pt").unlink()
    with pytest.raises(CheckpointError, match=r"but no scheduler.pt \("):
        train(stopped)


def test_the_same_content_goes_on_with_the_same_schedule(stopped, tmp_path, capsys):
    own = tmp_path / "own.json"
    own.write_text(own.read_text())
    shutil.copytree(tmp_path / "model", tmp_path / "copy")
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "copy").rename(tmp_path / "model")
    train(stopped)
    assert "going on from" in capsys.readouterr().err
    assert rates(tmp_path / "out") == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


def changed_data(where):
    """Another answer in a file of the same size."""
    file = where / "own.json"
    file.write_text(file.read_text().replace("It is 2.", "It is 3."))


def changed_model(where):
    model = baichuan.BaichuanForCausalLM.from_pretrained(where / "model")
    torch.nn.init.zeros_(model.model.layers[1].mlp.up_proj.weight[3])
    model.save_pretrained(where / "model")


def changed_tokenizer(where):
    file = where / "model" / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "add_bos_token": True}))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (changed_data, "the training rows changed since"),
        (changed_model, "the model changed since"),
        (changed_tokenizer, "the model changed since"),
    ],
)
def test_what_has_changed_is_noticed(stopped, tmp_path, capsys, change, what):
    change(tmp_path)
    with pytest.raises(UsageError, match=rf"holds checkpoint-2 of a run with .*{what}"):
        train(stopped)
    train(stopped, "--resume_from_checkpoint", "true")
    assert what in capsys.readouterr().err


def test_an_adapter_that_has_changed_is_noticed(stopped, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(tmp_path / "out" / "checkpoint-2", begun)
    again = [*stopped, "--adapter_name_or_path", str(begun), "--output_dir", str(tmp_path / "on")]
    train(again)
    stop(tmp_path / "on")
    shutil.copy(tmp_path / "on" / "adapter_model.safetensors", begun)
    with pytest.raises(UsageError, match=r"of a run with .*the adapter changed since"):
        train(again)


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        (["--max_steps", "6"], "max_steps: 4 → 6"),
        (["--num_train_epochs", "2"], "num_train_epochs: 3.0 → 2.0"),
        (["--per_device_train_batch_size", "4"], "per_device_train_batch_size: 2 → 4"),
        (["--train_sampling_strategy", "sequential"], "train_sampling_strategy: random → seq"),
    ],
)
def test_other_settings_are_refused(stopped, flags, changed):
    with pytest.raises(UsageError, match=rf"other settings \({changed}"):
        train(stopped, *flags)


def test_another_number_of_processes_is_refused(stopped, tmp_path):
    file = tmp_path / "out" / "run.json"
    record = json.loads(file.read_text())
    record["settings"]["processes"] = 2
    file.write_text(json.dumps(record))
    with pytest.raises(UsageError, match="processes: 2 → 1"):
        train(stopped)


def test_a_learning_rate_that_the_optimizer_keeps_is_said(stopped, tmp_path, capsys):
    train(stopped, "--resume_from_checkpoint", "true", "--learning_rate", "0.02")
    said = capsys.readouterr().err
    assert "of a run with other settings (learning_rate: 0.01 → 0.02)" in said
    assert "saved state keeps learning_rate 0.01; the new values have no effect" in said
    assert rates(tmp_path / "out") == pytest.approx([0.01, 0.0075, 0.005, 0.0025])


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_does_not_run(stopped, tmp_path, name):
    ran = tmp_path / "ran"
    torch.save({"state": CreatesFile(ran)}, tmp_path / "out" / "checkpoint-2" / name)
    with pytest.raises(CheckpointError, match=rf"{name} asks to run _?io.open"):
        train(stopped)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", {"state": {}}),
        ("scheduler.pt", [1]),
        ("rng_state.pth", {"python": "?"}),
    ],
)
def test_state_of_another_shape_is_said(stopped, tmp_path, name, content):
    torch.save(content, tmp_path / "out" / "checkpoint-2" / name)
    with pytest.raises(CheckpointError, match="checkpoint-2 cannot be resumed from"):
        train(stopped)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("global_step", "2"),
        ("global_step", -1),
        ("log_history", [{"loss": 1.0}]),
        ("log_history", {}),
        ("stateful_callbacks", {}),
        ("best_model_checkpoint", ["x"]),
        ("planted", 1),
    ],
)
def test_a_state_of_another_shape_is_named(stopped, tmp_path, key, value):
    file = tmp_path / "out" / "checkpoint-2" / "trainer_state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(CheckpointError, match=rf"trainer_state.json is no state .*: {key}"):
        train(stopped)


def test_code_in_the_best_checkpoint_does_not_run(stopped, tmp_path):
    """A state names it, wherever it is."""
    best, ran = tmp_path / "elsewhere", tmp_path / "ran"
    best.mkdir()
    torch.save({"state": CreatesFile(ran)}, best / "adapter_model.bin")
    file = tmp_path / "out" / "checkpoint-2" / "trainer_state.json"
    state = {**json.loads(file.read_text()), "best_model_checkpoint": str(best)}
    file.write_text(json.dumps({**state, "best_metric": 0.0}))
    best_at_end = ["--val_size", "2", "--load_best_model_at_end", "true"]
    with pytest.raises(CheckpointError, match=r"adapter_model.bin asks to run"):
        train(stopped, *best_at_end, "--resume_from_checkpoint", "true")
    assert not ran.exists()


def test_two_trainings_do_not_share_a_directory(command, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_PATIENCE", 0.1)
    out = tmp_path / "out"
    with lock.alone(out, print), pytest.raises(UsageError, match="Another training is writing to"):
        train(command)
    assert not out.exists()  # nothing was trained, so nothing is left
    out.mkdir()
    (out / ".lock").touch()  # of a process that was killed
    (out / ".run.json.0a1b2c3d").touch()
    train(command)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.FileLock, "acquire", none)
    with lock.alone(tmp_path / "out", print):
        assert "start no second training" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_target_that_cannot_be_written_is_said_before_anything_is_loaded(command, tmp_path):
    (tmp_path / "file").touch()
    model = ["--model_name_or_path", str(tmp_path / "none"), "--output_dir"]
    with pytest.raises(UsageError, match=r"file/out cannot be written to \(Not a directory\)"):
        train(command, *model, str(tmp_path / "file" / "out"))
    with pytest.raises(UsageError, match=r"file cannot be written to \(File exists\)"):
        train(command, *model, str(tmp_path / "file"))
