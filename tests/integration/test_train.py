"""Whole trainings in this process: what learns, what comes out, and what is said when it cannot."""

import json
import resource
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import baichuan
from baichuan.checkpoint.load import load
from baichuan.cli.merge import run_merge
from baichuan.errors import CheckpointError, TrainingError, UsageError

pytest.importorskip("datasets")

from peft import PeftModel
from transformers import AutoModelForCausalLM

from baichuan.train.arguments import parse
from baichuan.train.data import Collator
from baichuan.train.data import load as load_rows
from baichuan.train.resume import is_whole, last_checkpoint, last_weights
from baichuan.train.run import run
from baichuan.train.trainer import UNFINISHED


def train(command, *more):
    run(parse([*command, *more]))


def losses(directory):
    records = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    return [record["loss"] for record in records if "loss" in record]


def weights(directory):
    return AutoModelForCausalLM.from_pretrained(directory).state_dict()


def test_full_changes_every_weight_and_comes_out_in_the_dtype_of_the_computation(
    command, small, tmp_path
):
    train(command, "--finetuning_type", "full", "--bf16", "--gradient_checkpointing")
    seen = losses(tmp_path / "out")
    assert seen[-1] < seen[0] - 1
    before, after = weights(small), load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert all(not torch.equal(before[name], after[name].float()) for name in after)
    model, _ = load(tmp_path / "out")
    assert model.config.use_cache


def test_an_adapter_that_lost_a_layer_is_not_trained_further(command, tmp_path):
    train(command, "--finetuning_type", "lora")
    file = tmp_path / "out" / "adapter_model.safetensors"
    kept = {name: t for name, t in load_file(file).items() if "layers.1." not in name}
    save_file(kept, file)
    again = ("--finetuning_type", "lora", "--output_dir", str(tmp_path / "more"))
    with pytest.raises(CheckpointError, match=r"10 \(model\.layers\.1\..* missing; 0 unexpected"):
        train(command, *again, "--adapter_name_or_path", str(tmp_path / "out"))


def test_freeze_changes_the_last_layer_alone(command, small, tmp_path):
    train(
        command,
        *("--finetuning_type", "freeze", "--freeze_trainable_layers", "1"),
        *("--freeze_trainable_modules", "mlp"),
    )
    before, after = weights(small), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".mlp.")[0] for name in changed} == {"model.layers.1"}
    assert len(changed) == 3


def test_a_checkpoint_that_may_not_be_read_is_not_passed_over(unprivileged):
    (unprivileged / "checkpoint-2").mkdir()
    state, weights = (
        unprivileged / "checkpoint-2" / n for n in ("trainer_state.json", "model.safetensors")
    )
    state.write_text("{}")
    save_file({"a": torch.ones(2)}, weights)
    for path in (state, weights):
        path.chmod(0)
        with pytest.raises(CheckpointError, match=rf"^{path} cannot be read: permission denied"):
            last_weights(unprivileged)
        path.chmod(0o600)
    assert last_weights(unprivileged) == unprivileged / "checkpoint-2"


@pytest.mark.parametrize("bits", [None, "4", "8"])
def test_lora_gives_an_adapter_that_peft_and_load_read(command, small, tmp_path, bits):
    train(command, "--finetuning_type", "lora", *(() if bits is None else ("--bits", bits)))
    out = tmp_path / "out"
    seen = losses(out)
    assert seen[-1] < seen[0]
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(small)
    assert settings["lora_alpha"] == 16
    assert set(settings["target_modules"]) == {
        *("W_pack", "o_proj", "gate_proj", "up_proj", "down_proj"),
    }
    model, tokenizer = load(adapter=out, bits=None if bits is None else int(bits))
    ids = torch.tensor([tokenizer.encode("How much is 3 and 3?")])
    with torch.no_grad():
        ours = model(ids).logits
    if bits is None:
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small), str(out))
        with torch.no_grad():
            torch.testing.assert_close(ours, theirs.eval()(ids).logits, atol=1e-4, rtol=1e-4)
    assert isinstance(model, baichuan.BaichuanForCausalLM)


def test_the_adapter_merges_into_a_checkpoint_that_answers_the_same(command, tmp_path, capsys):
    train(command)
    adapter, target = tmp_path / "out", tmp_path / "merged"
    run_merge(adapter, target, None)  # into what it was trained on
    assert capsys.readouterr().out.startswith(f"{target}: ")
    beside, tokenizer = load(adapter=adapter)
    merged, _ = load(target)
    ids = torch.tensor([tokenizer.encode("How much is 3 and 3?")])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, beside(ids).logits, atol=1e-4, rtol=1e-4)


