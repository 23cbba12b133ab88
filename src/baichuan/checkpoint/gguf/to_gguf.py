"""From a checkpoint to a GGUF file, tensor by tensor.

Codes of ours become blocks as they are: int4 is Q4_0 whose blocks share a scale, int8 is Q8_0.
Norms are float32, as llama.cpp wants them; embedding and head of a 4-bit file are Q8_0. The file
grows in TARGET.partial and takes its name when whole.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGML_QUANT_VERSION, GGUFValueType, LlamaFileType
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import quant_shape_to_byte_shape
from torch import Tensor, nn

from baichuan.checkpoint.gguf.blocks import BLOCK, SUPER_BLOCK, encode, encode_codes
from baichuan.checkpoint.gguf.names import architecture, tensor_names, to_pairs, to_settings
from baichuan.checkpoint.gguf.vocabulary import write_vocabulary
from baichuan.checkpoint.rewrite import Progress, check_finite
from baichuan.checkpoint.unfinished import check_room, check_target, discard, unfinished
from baichuan.errors import BaichuanError, CheckpointError, UsageError
from baichuan.kernels.layout import PackedMatrix, dequantize, unpack
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.network import BaichuanForCausalLM
from baichuan.model.pretrained import check_tensors, read_config, refuse_quantized
from baichuan.model.quantization import METHOD, BaichuanQuantizationConfig, swap_modules
from baichuan.quant.plan import linears
from baichuan.quant.scheme import Scheme
from baichuan.weights import WeightFiles

#: What can be asked for, and llama.cpp's number of such a file.
TYPES = {
    "f32": (Kind.F32, LlamaFileType.ALL_F32),
    "f16": (Kind.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Kind.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q4_k": (Kind.Q4_K, LlamaFileType.MOSTLY_Q4_K_S),
}
_PLAIN = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
_OF_BITS = {8: "q8_0", 4: "q4_0"}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def gguf_from_checkpoint(
    source: Path,
    target: Path,
    kind: str | None = None,
    progress: Progress = lambda done, total: None,
    *,
    tokenizer: bool = True,
) -> None:
    """Write a checkpoint as a GGUF file, which llama.cpp runs.

    Args:
        source: directory of a checkpoint, float or in this package's int8 or int4.
        target: file to write; it must not exist.
        kind: of the matrices, one of `TYPES`; by default what the checkpoint has. A quantized one
            can only be what it is: int8 Q8_0, int4 Q4_0.
        progress: told (bytes of the source finished, all bytes) when all is checked, and after each
            tensor.
        tokenizer: whether the checkpoint's is put into the file; without, prompts are token ids.

    Raises:
        CheckpointError: the source is damaged or quantized otherwise, the disk is too small.
        TokenizerError: tokenizer.model is missing or damaged.
        UsageError: the target exists, another run is writing it, or there is no such type.
    """
    check_target(target)
    config, weights = read_config(source), WeightFiles(source)
    conversion = _Conversion(weights, config, kind)
    check_room(target, sum(matrix.stored for matrix in conversion.matrices.values()))
    with unfinished(target) as partial:
        file = partial / target.name
        try:
            with closing(_begun(file, conversion, config)) as writer:
                writer.add_name(source.absolute().name)
                if tokenizer:
                    write_vocabulary(writer, source, config)
                else:
                    writer.add_tokenizer_model("none")
                _write_tensors(writer, weights, conversion, progress)
            with file.open("rb") as written:
                os.fsync(written.fileno())
            file.rename(target)
        except BaichuanError:
            raise
        except OSError as error:
            raise CheckpointError(
                "{file} cannot be written ({reason}). Free some room, or give another target.",
                file=target,
                reason=error.strerror or error,
            ) from error
        finally:
            with suppress(OSError):  # the next run does it
                discard(partial)


@dataclass(frozen=True)
class _Matrix:
    """A tensor of the file: its type, and its shape [rows, columns] or [columns]."""

    kind: Kind
    shape: tuple[int, ...]

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in bytes."""
        return tuple(quant_shape_to_byte_shape(self.shape, self.kind))

    @property
    def stored(self) -> int:
        """Bytes in the file."""
        return math.prod(self.stored_shape)


