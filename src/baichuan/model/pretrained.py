"""Loading a network with every tensor accounted for, through transformers' own `from_pretrained`.

Knows directories, hub names and which tensors a network expects; the files themselves are
weights.py's. transformers would fill a missing tensor with random numbers and say so in a log; here
that is an error that names the tensor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedModel

from baichuan.errors import CheckpointError, UsageError
from baichuan.files import weights_by_umask
from baichuan.hub import HUB_ARGUMENTS, local_directory
from baichuan.json_fields import read_fields
from baichuan.json_files import read_object
from baichuan.model.configuration import BaichuanConfig, check_token_ids
from baichuan.model.generation_fields import GENERATION_FIELDS, TOKEN_IDS
from baichuan.model.published_int8 import plan_of, read_published_int8, scale_names
from baichuan.model.quantization import BaichuanQuantizationConfig, swap_modules
from baichuan.weights import WeightFiles

#: The 7B's code kept its table of rotary frequencies among the weights; it is computed here.
_INV_FREQ = "rotary_emb.inv_freq"
_NAMED = 4
#: A folder that there is not, in which transformers looks for an adapter.
_NO_ADAPTER = "no adapter"
_GENERATION = "generation_config.json"


class BaichuanPreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """Base of all Baichuan networks: what transformers asks for, and a strict `from_pretrained`."""

    config_class = BaichuanConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BaichuanDecoderLayer"]  # noqa: RUF012  (transformers' own shape)
    _skip_keys_device_placement = ["past_key_values", "cache"]  # noqa: RUF012
    _supports_sdpa = True
    # The head is unexpected to `AutoModel` alone, which is asked for the network without it.
    _keys_to_ignore_on_load_unexpected = [rf"{_INV_FREQ}$", r"^lm_head\."]  # noqa: RUF012

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load as transformers does, but with nothing missing, nothing extra and nothing executed.

        Takes transformers' arguments. Files ending in `.py` are neither fetched nor run.

        Raises:
            CheckpointError: a tensor is missing, extra or of another shape; a file is missing,
                truncated, damaged, or a pickle that would run code.
            DownloadError: a hub name that is not on this machine and could not be fetched.
        """
        if pretrained_model_name_or_path is None or kwargs.get("state_dict") is not None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        # A directory found already needs none of them.
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        given = pretrained_model_name_or_path
        directory = local_directory(given, **hub)
        config = kwargs.get("config")
        if not isinstance(config, BaichuanConfig):
            config = BaichuanConfig.from_pretrained(config) if config else read_config(directory)
        weights = WeightFiles(directory, kwargs.get("use_safetensors"), kwargs.get("variant"))
        if kwargs.get("quantization_config") is not None:
            refuse_quantized(config, weights)
        if getattr(config, "quantization_config", None) is None and scale_names(weights.shapes):
            return cls._from_published_int8(weights, **{**kwargs, "config": config})
        cls._check_files(config, weights)
        if kwargs.get("generation_config") is None and cls.can_generate():
            kwargs["generation_config"] = read_generation_config(config, directory)
        # The directory's own adapter_config.json, without weights, says nothing about this network.
        adapters = kwargs.get("adapter_kwargs") or {}
        if str(adapters.get("_adapter_model_path", directory)) in (str(directory), str(given)):
            kwargs["adapter_kwargs"] = {"subfolder": _NO_ADAPTER}
        with_info = kwargs.pop("output_loading_info", False)
        # It would let transformers run a `custom_generate/generate.py` of the directory.
        kwargs.pop("trust_remote_code", None)
        model, info = super().from_pretrained(
            directory, *args, output_loading_info=True, weights_only=True, **kwargs
        )
        _check_report(directory, info)
        return (model, info) if with_info else model

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Save as transformers does, in files that are as readable as the umask says."""
        with weights_by_umask(Path(save_directory)):
            super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def _from_published_int8(
        cls, weights: WeightFiles, config: BaichuanConfig, **kwargs: Any
    ) -> Any:
        """Load the checkpoint that the original quantized, in this package's int8."""
        plan = plan_of(weights.shapes)
        config.quantization_config = BaichuanQuantizationConfig.of(plan).to_dict()
        state = read_published_int8(weights, config)
        with torch.device("meta"):
            network = cls(config)
        swap_modules(network, config.quantization_config)
        check_tensors(weights.directory, {n: tuple(t.shape) for n, t in state.items()}, network)
        for name in ("use_safetensors", "variant", "trust_remote_code"):
            kwargs.pop(name, None)
        model = super().from_pretrained(None, config=config, state_dict=state, **kwargs)
        model.generation_config = read_generation_config(config, weights.directory)
        return model

    @classmethod
    def _check_files(cls, config: BaichuanConfig, weights: WeightFiles) -> None:
        """Check, before any weight is read, all that transformers would pass over in silence."""
        directory, held = weights.directory, weights.shapes
        with torch.device("meta"):
            network = cls(config)
        settings = getattr(config, "quantization_config", None)
        if settings is not None:
            swap_modules(network, settings)
        prefix = f"{cls.base_model_prefix}."
        if not hasattr(network, cls.base_model_prefix) and any(n.startswith(prefix) for n in held):
            # AutoModel: the network without its head, from a checkpoint of the whole.
            held = {n.removeprefix(prefix): s for n, s in held.items() if n.startswith(prefix)}
        check_tensors(directory, held, network)
        _check_codes(weights, network)


