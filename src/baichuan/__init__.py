"""Baichuan-13B and Baichuan-7B on today's software.

`import baichuan` is cheap: torch and transformers are loaded when something needs them. As soon as
transformers is in the process, its `AutoConfig`, `AutoModelForCausalLM` and `AutoTokenizer` know
Baichuan's classes, so a published checkpoint loads with this package's code and none of its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import wrapt

from baichuan.version import __version__

if TYPE_CHECKING:
    from baichuan.chat import Conversation
    from baichuan.checkpoint.load import load
    from baichuan.engine.loop import Engine
    from baichuan.engine.sampling import SamplingParams
    from baichuan.engine.steps import Step
    from baichuan.errors import BaichuanError
    from baichuan.model.configuration import BaichuanConfig
    from baichuan.model.network import BaichuanForCausalLM
    from baichuan.model.tokenizer import BaichuanTokenizer

_HOMES = {
    "BaichuanConfig": "baichuan.model.configuration",
    "BaichuanError": "baichuan.errors",
    "BaichuanForCausalLM": "baichuan.model.network",
    "BaichuanTokenizer": "baichuan.model.tokenizer",
    "Conversation": "baichuan.chat",
    "Engine": "baichuan.engine.loop",
    "SamplingParams": "baichuan.engine.sampling",
    "Step": "baichuan.engine.steps",
    "load": "baichuan.checkpoint.load",
}

__all__ = [
    "BaichuanConfig",
    "BaichuanError",
    "BaichuanForCausalLM",
    "BaichuanTokenizer",
    "Conversation",
    "Engine",
    "SamplingParams",
    "Step",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module at first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'baichuan' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Name what is imported at first use, too."""
    return sorted({*globals(), *__all__})


@wrapt.when_imported("transformers")
def _register(_: Any) -> None:
    """Make transformers' Auto classes know Baichuan, now or when transformers is imported."""
    import_module("baichuan.model.registration").register()
