"""How much memory a fine-tuning will take, of each GPU, before it begins: `baichuan train --plan`.

The formula is in docs/finetuning.md. It counts tensors; what the allocator and the driver need
beside them is a constant. Knows no tensor: arithmetic on the shape of the network and the recipe.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from baichuan.model.attention import BIAS_CHANNELS
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.loss import POSITIONS_AT_ONCE
from baichuan.model.pretrained import read_config
from baichuan.quant.scheme import Scheme
from baichuan.train.deepspeed import read
from baichuan.train.recipe import Recipe

#: Driver, kernels and the allocator's loss: about this much on a GPU.
_CONTEXT = 1.5e9
_FLOAT32 = 4
#: Adam keeps two float32 numbers for each weight that learns.
_ADAM = 8


@dataclass(frozen=True)
class Layer:
    """The linear layers of one decoder layer: name to (in, out)."""

    linears: Mapping[str, tuple[int, int]]
    norms: int

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.norms + sum(a * b for a, b in self.linears.values())


@dataclass(frozen=True)
class Plan:
    """Bytes of each GPU (or of the process, on a CPU), by what they are for.

    Attributes:
        weights: of the model, with the copies in 16 bits that mixed precision makes.
        gradients, optimizer: of the weights that learn.
        activations: kept by all layers for the way back.
        layer: what one layer needs on that way.
        logits: of the positions that have them at once, with their gradients.
        context: of the driver; 0 on a CPU.
        host: bytes of the computer's own memory, of all processes, that offloading takes.
        gradients_stay: from one pass to the next, as accumulation wants it.
        parameters, trained: how many weights there are, and how many learn.
        gpus: among which they are divided.
        capacity: bytes of each GPU; None if unknown.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    layer: float
    logits: float
    context: float
    host: float
    gradients_stay: bool
    parameters: int
    trained: int
    gpus: int
    capacity: float | None

    @property
    def total(self) -> float:
        """Bytes at the worst moment: when the way back begins, or when it ends."""
        begin = self.activations + max(self.logits, self.layer)
        if self.gradients_stay:
            begin += self.gradients
        end = self.gradients + self.layer
        return self.weights + self.optimizer + max(begin, end) + self.context

    @property
    def fits(self) -> bool | None:
        """Whether it is less than there is; None if that is unknown."""
        return None if self.capacity is None else self.total <= self.capacity


def plan(recipe: Recipe) -> Plan:
    """Count what a recipe takes.

    Raises:
        CheckpointError, DownloadError: no configuration of the model is found.
    """
    config = _config(recipe)
    layer = _layer(config)
    gpus, capacity = _machine(recipe)
    trained, adapted = _trained(recipe, config, layer)
    spread = _Spread.of(recipe, gpus)
    weights = _weight_bytes(recipe, config, layer, trained, adapted)
    gradients = (_computed(recipe) if spread.deepspeed else _FLOAT32) * float(trained)
    optimizer = (_ADAM + (_FLOAT32 if spread.deepspeed else 0)) * float(trained)
    host = optimizer if spread.offloads_optimizer else 0.0
    host += weights if spread.offloads_weights else 0.0
    kept, at_once = _activation_bytes(recipe, config, layer)
    return Plan(
        weights=0.0 if spread.offloads_weights else weights / spread.of_weights,
        gradients=gradients / spread.of_gradients,
        optimizer=0.0 if spread.offloads_optimizer else optimizer / spread.of_optimizer,
        activations=kept,
        layer=at_once,
        logits=_logit_bytes(recipe, config),
        context=_CONTEXT if capacity is not None or recipe.task.gpus else 0.0,
        host=host,
        gradients_stay=gpus > 1 or recipe.training.gradient_accumulation_steps > 1,
        parameters=_parameters(config, layer),
        trained=trained,
        gpus=gpus,
        capacity=capacity,
    )


