"""GGUF, llama.cpp's one-file format, both ways. Needs the extra `gguf`."""

from importlib.util import find_spec

from baichuan.errors import UsageError

if find_spec("gguf") is None or find_spec("google.protobuf") is None:
    raise UsageError(
        "GGUF files need the packages gguf and protobuf, which are not installed: "
        "pip install 'baichuan-lm[gguf]'"
    )
