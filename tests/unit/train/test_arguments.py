"""What can be typed, today's names and those of 2023."""

from __future__ import annotations

import json
import shlex
from dataclasses import fields

import pytest
from transformers import TrainingArguments

from baichuan.errors import UsageError
from baichuan.train.arguments import _NEEDLESS, parse
from baichuan.train.checks import LEAST, REFUSED

#: The original README's two commands, without the words that start them.
README = shlex.split("""
    --stage sft --model_name_or_path baichuan-inc/Baichuan-13B-Base --do_train
    --dataset alpaca_gpt4_en,alpaca_gpt4_zh --output_dir path_to_your_sft_checkpoint
    --overwrite_cache --per_device_train_batch_size 4 --per_device_eval_batch_size 4
    --gradient_accumulation_steps 8 --preprocessing_num_workers 16 --lr_scheduler_type cosine
    --logging_steps 10 --save_steps 100 --eval_steps 100 --learning_rate 5e-5 --max_grad_norm 0.5
    --num_train_epochs 2.0 --dev_ratio 0.01 --evaluation_strategy steps --load_best_model_at_end
    --plot_loss --fp16
""")
DATA = ["--dataset", "rows.json", "--output_dir", "out"]


def test_the_readmes_full_command():
    recipe = parse([*README, "--finetuning_type", "full"])
    assert recipe.model.model_name_or_path == "baichuan-inc/Baichuan-13B-Base"
    assert recipe.data.dataset == ["alpaca_gpt4_en", "alpaca_gpt4_zh"]
    assert (recipe.data.val_size, recipe.data.preprocessing_num_workers) == (0.01, 16)
    assert recipe.data.overwrite_cache
    assert (recipe.method.stage, recipe.method.finetuning_type) == ("sft", "full")
    assert recipe.method.plot_loss
    training = recipe.training
    assert training.do_train
    assert training.fp16
    assert (training.eval_strategy, training.eval_steps, training.save_steps) == ("steps", 100, 100)
    assert (training.learning_rate, training.max_grad_norm) == (5e-5, 0.5)
    assert (training.lr_scheduler_type, training.num_train_epochs) == ("cosine", 2.0)
    assert recipe.notices == (
        "--dev_ratio is called --val_size now.",
        "--evaluation_strategy is called --eval_strategy now.",
    )


def test_the_readmes_lora_command():
    words = [*README, "--finetuning_type", "lora", "--lora_rank", "8", "--lora_target", "W_pack"]
    method = parse(words).method
    assert (method.lora_rank, method.lora_target, method.lora_alpha) == (8, ["W_pack"], 16)


def test_defaults():
    recipe = parse(DATA)
    assert recipe.training.report_to == []
    assert recipe.training.do_train
    assert recipe.notices == ()
    assert not recipe.packs
    assert parse([*DATA, "--stage", "pt"]).packs
    assert not parse([*DATA, "--stage", "pt", "--packing", "false"]).packs


@pytest.mark.parametrize(
    ("words", "part", "name", "value"),
    [
        (["--quantization_bit", "4"], "model", "bits", 4),
        (["--checkpoint_dir", "a"], "model", "adapter_name_or_path", "a"),
        (["--prompt_template", "vanilla"], "data", "template", "vanilla"),
        (["--max_source_length", "1024"], "data", "cutoff_len", 1536),
        (["--max_source_length=9", "--max_target_length=99"], "data", "cutoff_len", 108),
        (["--neat_packing"], "data", "packing", True),
        (["--dpo_beta", "0.3"], "method", "pref_beta", 0.3),
        (["--warmup_ratio", "0.1"], "training", "warmup_steps", 0.1),
        (["--padding_side", "left"], "data", "cutoff_len", 2048),
        (["--group_by_length"], "training", "train_sampling_strategy", "group_by_length"),
        (["--group_by_length", "false"], "training", "train_sampling_strategy", "random"),
        (["--use_cache", "false"], "data", "cutoff_len", 2048),
    ],
)
def test_names_of_2023_say_what_they_are_called_now(words, part, name, value):
    recipe = parse([*DATA, *words])
    assert getattr(getattr(recipe, part), name) == value
    assert len(recipe.notices) == 1


@pytest.mark.parametrize(
    ("words", "strategy", "steps"),
    [
        ("--val_size 2", "epoch", None),
        ("--do_train --do_eval --val_size 4", "epoch", None),
        ("--eval_dataset more.json", "epoch", None),
        ("--val_size 2 --eval_steps 7", "steps", 7),
        ("--val_size 2 --load_best_model_at_end --save_steps 9", "steps", 9),
        ("--val_size 2 --load_best_model_at_end --save_strategy epoch", "epoch", 500),
        ("--val_size 2 --eval_strategy no", "no", None),
        ("--val_size 0", "no", None),
        ("", "no", None),
    ],
)
def test_rows_that_are_kept_for_evaluation_are_evaluated(words, strategy, steps):
    training = parse([*DATA, *words.split()]).training
    assert (training.eval_strategy, training.eval_steps) == (strategy, steps)