class _Conversion:
    """From a checkpoint's tensors to the file's.

    Attributes:
        type: one of `TYPES`.
        matrices: the file's tensors by name, in its order.
    """

    def __init__(self, weights: WeightFiles, config: BaichuanConfig, kind: str | None) -> None:
        with torch.device("meta"):
            network: nn.Module = BaichuanForCausalLM(config)
            stored: nn.Module = BaichuanForCausalLM(config)
        self._schemes = _schemes(weights, config, network)
        if self._schemes:
            swap_modules(stored, config.quantization_config)
        check_tensors(weights.directory, weights.shapes, stored)
        self._heads = config.num_attention_heads
        self._names = tensor_names(config.num_hidden_layers)
        whole = [name for name, _ in _whole(weights.headers.items())]
        if _HEAD not in whole:  # it is the embedding, and llama.cpp wants both
            self._names[_EMBEDDING] += self._names.pop(_HEAD)
        self._plain = _PLAIN.get(weights.headers[_EMBEDDING].dtype, "f32")
        self.type = self._chosen(weights.directory, kind)
        shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        self.matrices = {
            theirs: matrix for name in whole for theirs, matrix in self._targets(name, shapes[name])
        }

    def _chosen(self, directory: Path, kind: str | None) -> str:
        own = self._plain
        if self._schemes:
            bits = min(scheme.bits for scheme in self._schemes.values())
            own = _OF_BITS[bits]
            if kind not in (None, own):
                raise UsageError(
                    "{directory} is int{bits}: in GGUF it can only be {own}, which keeps its codes "
                    "as they are. Leave the type out, or give the original weights.",
                    directory=directory,
                    bits=bits,
                    own=own,
                )
        if kind is not None and kind not in TYPES:
            raise UsageError(
                "type is {given!r}; allowed is one of {allowed}.",
                given=kind,
                allowed=", ".join(TYPES),
            )
        return kind or own

    def _targets(self, name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, _Matrix]]:
        """Give what becomes of one tensor."""
        several = self._names[name]
        rows = shape[0] if name == _EMBEDDING else shape[0] // len(several)
        for theirs in several:
            kind = Kind.F32 if len(shape) == 1 else self._kind(name, shape[1])
            yield theirs, _Matrix(kind, (rows, *shape[1:]))

    def _kind(self, name: str, columns: int) -> Kind:
        """Choose the type of a matrix, of which a row must be whole blocks."""
        scheme = self._schemes.get(name)
        if scheme is not None:
            return Kind.F32 if columns % BLOCK else TYPES[_OF_BITS[scheme.bits]][0]
        kind = TYPES[self._plain if self._schemes else self.type][0]
        if kind in (Kind.Q4_0, Kind.Q4_K) and name in (_EMBEDDING, _HEAD):
            kind = Kind.Q8_0
        if kind == Kind.Q4_K and columns % SUPER_BLOCK:
            kind = Kind.Q5_0  # as llama.cpp does
        return Kind.F16 if columns % GGML_QUANT_SIZES[kind][0] else kind

    def encoded(self, name: str, tensors: Sequence[Tensor]) -> Iterator[Tensor]:
        """Give the bytes of what becomes of one tensor.

        Args:
            name: of the weight.
            tensors: the weight, or its codes and scales as they are saved.
        """
        content = tensors if len(tensors) == 1 else self._codes(name, *tensors)
        several = self._names[name]
        for i, theirs in enumerate(several):
            whole = name == _EMBEDDING
            part = [t if whole else t.chunk(len(several))[i] for t in content]
            if theirs.endswith(("attn_q.weight", "attn_k.weight")):
                part = [to_pairs(rows, self._heads) for rows in part]
            kind = self.matrices[theirs].kind
            try:
                yield (
                    encode(part[0], kind)
                    if len(part) == 1
                    else encode_codes(part[0], part[1], kind)
                )
            except UsageError as error:
                raise CheckpointError("{name}: {reason}", name=name, reason=error) from error

    def _codes(self, name: str, codes: Tensor, scales: Tensor) -> list[Tensor]:
        """Give codes [rows, columns] and scales [rows, blocks]; numbers if blocks do not fit."""
        scheme = self._schemes[name]
        several = [self.matrices[theirs].shape for theirs in self._names[name]]
        rows, columns = sum(shape[0] for shape in several), several[0][1]
        size = scheme.columns_per_group
        matrix = PackedMatrix(codes, scales, scheme.bits, size, rows, columns)
        if columns % BLOCK:
            return [dequantize(matrix)]
        plain, found = unpack(matrix)
        blocks = columns // BLOCK
        per_scale = blocks if scheme.per_row else size // BLOCK
        return [plain, found.repeat_interleave(per_scale, 1)[:, :blocks]]


