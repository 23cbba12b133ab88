"""The models that benchmarks/compare.py needs, in one directory: made where they are not there yet.

NAME/             random weights in bfloat16
NAME-int4/, NAME-int8/        the same by `baichuan quantize`
NAME-int3/        random codes of 3 bits, and 4 in every down projection: 3.6 bits on average
NAME-q4_0.gguf, NAME-q8_0.gguf        the same for llama.cpp
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from random_checkpoint import write_random_checkpoint
from sentencepiece import sentencepiece_model_pb2 as proto
from tqdm import tqdm

from baichuan.checkpoint.gguf.to_gguf import gguf_from_checkpoint
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.checkpoint.rewrite import Progress
from baichuan.model.configuration import BaichuanConfig
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme

#: 40 layers, for llama.cpp's sake, and so thin that everything runs in seconds.
_THIN = {
    "vocab_size": 2048,
    "hidden_size": 160,
    "intermediate_size": 384,
    "num_attention_heads": 5,
    "initializer_range": 0.1,
}


@dataclass(frozen=True)
class Models:
    """Where the models of one size are.

    Attributes:
        directory: of all of them.
        thin: the small network with the 13B's layers instead of the 13B.
        layers: fewer layers, each at full width, and a made-up vocabulary: for servers.
    """

    directory: Path
    thin: bool
    layers: int | None = None

    @property
    def config(self) -> BaichuanConfig:
        """The network's shape."""
        fewer = {} if self.layers is None else {"num_hidden_layers": self.layers}
        return BaichuanConfig.preset("13b", **(_THIN if self.thin else {}), **fewer)

    @property
    def _name(self) -> str:
        name = "thin" if self.thin else "13b"
        return name if self.layers is None else f"{name}-{self.layers}-layers"

    def plain(self) -> Path:
        """Give the directory of the bfloat16 checkpoint."""
        directory = self.directory / self._name
        write_random_checkpoint(directory, self.config)
        if self.layers is not None:
            _write_vocabulary(directory / "tokenizer.model", self.config.vocab_size)
        return directory

    def quantized(self, bits: int) -> Path:
        """Give the directory of the checkpoint in int4 or int8, or of the mix for 3 bits."""
        directory = self.directory / f"{self._name}-int{bits}"
        if bits == 3:
            write_random_checkpoint(directory, self.config, plan=self._mix())
        elif not directory.exists():
            source = self.plain()
            with _bar(directory) as progress:
                quantize_checkpoint(source, directory, Plan(Scheme.of_bits(bits)), progress)
        return directory

    def _mix(self) -> Plan:
        layers = range(self.config.num_hidden_layers)
        down = {f"model.layers.{layer}.mlp.down_proj": Scheme(4, 64) for layer in layers}
        return Plan(Scheme(3, 64), {"lm_head": Scheme(8, None), **down})

    def gguf(self, kind: str) -> Path:
        """Give the GGUF file of a type: q4_0, q8_0 or f32."""
        file = self.directory / f"{self._name}-{kind}.gguf"
        if not file.exists():
            source, tokenizer = self.plain(), self.layers is not None
            with _bar(file) as progress:
                gguf_from_checkpoint(source, file, kind, progress, tokenizer=tokenizer)
        return file


@contextmanager
def _bar(target: Path) -> Iterator[Progress]:
    """Show how far the making of a file or directory is."""
    with tqdm(unit="B", unit_scale=True, desc=target.name) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _write_vocabulary(file: Path, size: int) -> None:
    """Write a made-up sentencepiece model of the true size."""
    model = proto.ModelProto()
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    for number, (text, kind) in enumerate(_pieces(size)):
        model.pieces.add(piece=text, score=-float(number), type=kind)
    file.write_bytes(model.SerializeToString())


def _pieces(size: int) -> Iterator[tuple[str, int]]:
    """Give text and kind of each piece: the special ones, 256 bytes, and words with a number."""
    kinds = proto.ModelProto.SentencePiece
    yield from (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL))
    yield from ((f"<0x{byte:02X}>", kinds.BYTE) for byte in range(256))
    yield from ((f"\u2581w{number}", kinds.NORMAL) for number in range(259, size))