def test_what_launchers_add_needs_no_notice():
    assert parse(["--local_rank=0", *DATA]).notices == ()


def test_hyphens_and_bare_switches():
    recipe = parse([*DATA, "--lora-rank", "4", "--use-dora", "--gradient_checkpointing"])
    assert (recipe.method.lora_rank, recipe.method.use_dora) == (4, True)
    assert recipe.training.gradient_checkpointing is True


def test_blank_arguments_of_backslash_and_space_say_nothing():
    assert parse(["--lora_rank", "4", " ", *DATA]).method.lora_rank == 4


def test_a_recipe_file_and_what_wins_over_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "# 说明\nstage: sft\ndataset: [a.json, b.json]\noutput_dir: out\nlearning_rate: 1e-5\n"
        "bf16: true\nlora_rank: 4\nval_size:\ndev_ratio: 0.1\n"
        "lr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cycles: 2}\n",
        "utf-8",
    )
    recipe = parse([str(path), "--lora_rank", "16", "learning_rate=2e-5"])
    assert recipe.data.dataset == ["a.json", "b.json"]
    assert recipe.data.val_size == 0.1
    assert recipe.method.lora_rank == 16
    assert recipe.training.learning_rate == 2e-5
    assert recipe.training.bf16
    assert recipe.training.lr_scheduler_kwargs == {"num_cycles": 2}


def test_a_recipe_may_be_json(tmp_path):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"dataset": "a.json,b.json", "output_dir": "out"}))
    assert parse([str(path)]).data.dataset == ["a.json", "b.json"]


@pytest.mark.parametrize(("content", "problem"), [("- a", "is no recipe"), ("a: [", "be read")])
def test_files_that_are_no_recipe(tmp_path, content, problem):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=problem):
        parse([str(path)])
    with pytest.raises(UsageError, match="cannot be read"):
        parse([str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--lerning_rate", "1"], "There is no flag --lerning_rate. Is --learning_rate meant?"),
        (["--lora-rnk=1"], "There is no flag --lora_rnk. Is --lora_rank meant?"),
        (["--zzz"], "There is no flag --zzz. `baichuan train --help`"),
        (["--lora_rank", "1", "2"], "'2' is no flag and belongs to none"),
        (["--learning_rate", "fast"], "learning_rate is 'fast'; it must be a number"),
        (["--lora_rank", "x"], "lora_rank is 'x'; it must be a whole number"),
        (["--plan", "perhaps"], "plan is 'perhaps'; it must be true or false"),
        (["--lr_scheduler_type", "x"], "lr_scheduler_type is 'x'; allowed is one of linear, cos"),
        (["--lora_rank", "--fp16"], "--lora_rank needs a value behind it"),
        (["--max_source_length", "long"], "max_source_length is long; it must be a whole number"),
        (["--stage", "ppo"], "stage is 'ppo'; allowed is one of sft, pt, dpo"),
        (["--template", "llama"], "template is 'llama'; allowed is one of baichuan, vanilla, def"),
        (["--bits", "5"], "bits is 5; allowed is one of 8, 4, 3"),
        (["--bits", "4", "--finetuning_type", "full"], "--bits 4 freezes the weights"),
        (["--cutoff_len", "3"], "cutoff_len is 3; allowed is 16 or more"),
        (["--val_size", "1.5"], "val_size is 1.5; give a share below 1, or a whole number"),
        (["--lora_dropout", "1"], "lora_dropout is 1.0; allowed is from 0 to below 1"),
        (["--do_predict"], "--do_predict cannot be used here: answers are generated by `baichuan"),
        (["--use_liger_kernel"], "--use_liger_kernel cannot be used here: the loss is computed"),
        (["--push_to_hub"], "--push_to_hub cannot be used here: upload the finished"),
        (["--label_names", "labels"], "--label_names cannot be used here: evaluation here is"),
        (["--parallelism_config", "x"], "parallelism_config is 'x'"),
        (["--accelerator_config", '{"x": 1}'], "These flags do not go together: .*argument 'x'"),
        (["--optim", "lomo"], "--optim lomo cannot be used here: .*lomo"),
        (["--optim", "adamw_torch", "--adam_beta1", "2"], "--optim adamw_torch cannot .*beta"),
        (["--learning_rate", "-1"], "learning_rate is -1.0; allowed is 0 or more"),
        (["--report_to", "nothing"], r"--report_to \['nothing'\] cannot be used here: nothing is"),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "cosine_with_min_lr cannot .*min_lr"),
        (["--lr_scheduler_kwargs", '{"x": 1}'], "--lr_scheduler_type linear cannot .*'x'"),
        (["--dataloader_persistent_workers"], "--dataloader_num_workers 0 cannot be used here"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps is 0; allowed is 1"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size is 0; allowed is 1"),
        (["--num_train_epochs", "0"], "num_train_epochs is 0.0; give more than 0"),
        (["--label_smoothing_factor", "1"], "label_smoothing_factor is 1.0; allowed is from 0"),
        (["--max_grad_norm", "-1"], "max_grad_norm is -1.0; allowed is 0 or more"),
        (["--metric_for_best_model", "accuracy"], "metric_for_best_model is 'accuracy'; allowed"),
        (["--do_eval"], "--do_eval needs something to evaluate on"),
        (["--eval_on_start"], "--eval_on_start needs something to evaluate on"),
        (["--do_train", "false"], "--do_train false leaves nothing to do"),
        (["--save_strategy", "best", "--val_size", "1"], "--save_strategy best saves what"),
        (["--fsdp_config", '{"x": 1}'], "--fsdp_config has no effect without --fsdp"),
        (["--pref_loss", "orpo"], "pref_loss is 'orpo'; allowed is one of sigmoid, hinge, ipo"),
        (["--pref_loss", "typo"], "pref_loss is 'typo'; allowed"),
        (["--stage", "dpo", "--label_smoothing_factor", "0.1"], "--label_smoothing_factor does n"),
        (["--stage", "dpo", "--group_by_length"], "--train_sampling_strategy does not go with"),
        (["--stage", "dpo", "--packing"], "--packing does not go with --stage dpo"),
        (["--train_on_prompt", "--mask_history"], "--train_on_prompt goes neither"),
        (["--eval_strategy", "steps"], "--eval_strategy steps needs something to evaluate on"),
        (
            shlex.split(
                "--val_size 1 --eval_strategy steps --load_best_model_at_end --eval_steps 20 "
                "--save_steps 30"
            ),
            "These flags do not go together: .*multiple of the evaluation steps",
        ),
        (["--lora_rank", "4", " "], "cut off behind '--lora_rank 4'.*Delete the space"),
    ],
)
def test_mistakes_are_sentences(words, problem):
    with pytest.raises(UsageError, match=problem):
        parse([*DATA, *words])


