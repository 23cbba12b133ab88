"""The shape of a Baichuan-1 network: both families, their presets. Knows no tensor.

Source of the fields and numbers: the published `config.json` of Baichuan-13B-Chat and the class
defaults of Baichuan-7B. Both call themselves `"model_type": "baichuan"`; what tells them apart is
the capital C of the 7B's architecture name and its `max_position_embeddings`.
"""

# No `from __future__ import annotations`: `strict` checks field types only if they are not strings.
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from baichuan.errors import CheckpointError, UsageError
from baichuan.json_fields import (
    BOOLEAN,
    OBJECT,
    Kind,
    either,
    list_of,
    number,
    one_of,
    optional,
    read_fields,
    text,
    whole,
)
from baichuan.json_files import read_object
from baichuan.language import phrase

PositionEmbedding = Literal["alibi", "rope"]

_ID = whole(-(1 << 63), 1 << 63)  # the vocabulary decides
_IDS = optional(either(_ID, list_of(_ID, 1000)))
#: Angles by name, as transformers wrote it; only the base is used.
_ROPE = Kind(
    lambda value: (
        isinstance(value, dict)
        and optional(text(100)).holds(value.get("rope_type"))
        and optional(text(100)).holds(value.get("type"))
        and number(0, 1e12).holds(value.get("rope_theta", 1))
    ),
    phrase("an object with rope_type, a text, and rope_theta, a number"),
)
_NAMED_DTYPE = one_of("float32", "bfloat16", "float16", "float64")
#: In a file it is a name; `from_dict` is also given torch's own.
_DTYPE = replace(
    _NAMED_DTYPE, holds=lambda value: isinstance(value, torch.dtype) or _NAMED_DTYPE.holds(value)
)
_LENGTH = optional(whole(1, 1 << 24))
#: What is read of a config.json, with the largest values that any published network comes near.
#: Whatever else it has, no part of transformers gets to see.
_FIELDS = {
    "model_type": text(100),
    "architectures": optional(list_of(text(200), 100)),
    "transformers_version": optional(text(100)),
    "tokenizer_class": optional(text(200)),
    "dtype": optional(_DTYPE),
    "torch_dtype": optional(_DTYPE),
    "vocab_size": whole(1, 1 << 24),
    "hidden_size": whole(1, 1 << 17),
    "intermediate_size": whole(1, 1 << 20),
    "num_hidden_layers": whole(1, 1000),
    "num_attention_heads": whole(1, 1 << 12),
    "hidden_act": one_of("silu"),
    "position_embedding": optional(one_of("alibi", "rope")),
    "model_max_length": _LENGTH,
    "max_position_embeddings": _LENGTH,
    "rope_theta": number(0, 1e12),
    "rope_parameters": optional(_ROPE),
    "rope_scaling": optional(_ROPE),
    "initializer_range": number(0, 1e3),
    "rms_norm_eps": number(0, 1),
    "use_cache": BOOLEAN,
    "pad_token_id": optional(_ID),
    "bos_token_id": _IDS,
    "eos_token_id": _IDS,
    "tie_word_embeddings": BOOLEAN,
    "quantization_config": optional(OBJECT),
    "z_loss_weight": optional(number(-1e9, 1e9)),
}

_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)

#: Vocabulary of Baichuan 2, whose head is normalised: another network under the same `model_type`.
#: Derivatives added tokens or padding to it.
_BAICHUAN2_VOCABULARY = 125_696

