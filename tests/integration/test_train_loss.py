"""The loss of a training against torch's cross entropy of one row at a time, for every option."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import tiny_config

from baichuan.checkpoint.load import load
from baichuan.model.network import BaiChuanForCausalLM, BaichuanForCausalLM

pytest.importorskip("datasets")

from transformers import Trainer, TrainingArguments

from baichuan.train.arguments import parse
from baichuan.train.data import load as load_rows
from baichuan.train.run import run

#: All twelve rows in the first step, in one batch or in several.
ONE_BATCH = ["--per_device_train_batch_size", "12"]
SIX_BATCHES = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "6"]
SMOOTHED = ["--label_smoothing_factor", "0.1"]
#: The weights move by the gradient itself.
PLAIN_SGD = [
    *("--finetuning_type", "full", "--optim", "sgd", "--learning_rate", "1"),
    *("--max_grad_norm", "0", "--lr_scheduler_type", "constant", "--max_steps", "1"),
]


@pytest.fixture
def flags(small, rows, tmp_path):
    return [
        *("--model_name_or_path", str(small), "--dataset", str(rows), "--logging_steps", "1"),
        *("--output_dir", str(tmp_path / "out"), "--save_strategy", "no", *PLAIN_SGD),
    ]


def logged(directory, name):
    records = json.loads((directory / "trainer_state.json").read_text())["log_history"]
    return [record[name] for record in records if name in record]


def plain_loss(network, table, smoothing=0.0):
    """Return the mean over all labels, each row by itself."""
    total, count = torch.zeros(()), 0
    for row in table:
        targets = torch.tensor(row["labels"])[1:]
        logits = network(torch.tensor([row["input_ids"]])).logits[0, :-1]
        total = total + F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
        count += int((targets != -100).sum())
    return total / count


OPTIONS = {
    "one batch": ONE_BATCH,
    "accumulation": SIX_BATCHES,
    "smoothing": [*ONE_BATCH, *SMOOTHED],
    "smoothing, accumulation": [*SIX_BATCHES, *SMOOTHED],
    "smoothing, lengths grouped": [
        *(*SIX_BATCHES, *SMOOTHED, "--train_sampling_strategy", "group_by_length"),
    ],
    "lengths balanced": [*SIX_BATCHES, "--train_sampling_strategy", "batch_rebalance"],
    "averaged alone": [*SIX_BATCHES, "--average_tokens_across_devices", "false"],
    "packing": [*SIX_BATCHES, *SMOOTHED, "--packing", "--cutoff_len", "128"],
    "checkpointing": [*SIX_BATCHES, *SMOOTHED, "--gradient_checkpointing"],
    "questions too": [*SIX_BATCHES, *SMOOTHED, "--train_on_prompt"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_loss_and_step_are_those_of_plain_torch(flags, small, tmp_path, option):
    recipe = parse([*flags, *OPTIONS[option]])
    run(recipe)
    network, tokenizer = load(small)
    unpacked = parse([*flags, *OPTIONS[option], "--packing", "false"])
    loss = plain_loss(
        network, load_rows(unpacked, tokenizer).train, recipe.training.label_smoothing_factor
    )
    loss.backward()
    assert logged(tmp_path / "out", "loss") == pytest.approx([loss.item()], abs=1e-4)
    after, _ = load(tmp_path / "out")
    for (name, weight), stepped in zip(network.named_parameters(), after.parameters(), strict=True):
        wanted = weight - weight.grad
        torch.testing.assert_close(stepped, wanted, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("head", ["frozen", "int4"])
def test_a_frozen_heads_loss_is_smoothed_too(flags, small, tmp_path, head):
    bits = ["--bits", "4"] if head == "int4" else []
    run(parse([*flags, "--finetuning_type", "lora", *SIX_BATCHES, *SMOOTHED, *bits]))
    network, tokenizer = load(small, bits=4 if bits else None)
    network.train()  # where quantized layers multiply by their dequantized weights
    table = load_rows(parse(flags), tokenizer).train
    with torch.no_grad():
        wanted = plain_loss(network, table, 0.1).item()
    assert logged(tmp_path / "out", "loss") == pytest.approx([wanted], abs=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", ["1", "5", "12"])
def test_the_evaluation_loss_does_not_depend_on_the_batches(
    flags, small, rows, tmp_path, size, smoothing
):
    more = ["--eval_dataset", str(rows), "--eval_strategy", "steps", "--eval_on_start"]
    more += ["--per_device_eval_batch_size", size, "--label_smoothing_factor", str(smoothing)]
    run(parse([*flags, *more]))
    network, tokenizer = load(small)
    table = load_rows(parse(flags), tokenizer).train
    with torch.no_grad():
        wanted = plain_loss(network, table, smoothing).item()
    assert logged(tmp_path / "out", "eval_loss")[0] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("batches", [["8", "1"], ["2", "4"]])
def test_preferences_begin_at_log_2_beside_the_answers_own_loss(
    flags, small, pairs, tmp_path, batches
):
    more = ["--stage", "dpo", "--dataset", str(pairs), "--pref_ftx", "0.5"]
    more += ["--per_device_train_batch_size", batches[0]]
    more += ["--gradient_accumulation_steps", batches[1]]
    run(parse([*flags, *more]))
    network, tokenizer = load(small)
    table = [
        {"input_ids": row["chosen_input_ids"], "labels": row["chosen_labels"]}
        for row in load_rows(parse([*flags, *more]), tokenizer).train
    ]
    with torch.no_grad():
        wanted = math.log(2) + 0.5 * plain_loss(network, table).item()
    assert logged(tmp_path / "out", "loss") == pytest.approx([wanted], abs=1e-4)


@pytest.mark.parametrize("kind", [BaichuanForCausalLM, BaiChuanForCausalLM])
def test_transformers_own_trainer_smooths_the_next_token(tmp_path, kind):
    network = kind(tiny_config(initializer_range=0.2))
    ids = torch.randint(3, 700, (2, 9))
    arguments = TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True)
    trainer = Trainer(network, arguments)
    loss = trainer.compute_loss(network, {"input_ids": ids, "labels": ids.clone()})
    table = [{"input_ids": row, "labels": row} for row in ids.tolist()]
    torch.testing.assert_close(loss, plain_loss(network, table, 0.1))


def test_transformers_own_trainer_takes_a_loss_function(tmp_path):
    """It is given whole logits, also in training mode."""
    network = BaichuanForCausalLM(tiny_config(initializer_range=0.2)).train()
    ids = torch.randint(3, 700, (2, 9))

    def own(outputs, labels, num_items_in_batch=None):
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return F.cross_entropy(logits, targets, reduction="sum") / num_items_in_batch

    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    trainer = Trainer(network, arguments, compute_loss_func=own)
    loss = trainer.compute_loss(
        network, {"input_ids": ids, "labels": ids.clone()}, num_items_in_batch=16
    )
    table = [{"input_ids": row, "labels": row} for row in ids.tolist()]
    torch.testing.assert_close(loss, plain_loss(network, table))