def _schemes(weights: WeightFiles, config: BaichuanConfig, network: nn.Module) -> dict[str, Scheme]:
    """Give the scheme of each weight that is quantized, if GGUF has its like."""
    settings = getattr(config, "quantization_config", None)
    if settings is None or settings.get("quant_method") != METHOD:
        refuse_quantized(config, weights)
        return {}
    plan = BaichuanQuantizationConfig(**settings).plan
    schemes = {f"{name}.weight": scheme for name, scheme in linears(network, plan).items()}
    for scheme in schemes.values():
        if scheme.layout != "blocks" or scheme.bits not in _OF_BITS:
            raise CheckpointError(
                "{directory} is quantized in a way that GGUF has not ({layout}, {bits} bits). Give "
                "the directory of the original weights.",
                directory=weights.directory,
                layout=scheme.layout,
                bits=scheme.bits,
            )
    return schemes


def _whole(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, list[Tensor]]]:
    """Give each weight by its name, once all of it is there: itself, or codes and scales."""
    held: dict[str, Tensor] = {}
    for name, tensor in named:
        module, _, part = name.rpartition(".")
        if part == "weight":
            yield name, [tensor]
        elif part in ("codes", "scales"):
            other = held.pop(module, None)
            if other is None:
                held[module] = tensor
            else:
                yield f"{module}.weight", [tensor, other] if part == "codes" else [other, tensor]


def _begun(file: Path, conversion: _Conversion, config: BaichuanConfig) -> GGUFWriter:
    """Give a writer that knows the network's settings and which tensors will come."""
    writer = GGUFWriter(file, architecture(config))
    writer.add_file_type(TYPES[conversion.type][1])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for name, value in to_settings(config).items():
        whole = isinstance(value, int)
        kind = GGUFValueType.UINT32 if whole else GGUFValueType.get_type(value)
        writer.add_key_value(name, value, kind)
    for name, matrix in conversion.matrices.items():
        shape = matrix.stored_shape  # in bytes, as the writer takes it with uint8
        writer.add_tensor_info(name, shape, np.dtype(np.uint8), matrix.stored, matrix.kind)
    return writer


def _write_tensors(
    writer: GGUFWriter, weights: WeightFiles, conversion: _Conversion, progress: Progress
) -> None:
    """Write the header, and then each tensor as soon as it was read."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, done = sum(file.path.stat().st_size for file in weights.files), 0
    progress(done, total)
    for name, tensors in _whole(weights.tensors()):
        check_finite(weights.directory, dict.fromkeys([name], tensors[-1]))
        for content in conversion.encoded(name, tensors):
            writer.write_tensor_data(content.numpy())
        done += sum(tensor.nbytes for tensor in tensors)
        progress(done, total)