def test_one_step_of_lora_on_w_pack_is_what_the_formulas_say(command, small, tmp_path):
    """y = W x + s B A x with B = 0: dL/dB = s dL/dW A^T, dL/dA = 0; AdamW begins with a sign."""
    flags = ["--finetuning_type", "lora", "--lora_target", "W_pack", "--max_samples", "2"]
    flags += ["--max_steps", "1", "--max_grad_norm", "0", "--lr_scheduler_type", "constant"]
    train(command, *flags)
    learned = load_file(tmp_path / "out" / "adapter_model.safetensors")
    network, tokenizer = load(small)
    both = load_rows(parse([*command, *flags]), tokenizer).train
    network(**Collator(tokenizer)(list(both))).loss.backward()
    for number, layer in enumerate(network.model.layers):
        name = f"base_model.model.model.layers.{number}.self_attn.W_pack"
        a, b = learned[f"{name}.lora_A.weight"], learned[f"{name}.lora_B.weight"]
        gradient = 16 / 8 * layer.self_attn.W_pack.weight.grad @ a.T
        wanted = -0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(b, wanted, atol=1e-5, rtol=1e-3)


def test_continued_pretraining_packs_plain_text(command, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"{i} is a number. " * 9}) + "\n" for i in range(40))
    )
    train(command, "--stage", "pt", "--dataset", str(text), "--cutoff_len", "128")
    seen = losses(tmp_path / "out")
    assert seen[-1] < seen[0]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_preferences(command, pairs, tmp_path, method):
    more = ["--stage", "dpo", "--dataset", str(pairs), "--finetuning_type", method]
    train(command, *more, "--pref_ftx", "0.1", "--learning_rate", "0.001")
    seen = losses(tmp_path / "out")
    assert seen[-1] < seen[0]
    records = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    margins = [record["rewards/margins"] for record in records if "rewards/margins" in record]
    assert margins[0] == pytest.approx(0, abs=1e-6)  # the reference is where it began
    assert margins[-1] > margins[0]


