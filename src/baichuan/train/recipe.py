"""What a fine-tuning is made of, as frozen dataclasses; each field is a flag of `baichuan train`.

Light: knows the names, defaults and limits, and imports neither torch nor transformers, so that
`baichuan train --help` is instant. What is typed becomes a `Recipe` in arguments.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from baichuan.errors import UsageError
from baichuan.hub import DEMO_NAME
from baichuan.language import phrase
from baichuan.quant.scheme import BITS

if TYPE_CHECKING:
    from transformers import TrainingArguments

STAGES = ("sft", "pt", "dpo")
METHODS = ("lora", "full", "freeze")
#: Losses of trl's DPO that need no setting of their own.
PREFERENCE_LOSSES = (
    *("sigmoid", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot"),
    *("aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
TEMPLATES = ("baichuan", "vanilla", "default2023")
#: Layouts of rows: instruction, input, output; conversations; messages.
FORMATS = ("alpaca", "sharegpt", "openai")


def _list(text: str, default: tuple[str, ...] = ()) -> Any:
    """Declare a field that takes several values, parted by commas."""
    return field(default_factory=lambda: list(default), metadata={"help": text})


def _flag(default: Any, text: str) -> Any:
    """Declare a field with the sentence that `--help` shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ModelArguments:
    """Which model is trained.

    Attributes:
        model_name_or_path: directory or hub name; None is the demo model.
        adapter_name_or_path: a LoRA adapter to go on from.
        model_revision: branch, tag or commit on the hub.
        cache_dir: where downloads are kept.
        dtype: of the frozen weights; None leaves the choice to the run.
        bits: 8, 4 or 3, quantized frozen weights under LoRA (QLoRA); None for none.
    """

    model_name_or_path: str | None = _flag(
        None,
        phrase("Directory or hub name of a checkpoint; the small demo model if not given."),
    )
    adapter_name_or_path: str | None = _flag(None, phrase("Directory of an adapter to go on from."))
    model_revision: str | None = _flag(None, phrase("Branch, tag or commit on the hub."))
    cache_dir: str | None = _flag(None, phrase("Where downloads are kept."))
    dtype: str | None = _flag(
        None, phrase("float32, bfloat16 or float16 for weights that are not trained.")
    )
    bits: int | None = _flag(None, phrase("8, 4 or 3: quantize the frozen weights under LoRA."))

    def __post_init__(self) -> None:
        if self.model_name_or_path == DEMO_NAME:
            object.__setattr__(self, "model_name_or_path", None)
        _check_choice("bits", self.bits, (None, *BITS))
        _check_choice("dtype", self.dtype, (None, "float32", "bfloat16", "float16"))


@dataclass(frozen=True)
class DataArguments:
    """What is learned from.

    Attributes:
        dataset: names in the registry, files, directories or hub names.
        eval_dataset: the same for evaluation; empty for `val_size` of the training data.
        dataset_dir: directory of dataset_info.json and of the files that it names.
        template: how a conversation becomes tokens, see templates.py.
        cutoff_len: most tokens of a row.
        packing: several short rows in one, None for the stage's own default (pt alone packs).
        val_size: share (below 1) or number (1 and above) of rows that are kept for evaluation.
        max_samples: at most so many rows of each data set, the first ones.
        train_on_prompt: learn what the user said too.
        mask_history: learn the last answer of a conversation alone.
        skip_broken_rows: leave broken rows out and say how many, instead of stopping.
        preprocessing_num_workers: processes that turn text into tokens.
        overwrite_cache: prepare the rows anew although they have been before.
    """

    dataset: list[str] = field(
        default_factory=list,
        metadata={
            "help": phrase(
                "Data sets, parted by commas: names in the registry, files, or hub names."
            )
        },
    )
    eval_dataset: list[str] = field(
        default_factory=list, metadata={"help": phrase("The same, for evaluation.")}
    )
    dataset_dir: str = _flag("data", phrase("Directory of dataset_info.json, the registry."))
    template: str = _flag("baichuan", phrase("baichuan, vanilla or default2023."))
    cutoff_len: int = _flag(2048, phrase("Most tokens of a row; the end marker is never cut."))
    packing: bool | None = _flag(
        None, phrase("Several short rows in one, which do not see each other; default with pt.")
    )
    val_size: float = _flag(
        0.0, phrase("Share (below 1) or number of rows that are kept for evaluation.")
    )
    max_samples: int | None = _flag(None, phrase("At most so many rows of each data set."))
    train_on_prompt: bool = _flag(False, phrase("Learn what the user said, too."))
    mask_history: bool = _flag(False, phrase("Learn the last answer of a conversation alone."))
    skip_broken_rows: bool = _flag(
        False, phrase("Leave broken rows out, and say how many, instead of stopping.")
    )
    preprocessing_num_workers: int | None = _flag(
        None, phrase("Processes that turn text into tokens.")
    )
    overwrite_cache: bool = _flag(False, phrase("Prepare the rows anew."))

    def __post_init__(self) -> None:
        for name in ("dataset", "eval_dataset"):
            object.__setattr__(self, name, _split(getattr(self, name)))
        _check_choice("template", self.template, TEMPLATES)
        _check_least("cutoff_len", self.cutoff_len, 16)
        _check_least("max_samples", self.max_samples, 1)
        _check_least("preprocessing_num_workers", self.preprocessing_num_workers, 1)
        _check_least("val_size", self.val_size, 0)
        if self.val_size >= 1 and self.val_size != int(self.val_size):
            raise UsageError(
                "val_size is {given}; give a share below 1, or a whole number of rows.",
                given=self.val_size,
            )