@dataclass(frozen=True)
class _Spread:
    """Among how many processes each kind of state is divided, and what goes to the host."""

    deepspeed: bool
    of_weights: int = 1
    of_gradients: int = 1
    of_optimizer: int = 1
    offloads_weights: bool = False
    offloads_optimizer: bool = False

    @classmethod
    def of(cls, recipe: Recipe, gpus: int) -> _Spread:
        if not recipe.training.deepspeed:
            every = gpus if recipe.training.fsdp else 1
            return cls(False, every, every, every)
        zero = read(recipe.training.deepspeed)["zero_optimization"]
        stage = int(zero.get("stage", 0))
        return cls(
            True,
            gpus if stage >= 3 else 1,
            gpus if stage >= 2 else 1,
            gpus if stage >= 1 else 1,
            _offloads(zero, "offload_param"),
            _offloads(zero, "offload_optimizer"),
        )


def _offloads(zero: Mapping[str, Any], name: str) -> bool:
    return bool((zero.get(name) or {}).get("device", "none") != "none")


def _machine(recipe: Recipe) -> tuple[int, float | None]:
    """Give the number of GPUs and the bytes of each, as told or as found."""
    found = torch.cuda.device_count()
    gpus = recipe.task.gpus or int(os.environ.get("WORLD_SIZE", 0)) or found or 1
    if recipe.task.gpu_memory is not None:
        return gpus, recipe.task.gpu_memory * 1e9
    return gpus, float(torch.cuda.get_device_properties(0).total_memory) if found else None


def _config(recipe: Recipe) -> BaichuanConfig:
    """Find the shape of the network; the published ones need no download."""
    from baichuan.hub import DEMO

    name = str(recipe.model.model_name_or_path or DEMO)
    if Path(name).is_dir():
        return read_config(Path(name))
    for preset in ("13b", "7b"):
        if f"baichuan-{preset}" in name.lower():
            return BaichuanConfig.preset(preset)
    config: BaichuanConfig = BaichuanConfig.from_pretrained(
        name, revision=recipe.model.model_revision, cache_dir=recipe.model.cache_dir
    )
    return config


