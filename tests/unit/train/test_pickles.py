"""Pickles of a checkpoint: nothing in them runs, and what engines save is read."""

import io
import os
import pickle
import random

import numpy as np
import pytest
import torch
from tests.conftest import CreatesFile

from baichuan.errors import CheckpointError
from baichuan.train import pickles


def refused(directory, problem):
    with pickles.restricted(deepspeed=False), pytest.raises(CheckpointError, match=problem):
        pickles.check(directory)


@pytest.mark.parametrize(
    "name",
    [
        "global_step2/mp_rank_00_model_states.pt",
        "global_step2/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "optimizer.pt",
        "scaler.pt",
        "rng_state_1.pth",
        "optimizer.bin",
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_does_not_run(tmp_path, name, zipped):
    file, ran = tmp_path / name, tmp_path / "ran"
    file.parent.mkdir(exist_ok=True)
    content = {"module": torch.ones(2), "lr": CreatesFile(ran)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    refused(tmp_path, f"{file.name} asks to run _?io.open, which no checkpoint")
    assert not ran.exists()
    torch.load(file, weights_only=False)["lr"].close()
    assert ran.exists()  # so the file does what it is refused for


@pytest.mark.parametrize("name", ["optimizer_0/.metadata", "pytorch_model_fsdp_0/__0.metadata"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_metadata_does_not_run(tmp_path, name, protocol):
    file, ran = tmp_path / name, tmp_path / "ran"
    file.parent.mkdir()
    file.write_bytes(pickle.dumps({"state": CreatesFile(ran)}, protocol))
    refused(tmp_path, r"metadata (asks to run _?io.open|cannot be resumed)")
    assert not ran.exists()
    pickle.loads(file.read_bytes())["state"].close()
    assert ran.exists()


@pytest.mark.parametrize(
    ("module", "name"), [("torch.serialization", "os.system"), ("os", "system"), ("torch", "load")]
)
def test_metadata_names_what_is_listed_alone(tmp_path, module, name):
    call = f"\x8c{chr(len(module))}{module}\x8c{chr(len(name))}{name}\x93".encode("latin-1")
    (tmp_path / ".metadata").write_bytes(b"\x80\x04" + call + b".")
    refused(tmp_path, f"asks to run {module}.{name}")


def test_who_asks_for_no_restriction_is_restricted(tmp_path):
    """DeepSpeed, and torch.distributed.checkpoint for bytes."""
    before = os.environ.copy()
    buffer = io.BytesIO()
    torch.save(CreatesFile(tmp_path / "ran"), buffer)
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        with pickles.restricted(deepspeed=False):
            buffer.seek(0)
            with pytest.raises(pickle.UnpicklingError):
                torch.load(buffer, weights_only=False)
        assert os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD") == "1"
    finally:
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    assert not (tmp_path / "ran").exists()
    assert os.environ.copy() == before


def test_what_deepspeed_saves_is_read(tmp_path):
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    scaler = DynamicLossScaler(2.0, 2.0, 3, 1.0, 1)
    step = tmp_path / "global_step1"
    step.mkdir()
    torch.save({"scaler": scaler, "stage": ZeroStageEnum.weights}, step / "rank_optim_states.pt")
    with pickles.restricted(deepspeed=True):
        pickles.check(tmp_path)
        read = torch.load(step / "rank_optim_states.pt", weights_only=False)
    assert read["scaler"].scale_window == scaler.scale_window
    assert read["stage"] is ZeroStageEnum.weights
    refused(tmp_path, r"rank_optim_states.pt asks to run deepspeed.runtime")


def test_random_states_are_read(tmp_path):
    state = {"python": random.getstate(), "numpy": np.random.get_state()}
    torch.save({**state, "cpu": torch.random.get_rng_state()}, tmp_path / "rng_state.pth")
    with pickles.restricted(deepspeed=False):
        pickles.check(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("optimizer.pt", b""),
        ("scheduler.pt", b"\x80\x02}q\x00."),
        ("rng_state.pth", b"PK\x03\x04" + bytes(99)),
        ("optimizer_0/.metadata", b"\x80\x04\x8c"),
        ("optimizer_0/.metadata", b"\x80\x04Nr\xff\xff\xff\xff."),  # memory for 4 billion objects
    ],
)
def test_damage_is_said_without_advice_to_load_it_all_the_same(tmp_path, name, content):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pickles.restricted(deepspeed=False), pytest.raises(CheckpointError) as caught:
        pickles.check(tmp_path)
    said = str(caught.value)
    assert f"{name.rpartition('/')[2]} cannot be resumed from: it is damaged" in said
    assert "weights_only" not in said


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "optimizer.pt")
    refused(tmp_path, "not a regular file")