@dataclass(frozen=True)
class MethodArguments:
    """How it is learned.

    Attributes:
        stage: sft (answers), pt (plain text) or dpo (preferences).
        finetuning_type: lora (adapters), full (all weights) or freeze (some layers).
        lora_rank: of the adapters' matrices.
        lora_target: names of linear layers, `["all"]` for each one but the head.
        lora_alpha: scale times rank; None is twice the rank.
        lora_dropout: share of an adapter's input that is dropped.
        use_rslora: scale by alpha / sqrt(rank).
        use_dora: weight-decomposed adapters.
        additional_target: modules trained whole and saved with the adapter.
        freeze_trainable_layers: with freeze, so many last layers (negative: first) are trained.
        freeze_trainable_modules: names within those layers, `["all"]` for all.
        pref_beta: DPO's beta.
        pref_loss: one of trl's DPO losses, see PREFERENCE_LOSSES.
        pref_ftx: weight of the answers' own loss beside DPO's.
        plot_loss: draw the loss curve.
        overwrite_output_dir: start anew although the directory holds a run.
    """

    stage: str = _flag("sft", phrase("sft (answers), pt (plain text) or dpo (preferences)."))
    finetuning_type: str = _flag("lora", phrase("lora, full or freeze."))
    lora_rank: int = _flag(8, phrase("Rank of the adapters' matrices."))
    lora_target: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={
            "help": phrase("Linear layers with adapters, parted by commas, such as W_pack; or all.")
        },
    )
    lora_alpha: int | None = _flag(None, phrase("Scale times rank; twice the rank by default."))
    lora_dropout: float = _flag(0.0, phrase("Share of an adapter's input that is dropped."))
    use_rslora: bool = _flag(False, phrase("Scale adapters by alpha / sqrt(rank)."))
    use_dora: bool = _flag(False, phrase("Weight-decomposed adapters (DoRA)."))
    additional_target: list[str] = field(
        default_factory=list,
        metadata={"help": phrase("Modules that are trained whole and saved with the adapter.")},
    )
    freeze_trainable_layers: int = _flag(
        2, phrase("With freeze: train so many last layers (negative: first).")
    )
    freeze_trainable_modules: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": phrase("With freeze: modules that are trained in those layers, or all.")},
    )
    pref_beta: float = _flag(0.1, phrase("How closely DPO stays to the first model."))
    pref_loss: str = _flag("sigmoid", phrase("Loss of DPO, by trl's name."))
    pref_ftx: float = _flag(0.0, phrase("Weight of the chosen answers' own loss beside DPO's."))
    plot_loss: bool = _flag(False, phrase("Draw the loss curve."))
    overwrite_output_dir: bool = _flag(
        False, phrase("Start anew although the directory holds a run.")
    )

    def __post_init__(self) -> None:
        for name in ("lora_target", "additional_target", "freeze_trainable_modules"):
            object.__setattr__(self, name, _split(getattr(self, name)))
        if self.lora_alpha is None:
            object.__setattr__(self, "lora_alpha", 2 * self.lora_rank)
        _check_choice("stage", self.stage, STAGES)
        _check_choice("finetuning_type", self.finetuning_type, METHODS)
        _check_choice("pref_loss", self.pref_loss, PREFERENCE_LOSSES)
        _check_least("pref_beta", self.pref_beta, 0)
        _check_least("pref_ftx", self.pref_ftx, 0)
        _check_least("lora_rank", self.lora_rank, 1)
        if not 0 <= self.lora_dropout < 1:
            raise UsageError(
                "lora_dropout is {given}; allowed is from 0 to below 1.", given=self.lora_dropout
            )


@dataclass(frozen=True)
class TaskArguments:
    """What is done with the recipe instead of training.

    Attributes:
        preview: show so many rows as the model will see them, and end.
        plan: say how much memory the training takes, and end.
        gpus: for `plan`, of how many; None for those that there are.
        gpu_memory: for `plan`, GB of each.
    """

    preview: int | None = _flag(None, phrase("Show so many rows with what is learned, and end."))
    plan: bool = _flag(False, phrase("Say how much memory the training takes, and end."))
    gpus: int | None = _flag(None, phrase("With --plan: on so many GPUs."))
    gpu_memory: float | None = _flag(None, phrase("With --plan: of so many GB each."))

    def __post_init__(self) -> None:
        _check_least("preview", self.preview, 1)
        _check_least("gpus", self.gpus, 1)


@dataclass(frozen=True)
class Recipe:
    """Everything that `baichuan train` was told.

    Attributes:
        model, data, method, task: this package's own flags.
        training: transformers' flags.
        notices: sentences about flags that meant something else in 2023, for the user.
    """

    model: ModelArguments
    data: DataArguments
    method: MethodArguments
    task: TaskArguments
    training: TrainingArguments
    notices: tuple[str, ...] = ()

    @property
    def packs(self) -> bool:
        """Whether training rows are packed: as asked, else by the stage's own default."""
        asked = self.data.packing
        return self.method.stage == "pt" if asked is None else asked


OWN = (ModelArguments, DataArguments, MethodArguments, TaskArguments)


def _split(values: list[str] | str) -> list[str]:
    """Part values by commas: `a,b c` are three."""
    several = [values] if isinstance(values, str) else values
    return [part.strip() for value in several for part in value.split(",") if part.strip()]


def _check_choice(name: str, given: object, allowed: tuple[object, ...]) -> None:
    if given not in allowed:
        raise UsageError(
            "{name} is {given!r}; allowed is one of {allowed}.",
            name=name,
            given=given,
            allowed=", ".join(str(choice) for choice in allowed if choice is not None),
        )


def _check_least(name: str, given: float | None, least: int) -> None:
    if given is not None and given < least:
        raise UsageError(
            "{name} is {given}; allowed is {least} or more.", name=name, given=given, least=least
        )