def test_without_data():
    with pytest.raises(UsageError, match=r"No data: give --dataset.*registry .data.dataset_info"):
        parse(["--output_dir", "out"])


#: What transformers does with a flag as it says, in every training here.
WORKING = """
output_dir num_train_epochs max_steps lr_scheduler_type lr_scheduler_kwargs warmup_steps optim
optim_args optim_target_modules weight_decay adam_beta1 adam_beta2 adam_epsilon bf16 fp16
bf16_full_eval fp16_full_eval tf32 activation_checkpointing activation_checkpointing_kwargs
gradient_checkpointing gradient_checkpointing_kwargs torch_compile torch_compile_backend
torch_compile_mode torch_empty_cache_steps auto_find_batch_size logging_strategy logging_steps
logging_first_step log_on_each_node include_num_input_tokens_seen log_level log_level_replica
disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
eval_strategy eval_steps eval_delay eval_on_start eval_use_gather_object eval_accumulation_steps
save_only_model save_strategy save_steps save_on_each_node save_total_limit load_best_model_at_end
metric_for_best_model greater_is_better ignore_data_skip restore_callback_states_from_checkpoint
full_determinism seed data_seed use_cpu accelerator_config average_tokens_across_devices
dataloader_drop_last dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_static_graph ddp_backend
ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics do_train do_eval
resume_from_checkpoint
"""


def test_each_flag_of_transformers_is_decided():
    """It works as transformers says, is bounded, is refused, or has no effect and says so."""
    decided = {*WORKING.split(), *REFUSED, *LEAST, *_NEEDLESS}
    assert {field.name for field in fields(TrainingArguments)} <= decided
    assert not REFUSED.keys() & {*WORKING.split(), *LEAST, *_NEEDLESS}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a: &a [1]\nb: [*a, *a]", "an alias"),
        ("stage: sft\n<<: *x", "an alias"),
        ("a: " + "[" * 30, "nested deeper than 20"),
        ("a: " + "{b: " * 5000, "nested deeper than 20"),
        ("seed: !!int ''", "cannot be read"),
        ("run_name: 2024-99-99", "cannot be read"),
        ("seed: " + "9" * 5000, "cannot be read"),
        ("1: 2", "is no recipe"),
        ("#" * (1 << 20) + "\na: 1", "larger than"),
    ],
)
def test_a_recipe_is_read_within_limits(tmp_path, content, problem):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(UsageError, match=problem):
        parse([str(tmp_path / "recipe.yaml")])