def _layer(config: BaichuanConfig) -> Layer:
    hidden, inner = config.hidden_size, config.intermediate_size
    linears = {
        "W_pack": (hidden, 3 * hidden),
        "o_proj": (hidden, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    return Layer(linears, 2 * hidden)


def _parameters(config: BaichuanConfig, layer: Layer) -> int:
    ends = (1 if config.tie_word_embeddings else 2) * config.vocab_size + 1
    return config.num_hidden_layers * layer.weights + ends * config.hidden_size


def _trained(recipe: Recipe, config: BaichuanConfig, layer: Layer) -> tuple[int, int]:
    """Give how many weights learn, and how many of those are beside the model's own."""
    method, every = recipe.method, _parameters(config, layer)
    if method.finetuning_type == "full":
        return every, 0
    if method.finetuning_type == "freeze":
        named = _named(method.freeze_trainable_modules, layer)
        whole = method.freeze_trainable_modules == ["all"]
        size = layer.weights if whole else sum(a * b for a, b in named.values())
        return abs(method.freeze_trainable_layers) * size, 0
    targets = _named(method.lora_target, layer).values()
    count = config.num_hidden_layers * sum(method.lora_rank * (a + b) for a, b in targets)
    ends = config.vocab_size * config.hidden_size
    if "lm_head" in method.lora_target:
        count += method.lora_rank * (config.vocab_size + config.hidden_size)
    count += ends * sum(name in ("embed_tokens", "lm_head") for name in method.additional_target)
    return count, count


def _named(names: list[str], layer: Layer) -> dict[str, tuple[int, int]]:
    every = names == ["all"]
    return {name: shape for name, shape in layer.linears.items() if every or name in names}


def _computed(recipe: Recipe) -> int:
    """Bytes of a number in products."""
    return 2 if recipe.training.bf16 or recipe.training.fp16 else _FLOAT32


def _weight_bytes(
    recipe: Recipe, config: BaichuanConfig, layer: Layer, trained: int, adapted: int
) -> float:
    """Weights as they lie in memory; those that learn in float32, unless DeepSpeed keeps these."""
    computed = _computed(recipe)
    asked = recipe.model.dtype
    held = computed if asked is None else (_FLOAT32 if asked == "float32" else 2)
    frozen = float(_parameters(config, layer) - (trained - adapted))
    learning = float(computed if recipe.training.deepspeed else _FLOAT32)
    # Under autocast, products keep a copy in 16 bits of each float32 weight until the step's end.
    copies = computed if computed < learning else 0
    bits = recipe.model.bits or getattr(config, "quantization_config", {}).get("bits")
    if bits is None:
        return frozen * held + trained * (learning + copies)
    return _quantized_bytes(bits, config, layer, held) + trained * (learning + copies)


def _quantized_bytes(bits: int, config: BaichuanConfig, layer: Layer, held: int) -> float:
    scheme, head = Scheme.of_bits(bits), Scheme.of_bits(8)
    linears = sum(a * b * scheme.stored_bits(a) / 8 for a, b in layer.linears.values())
    ends = config.vocab_size * config.hidden_size
    norms = config.num_hidden_layers * layer.norms + config.hidden_size
    stored_head = ends * head.stored_bits(config.hidden_size) / 8
    return config.num_hidden_layers * linears + stored_head + (ends + norms) * held


def _positions(recipe: Recipe) -> int:
    rows = recipe.training.per_device_train_batch_size
    return int(rows * recipe.data.cutoff_len * (2 if recipe.method.stage == "dpo" else 1))


def _activation_bytes(recipe: Recipe, config: BaichuanConfig, layer: Layer) -> tuple[float, float]:
    """Give what all layers keep for the way back, and what one layer needs on it."""
    size, positions = _computed(recipe), float(_positions(recipe))
    layers, hidden, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    # Where embedding and norms are float32, so is the sum that runs through all layers.
    plain = recipe.method.finetuning_type == "full" and not recipe.training.deepspeed
    stream = _FLOAT32 if plain else size
    heads = config.num_attention_heads
    wider = BIAS_CHANNELS * heads if config.position_embedding == "alibi" else 0
    attention = 4 * (hidden + wider) * size + _FLOAT32 * heads
    inputs = _kept_inputs(recipe, layer) * size
    kept = 2 * hidden * stream + attention + 2 * inner * size + inputs
    # The gradients of gate, up and their product, and a norm's in float32.
    back = 3 * inner * size + 3 * hidden * _FLOAT32
    ends = 3 * hidden * stream
    if recipe.training.gradient_checkpointing:
        return positions * (layers * hidden * stream + ends), positions * (back + kept)
    return positions * (_learning_layers(recipe, config) * kept + ends), positions * back


def _kept_inputs(recipe: Recipe, layer: Layer) -> int:
    """Columns of the inputs that linear layers keep to learn from.

    Layers that share an input share it here too; adapters cast theirs, each for itself.
    """
    method = recipe.method
    if method.finetuning_type == "lora":
        return sum(a for a, _ in _named(method.lora_target, layer).values())
    names = method.freeze_trainable_modules if method.finetuning_type == "freeze" else ["all"]
    named = _named(names, layer)
    shared = named.keys() >= {"gate_proj", "up_proj"}
    return sum(a for a, _ in named.values()) - (named["up_proj"][0] if shared else 0)


def _learning_layers(recipe: Recipe, config: BaichuanConfig) -> int:
    """Layers that the way back goes through: with freeze, those behind the first that learns."""
    last = recipe.method.freeze_trainable_layers
    if recipe.method.finetuning_type == "freeze" and last > 0:
        return min(last, config.num_hidden_layers)
    return config.num_hidden_layers


def _logit_bytes(recipe: Recipe, config: BaichuanConfig) -> float:
    """Logarithms of the probabilities, their gradients and those of the logits, in float32.

    trl's DPO has the logits of all positions.
    """
    positions = _positions(recipe)
    if recipe.method.stage == "dpo":
        return float(positions) * config.vocab_size * (_computed(recipe) + 3 * _FLOAT32)
    return float(min(positions, POSITIONS_AT_ONCE)) * config.vocab_size * 3 * _FLOAT32