_PRESETS: dict[str, dict[str, Any]] = {
    "13b": {"architectures": ["BaichuanForCausalLM"]},
    "7b": {
        "architectures": ["BaiChuanForCausalLM"],
        "position_embedding": "rope",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
    "demo": {
        "architectures": ["BaichuanForCausalLM"],
        "vocab_size": 3072,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 12,
        "model_max_length": 1024,
    },
}


@strict
class BaichuanConfig(PreTrainedConfig):  # type: ignore[misc]  # untyped base
    """Shape of the network. The defaults are Baichuan-13B's published values.

    Args:
        position_embedding: `"alibi"` (13B) or `"rope"` (7B); derived where the file does not say.
        model_max_length: longest sequence trained on, tokens (13B's name for it).
        max_position_embeddings: the same (7B's name for it).
        rope_theta: base of RoPE's wavelengths; without meaning under ALiBi.
        user_token_id, assistant_token_id: role markers of the chat format; ids, never text.
    """

    model_type = "baichuan"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012  (transformers' own shape)

    vocab_size: int = 64_000
    hidden_size: int = 5120
    intermediate_size: int = 13_696
    num_hidden_layers: int = 40
    num_attention_heads: int = 40
    hidden_act: Literal["silu"] = "silu"
    position_embedding: PositionEmbedding | None = None
    model_max_length: int | None = None
    max_position_embeddings: int | None = None
    rope_theta: float | int = 10_000.0
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    tie_word_embeddings: bool = False
    # Lets AutoTokenizer find ours where a directory has no tokenizer_config.json.
    tokenizer_class: str | None = "BaichuanTokenizer"

    def __post_init__(self, **kwargs: Any) -> None:
        # A checkpoint's pointers to its own Python files: we never run them, and saving must not
        # send the next reader back to files that are no longer beside the weights.
        kwargs.pop("auto_map", None)
        kwargs.pop("custom_pipelines", None)
        if "z_loss_weight" in kwargs:  # saved by the classes of Baichuan 2, whatever the vocabulary
            raise UsageError(
                "z_loss_weight is Baichuan 2's, whose output head is normalised; this package runs "
                "Baichuan-13B and Baichuan-7B (version 1)."
            )
        if "rope_scaling" in kwargs:  # the name before transformers 5
            kwargs["rope_parameters"] = kwargs.pop("rope_scaling")
        if not _is_token_id(self.pad_token_id, self.vocab_size):
            self.pad_token_id = None  # nothing needs it: padding is masked
        super().__post_init__(**kwargs)
        if self.position_embedding is None:
            self.position_embedding = self._published_position_embedding()
        if self.model_max_length is None and self.max_position_embeddings is None:
            self.model_max_length = 4096
        self._read_rope_parameters()
        self._check_architecture()
        for name in ("bos_token_id", "eos_token_id"):
            check_token_ids(name, getattr(self, name), self.vocab_size)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config.json (transformers calls this to load), which must be JSON.

        Raises:
            CheckpointError: it is not, or is too large.
        """
        folder = str(kwargs.get("subfolder") or "")
        path = Path(pretrained_model_name_or_path, folder, "config.json")
        if path.is_file():
            read_object(path)  # in which transformers would fail in other ways
        return cast(
            tuple[dict[str, Any], dict[str, Any]],
            super().get_config_dict(pretrained_model_name_or_path, **kwargs),
        )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from what a config.json holds (transformers calls this to load).

        Raises:
            CheckpointError: of another model, or a value that no Baichuan-1 network can have.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise CheckpointError(
                "The checkpoint's config.json says model_type {given!r}; this package runs "
                "Baichuan-13B and Baichuan-7B, whose model_type is 'baichuan'.",
                given=model_type,
            )
        settings = read_fields(config_dict, _FIELDS, "config.json", CheckpointError)
        try:
            return super().from_dict(settings, **kwargs)
        except (StrictDataclassError, UsageError, AttributeError, TypeError) as error:
            why = " ".join(str(error.__cause__ or error).split())
            raise CheckpointError(
                "The checkpoint's config.json cannot be used: {why}", why=why
            ) from error

    def _published_position_embedding(self) -> PositionEmbedding:
        """Tell the families apart by what their published files hold."""
        architectures = self.architectures or []
        if "BaiChuanForCausalLM" in architectures:
            return "rope"
        only_7b_name = self.max_position_embeddings is not None and self.model_max_length is None
        return "rope" if only_7b_name and not architectures else "alibi"

    def _read_rope_parameters(self) -> None:
        """Take the base from transformers' `rope_parameters`; refuse a scaling (rope_scaling)."""
        given = getattr(self, "rope_parameters", None) or {}
        if self.position_embedding != "rope" or not given:
            return
        kind = given.get("rope_type", given.get("type", "default"))
        if kind != "default":
            raise UsageError(
                "rope_scaling is {kind!r}, which this package does not compute; remove it to run "
                "the model within the context that it was trained on.",
                kind=kind,
            )
        self.rope_theta = given.get("rope_theta", self.rope_theta)

    def _check_architecture(self) -> None:
        """Refuse shapes that no Baichuan-1 network has."""
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise UsageError(
                    "{name} is {given}; allowed is 1 or more.",
                    name=name,
                    given=getattr(self, name),
                )
        if self.hidden_size % self.num_attention_heads:
            raise UsageError(
                "hidden_size {hidden_size} is not a multiple of num_attention_heads {heads}: each "
                "head needs the same number of columns.",
                hidden_size=self.hidden_size,
                heads=self.num_attention_heads,
            )
        for name in ("model_max_length", "max_position_embeddings"):
            length = getattr(self, name)
            if length is not None and length < 1:
                raise UsageError(
                    "{name} is {given}; allowed is 1 or more.", name=name, given=length
                )
        if not 1 < self.rope_theta < math.inf:
            raise UsageError(
                "rope_theta is {given}; allowed is a finite number above 1.", given=self.rope_theta
            )
        if self.position_embedding == "rope" and self.head_dim % 2:
            raise UsageError(
                "hidden_size {hidden_size} is not a multiple of num_attention_heads {heads} x 2: "
                "RoPE needs an even number of columns for each head.",
                hidden_size=self.hidden_size,
                heads=self.num_attention_heads,
            )
        if self.vocab_size >= _BAICHUAN2_VOCABULARY:
            raise UsageError(
                "A vocabulary of {size:,} is Baichuan 2's, whose output head is normalised; this "
                "package runs Baichuan-13B and Baichuan-7B (vocabulary 64,000).",
                size=self.vocab_size,
            )

    @property
    def head_dim(self) -> int:
        """Columns of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def context_length(self) -> int:
        """Longest sequence the model was trained on, in tokens."""
        length = self.model_max_length or self.max_position_embeddings
        assert length is not None, "__post_init__ sets one of the two"
        return length

    @classmethod
    def preset(cls, name: str, **changes: Any) -> "BaichuanConfig":
        """Give the configuration of a known model: `"13b"`, `"7b"` or `"demo"`.

        Raises:
            UsageError: the name is none of these.
        """
        if name not in _PRESETS:
            raise UsageError(
                "No preset is called {name!r}; there are {names}.",
                name=name,
                names=", ".join(_PRESETS),
            )
        return cls(**{**_PRESETS[name], **changes})


def check_token_ids(name: str, given: Any, size: int) -> None:
    """Check that a setting names tokens of a vocabulary: an id, a list of ids or of lists, or None.

    Raises:
        UsageError: something else is among them.
    """
    if not _are_token_ids(given, size):
        raise UsageError(
            "{name} is {given!r}; allowed are ids of the vocabulary, 0 to {last}.",
            name=name,
            given=given,
            last=size - 1,
        )


def _are_token_ids(given: Any, size: int) -> bool:
    if isinstance(given, (list, tuple)):
        return all(_are_token_ids(value, size) for value in given)
    return given is None or _is_token_id(given, size)


def _is_token_id(value: Any, size: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size
