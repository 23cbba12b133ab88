"""What `baichuan web` and `streamlit run web_demo.py -- ...` may be told about the model."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Options:
    """Which model answers.

    Attributes:
        model: directory or hub name of a checkpoint; None is the demo model.
        adapter: directory of a LoRA adapter, or None.
        bits, huge_pages, dtype, device: as `baichuan.load` takes them.
        speculate: as `Engine` takes it.
        draft: checkpoint of a draft model, or None.
        server: address of an OpenAI-compatible server that answers instead, or None.
    """

    model: str | None = None
    adapter: str | None = None
    bits: int | None = None
    huge_pages: bool = False
    dtype: str | None = None
    device: str | None = None
    speculate: bool | None = None
    draft: str | None = None
    server: str | None = None

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Options:
        """Read what stands behind `--` on Streamlit's command line."""
        parser = argparse.ArgumentParser(
            prog="streamlit run web_demo.py --", description=cls.__doc__
        )
        parser.add_argument("model", nargs="?")
        parser.add_argument("--bits", type=int)
        parser.add_argument("--huge-pages", action="store_true")
        parser.add_argument("--speculate", action=argparse.BooleanOptionalAction)
        for name in ("--adapter", "--dtype", "--device", "--draft", "--server"):
            parser.add_argument(name)
        return cls(**vars(parser.parse_args(arguments)))

    def arguments(self) -> Iterator[str]:
        """Give the arguments that `parse` reads as this."""
        for name, value in asdict(self).items():
            if value is None or (name, value) == ("huge_pages", False):
                continue
            if name != "model":
                yield ("--no-" if value is False else "--") + name.replace("_", "-")
            if not isinstance(value, bool):
                yield str(value)