def test_evaluation_best_model_and_curve(command, tmp_path):
    train(
        command,
        *("--val_size", "2", "--eval_strategy", "steps", "--eval_steps", "1", "--save_steps", "1"),
        *("--save_strategy", "steps", "--save_total_limit", "2"),
        *("--load_best_model_at_end", "--plot_loss"),
    )
    out = tmp_path / "out"
    state = json.loads((out / "trainer_state.json").read_text())
    evaluated = {r["step"]: r["eval_loss"] for r in state["log_history"] if "eval_loss" in r}
    best = min(evaluated, key=evaluated.get)
    assert state["best_model_checkpoint"] == str(out / f"checkpoint-{best}")
    ours = load_file(out / "adapter_model.safetensors")
    theirs = load_file(out / f"checkpoint-{best}" / "adapter_model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert len(list(out.glob("checkpoint-*"))) <= 2
    assert (out / "training_loss.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((out / "training_loss.json").read_text())["records"]) >= 8
    assert not (out / UNFINISHED).exists()
    assert any("tokens_per_second" in record for record in state["log_history"])


def test_rows_for_evaluation_are_evaluated(command, small, tmp_path, capsys):
    """After each epoch, at the end if that was asked for, and alone; never silently not."""
    out = tmp_path / "out"

    def evaluated():
        history = json.loads((out / "trainer_state.json").read_text())["log_history"]
        return [record["step"] for record in history if "eval_loss" in record]

    train(command, "--do_train", "--do_eval", "--val_size", "4", "--max_steps", "5")
    assert evaluated() == [4, 5]  # eight rows in batches of two
    capsys.readouterr()
    again = [*command, "--overwrite_output_dir", "--val_size", "4", "--eval_strategy", "no"]
    train(again)
    assert "4 rows for evaluation were not used: --eval_strategy no." in capsys.readouterr().err
    train(again, "--do_train", "--do_eval")
    assert "eval_loss: " in capsys.readouterr().err
    train(command, "--do_eval", "--val_size", "4", "--overwrite_output_dir")
    assert "eval_loss: " in capsys.readouterr().err


def test_going_on_gives_the_weights_of_an_undisturbed_run(command, tmp_path, capsys):
    saving = ["--save_strategy", "steps", "--save_steps", "2", "--lora_dropout", "0.1"]
    train(command, *saving, "--max_steps", "6")
    whole = load_file(tmp_path / "out" / "adapter_model.safetensors")
    # As kill -9 leaves it: no end recorded, a checkpoint cut off, another just begun.
    out = tmp_path / "out"
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "ended": False}))
    (out / "adapter_model.safetensors").unlink()
    for file in (out / "checkpoint-6").glob("optimizer.pt"):
        file.write_bytes(file.read_bytes()[:1000])
    cut = out / "checkpoint-4" / "adapter_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    (out / UNFINISHED / "checkpoint-8").mkdir(parents=True)
    assert last_checkpoint(out) == out / "checkpoint-2"
    train(command, *saving, "--max_steps", "6")
    again = load_file(out / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert "going on from" in capsys.readouterr().err
    assert not (out / UNFINISHED).exists()


def test_what_lies_in_the_output_directory_is_never_lost_by_accident(command, tmp_path):
    out = tmp_path / "out"
    saving = ["--save_strategy", "steps", "--save_steps", "2"]
    with pytest.raises(UsageError, match=r"no checkpoint in .* to go on from"):
        train(command, "--resume_from_checkpoint", "true")
    train(command, *saving)
    with pytest.raises(UsageError, match="holds a run that has ended"):
        train(command, *saving)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "ended": False}))
    with pytest.raises(UsageError, match=r"other settings \(learning_rate: 0.01 → 0.02\)"):
        train(command, *saving, "--learning_rate", "0.02")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        train(command, *saving, "--resume_from_checkpoint", str(tmp_path))
    train(command, *saving, "--learning_rate", "0.02", "--resume_from_checkpoint", "true")
    train(command, *saving, "--max_steps", "2", "--overwrite_output_dir")
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(command, tmp_path):
    more = ["--finetuning_type", "full", "--save_strategy", "steps", "--save_steps", "1"]
    with pytest.raises(TrainingError, match=r"At step \d .*is as it was.*--learning_rate"):
        train(command, *more, "--learning_rate", "1e20", "--lr_scheduler_type", "constant")
    for checkpoint in (tmp_path / "out").glob("checkpoint-*"):
        assert is_whole(checkpoint)
        tensors = load_file(checkpoint / "model.safetensors").values()
        assert all(bool(tensor.isfinite().all()) for tensor in tensors)


def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(command, tmp_path):
    saving = ["--save_strategy", "steps", "--save_steps", "2"]
    train(command, *saving, "--max_steps", "2")
    before = {p: p.read_bytes() for p in (tmp_path / "out" / "checkpoint-2").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, hard)
    )  # writing then fails as on a full disk
    try:
        with pytest.raises(TrainingError, match=r"step 4 could not be .*checkpoint-2 is as"):
            train(command, *saving, "--resume_from_checkpoint", "true")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p: p.read_bytes() for p in (tmp_path / "out" / "checkpoint-2").iterdir()} == before
    assert not (tmp_path / "out" / UNFINISHED).exists()
    train(command, *saving, "--resume_from_checkpoint", "true")
    assert is_whole(tmp_path / "out" / "checkpoint-4")


def test_what_cannot_be_trained_is_said(command, small, tmp_path):
    with pytest.raises(UsageError, match="--fsdp spreads weights among processes; start them by"):
        train(command, "--fsdp")
    with pytest.raises(UsageError, match="fewer than 99 rows, and there are 12 rows"):
        train(command, "--dataloader_drop_last", "--per_device_train_batch_size", "99")
    with pytest.raises(UsageError, match=r"q_proj; there are .*W_pack"):
        train(command, "--lora_target", "q_proj,W_pack")
    with pytest.raises(UsageError, match=r"this model has 2 layers: give 1 to 2"):
        train(command, "--finetuning_type", "freeze", "--freeze_trainable_layers", "3")
    quantized = tmp_path / "quantized"
    network, _ = load(small)
    network.quantize(8).save_pretrained(quantized)
    for file in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(small / file, quantized)
    with pytest.raises(UsageError, match="Quantized weights cannot learn"):
        train(command, "--model_name_or_path", str(quantized), "--finetuning_type", "full")
    train(command, "--model_name_or_path", str(quantized), "--max_steps", "1")