def read_generation_config(config: BaichuanConfig, directory: Path) -> GenerationConfig:
    """Read how answers are sampled; transformers would pass over a file that it cannot read.

    Where there is none, old configurations hold it, as for transformers. Padding that is no token
    is ignored.

    Raises:
        CheckpointError: the file is damaged, or names ids that the vocabulary does not have.
    """
    path = directory / _GENERATION
    own = path.is_file()
    if not own:
        path = directory / "config.json"
    content = read_object(path) if path.is_file() else config.to_dict()
    content = read_fields(content, GENERATION_FIELDS, path, CheckpointError)
    _check_token_ids(path, content, config.vocab_size)
    read = GenerationConfig.from_dict if own else GenerationConfig.from_model_config
    try:
        settings = read(content)
    except (ValueError, TypeError) as error:
        raise CheckpointError("{path} cannot be used: {why}", path=path, why=error) from error
    pad = settings.pad_token_id
    if pad is not None and not 0 <= pad < config.vocab_size:
        settings.pad_token_id = config.pad_token_id
    return settings


def read_config(directory: Path) -> BaichuanConfig:
    """Read a checkpoint's config.json.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another model.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(
            "{directory} has no config.json; give the directory of a checkpoint "
            "(config.json, tokenizer.model and the weights).",
            directory=directory,
        )
    return cast(BaichuanConfig, BaichuanConfig.from_dict(read_object(path)))


def _check_token_ids(path: Path, content: Mapping[str, Any], size: int) -> None:
    """Check the token ids in a generation_config.json against the size of the vocabulary."""
    try:
        for name in TOKEN_IDS:
            check_token_ids(name, content.get(name), size)
    except UsageError as error:
        raise CheckpointError(
            "{path} cannot be used: {why} Correct it, or fetch the file that belongs to the "
            "weights.",
            path=path,
            why=error,
        ) from error


def refuse_quantized(config: BaichuanConfig, weights: WeightFiles) -> None:
    """Raise CheckpointError if a checkpoint that shall be quantized is so already."""
    if getattr(config, "quantization_config", None) is not None or scale_names(weights.shapes):
        raise CheckpointError(
            "{directory} is quantized already; quantizing it twice would lose more. "
            "Give the directory of the original weights.",
            directory=weights.directory,
        )


def check_tensors(directory: Path, held: Mapping[str, tuple[int, ...]], network: Any) -> None:
    """Check that a checkpoint holds exactly the tensors that a network expects.

    Args:
        directory: for the message.
        held: name to shape of the checkpoint's tensors.
        network: a network as it would be loaded; may be on the meta device.

    Raises:
        CheckpointError: names the first few that are missing, extra, or of another shape; or the
            files are a 7B's and the network is not.
    """
    if network.config.position_embedding == "alibi" and any(n.endswith(_INV_FREQ) for n in held):
        raise CheckpointError(
            "The weights in {directory} hold rotary frequencies ({name}), so they are a 7B with "
            "RoPE, but its config.json describes a network with ALiBi. If it is a 7B, write "
            '"position_embedding": "rope" into config.json.',
            directory=directory,
            name=_INV_FREQ,
        )
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name in (network._tied_weights_keys or ()) if network.config.tie_word_embeddings else ():
        if name not in held:  # it is the embedding
            expected.pop(name, None)
    held = {name: shape for name, shape in held.items() if not name.endswith(_INV_FREQ)}
    missing = sorted(expected.keys() - held.keys())
    extra = sorted(held.keys() - expected.keys())
    wrong = [
        f"{name} {list(held[name])} ≠ {list(shape)}"
        for name, shape in expected.items()
        if name in held and held[name] != shape
    ]
    _raise_if_any(directory, missing, extra, wrong)


def _check_codes(weights: WeightFiles, network: Any) -> None:
    """Check the types of quantized codes, which torch would convert as if they were numbers.

    A floating-point weight may be of any floating-point type.

    Raises:
        CheckpointError: names a tensor of another type.
    """
    expected = network.state_dict()
    for name, tensor in weights.headers.items():
        wanted = expected[name].dtype if name in expected else tensor.dtype
        floating = tensor.is_floating_point() and wanted.is_floating_point
        if tensor.dtype != wanted and not floating:
            raise CheckpointError(
                "{directory} holds {name} as {given}; needed is {wanted}. Fetch the files again.",
                directory=weights.directory,
                name=name,
                given=tensor.dtype,
                wanted=wanted,
            )


def _check_report(directory: Path, info: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers reports any tensor not loaded as it should."""
    wrong = [str(key) for key in info.get("mismatched_keys", ())]
    wrong += [str(message) for message in info.get("error_msgs", ())]
    _raise_if_any(
        directory, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), sorted(wrong)
    )


def _raise_if_any(directory: Path, missing: list[str], extra: list[str], wrong: list[str]) -> None:
    if missing or extra or wrong:
        raise CheckpointError(
            "The tensors in {directory} are not those of the network that its config.json "
            "describes: {missing} missing; {extra} extra; {wrong} of a wrong shape. Nothing was "
            "loaded; fetch the files again, or the config.json that belongs to them.",
            directory=directory,
            missing=counted(missing),
            extra=counted(extra),
            wrong=counted(wrong),
        )


def counted(names: list[str]) -> str:
    """Write how many there are, and the first few: `5 (a, b, c, d, ...)`."""
    if not names:
        return "0"
    return f"{len(names)} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
