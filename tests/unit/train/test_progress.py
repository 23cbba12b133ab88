"""What a run says of itself where no terminal is: a line for each record, of the first process."""

from types import SimpleNamespace

import pytest

from baichuan.train.progress import Progress


def state(**changes):
    given = {"max_steps": 8, "global_step": 2, "is_world_process_zero": True, **changes}
    return SimpleNamespace(**given)


@pytest.mark.parametrize("without", [False, True])
def test_records_become_lines(capsys, without):
    progress = Progress()
    progress.on_train_begin(SimpleNamespace(disable_tqdm=without), state(), None)
    progress.on_step_end(None, state(global_step=3), None)
    logs = {"loss": 1.23456, "tokens_per_second": 1234.5}
    progress.on_log(None, state(global_step=3), None, logs=logs)
    progress.on_log(None, state(global_step=4), None, logs={"eval_loss": 0.5})
    progress.on_log(None, state(global_step=4), None, logs={"train_runtime": 3})
    progress.on_train_end(None, state(), None)
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "step 3 of 8: loss 1.235, tokens/s 1,234",
        "step 4 of 8: evaluation loss 0.5",
    ]
    assert said.out == ""


def test_other_processes_are_silent(capsys):
    progress = Progress()
    other = state(is_world_process_zero=False)
    progress.on_train_begin(None, other, None)
    progress.on_log(None, other, None, logs={"loss": 1.0})
    progress.on_step_end(None, other, None)
    progress.on_train_end(None, other, None)
    assert capsys.readouterr().err == ""
