"""What to measure: a network, a workload and precisions, checked. Measures nothing.

A `Job` goes to each worker process as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from baichuan.errors import UsageError
from baichuan.hub import DEMO, local_directory
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.pretrained import read_config
from baichuan.model.published_int8 import plan_of, scale_names
from baichuan.model.quantization import BaichuanQuantizationConfig, plan_for, swap_modules
from baichuan.quant.plan import Plan, make_room
from baichuan.quant.scheme import Scheme
from baichuan.weights import WeightFiles

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BITS = {"int8": 8, "int4": 4}
PRECISIONS = (*DTYPES, *BITS)
#: Presets that can be had with random weights, and their names.
RANDOM = {"13b": "Baichuan-13B", "7b": "Baichuan-7B"}
_GEOMETRY = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "position_embedding"),
)


@dataclass(frozen=True)
class Job:
    """A network and what it shall do.

    Attributes:
        model: directory or hub name of a checkpoint; None with `random` None is the demo model.
        random: "13b" or "7b": random weights in that geometry, made in memory.
        layers: of a random network, fewer than all; each has the full width.
        prompt: tokens of the prompt.
        tokens: tokens to generate behind it.
        repeats: how often.
        threads: that a worker may use; None leaves torch its choice.
        device: "cpu" or "cuda"; None or "auto" is the GPU where there is one.
        huge_pages: as `baichuan.load` has it.
        rope: whether to compare ALiBi with RoPE.

    Raises:
        UsageError: values that are not allowed, or not together.
    """

    model: str | None = None
    random: str | None = None
    layers: int | None = None
    prompt: int = 512
    tokens: int = 2048
    repeats: int = 3
    threads: int | None = None
    device: str | None = None
    huge_pages: bool = False
    rope: bool = True

    def __post_init__(self) -> None:
        for name, least in (("prompt", 1), ("tokens", 2), ("repeats", 1)):
            _require_from(name, getattr(self, name), least)
        if self.threads is not None:
            _require_from("threads", self.threads, 1)
        self._check_network()
        allowed = ["cpu", *(["cuda"] if torch.cuda.is_available() else []), "auto"]
        if self.device is not None and self.device not in allowed:
            raise UsageError(
                "device is {given!r}; the benchmark runs on {allowed} here.",
                given=self.device,
                allowed=", ".join(allowed),
            )
        if self.rope and self.config.head_dim % 2:
            raise UsageError(
                "The heads have {columns} columns each and RoPE needs an even number; leave the "
                "comparison out with --no-rope.",
                columns=self.config.head_dim,
            )

    def _check_network(self) -> None:
        if self.random is None:
            if self.layers is not None:
                raise UsageError(
                    "layers is {given}, but a checkpoint is measured whole; --layers belongs to "
                    "--random 13b or --random 7b.",
                    given=self.layers,
                )
            return
        if self.model is not None:
            raise UsageError(
                "The model {model!r} and --random were both given; leave one of them out.",
                model=self.model,
            )
        if self.random not in RANDOM:
            raise UsageError(
                "random is {given!r}; allowed is {allowed}.",
                given=self.random,
                allowed=", ".join(RANDOM),
            )
        most = BaichuanConfig.preset(self.random).num_hidden_layers
        if self.layers is not None and not 1 <= self.layers <= most:
            raise UsageError(
                "layers is {given}; allowed is 1 to {most}.", given=self.layers, most=most
            )

    @property
    def directory(self) -> Path:
        """The checkpoint's directory; what a hub name stands for is fetched if it is not here."""
        return DEMO if self.model is None else local_directory(self.model)

    @property
    def config(self) -> BaichuanConfig:
        """The network's shape."""
        if self.random is None:
            return read_config(self.directory)
        changes = {} if self.layers is None else {"num_hidden_layers": self.layers}
        return BaichuanConfig.preset(self.random, **changes)

    @property
    def is_baichuan_13b(self) -> bool:
        """Whether this is the whole Baichuan-13B, whose figures the original README has."""
        config, whole = self.config, BaichuanConfig.preset("13b")
        return all(getattr(config, name) == getattr(whole, name) for name in _GEOMETRY)

    @property
    def quantized(self) -> BaichuanQuantizationConfig | None:
        """How the checkpoint is quantized already; None if it is not."""
        if self.random is not None:
            return None
        settings = getattr(self.config, "quantization_config", None)
        if settings is not None:
            # Refuses what another library quantized.
            swap_modules(_empty(self.config), settings)
            return BaichuanQuantizationConfig(**settings)
        shapes = WeightFiles(self.directory).shapes
        return BaichuanQuantizationConfig.of(plan_of(shapes)) if scale_names(shapes) else None

    @property
    def chosen_device(self) -> str:
        """The device to measure on."""
        if self.device not in (None, "auto"):
            return str(self.device)
        return "cuda" if torch.cuda.is_available() else "cpu"

    def to_json(self) -> str:
        """Give the text that `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """Read what `to_json` gave."""
        return cls(**json.loads(text))


def chosen_precisions(job: Job, names: Sequence[str] = ()) -> list[str]:
    """Give the precisions to measure, in the order of `PRECISIONS`.

    Args:
        job: a checkpoint that is quantized already has one precision, its own.
        names: only these; empty for all.

    Raises:
        UsageError: a name that there is not, or one that a quantized checkpoint has not.
    """
    unknown = [name for name in names if name not in PRECISIONS]
    if unknown:
        raise UsageError(
            "precision is {given!r}; allowed are {allowed}, parted by commas.",
            given=",".join(names),
            allowed=", ".join(PRECISIONS),
        )
    chosen = [name for name in PRECISIONS if not names or name in names]
    if job.quantized is None:
        return chosen
    held = f"int{job.quantized.plan.scheme.bits}"
    if held not in chosen:
        raise UsageError(
            "precision is {given!r}, but the checkpoint is quantized already and has {held} alone. "
            "Leave it out, or give the original weights.",
            given=",".join(names),
            held=held,
        )
    return [held]


def kept_dtype(job: Job, precision: str) -> torch.dtype:
    """Give the dtype of activations, cache, and of weights that are not quantized."""
    if precision in DTYPES:
        return DTYPES[precision]
    stated = job.config.dtype
    if job.random is None and (job.model is None or stated == torch.float32):
        return torch.float32
    return torch.bfloat16


def empty_network(job: Job, precision: str) -> BaichuanForCausalLM:
    """Give the network on the meta device: shapes and dtypes without memory."""
    network = _empty(job.config)
    network.to(kept_dtype(job, precision))
    if job.quantized is not None:
        swap_modules(network, job.quantized)
    elif precision in BITS:
        make_room(network, plan_for(network.config, Plan(Scheme.of_bits(BITS[precision]))))
    return network


def weight_bytes(network: BaichuanForCausalLM) -> int:
    """Sum up what the weights take; one that is two things (a tied head) counts once."""
    return sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))


def _empty(config: BaichuanConfig) -> BaichuanForCausalLM:
    with torch.device("meta"):
        network = BaichuanForCausalLM(config)
    network.eval()
    return network


def _require_from(name: str, given: int, least: int) -> None:
    if given < least:
        raise UsageError(
            "{name} is {given}; allowed is {least} or more.", name=name, given=given, least=least
        )
