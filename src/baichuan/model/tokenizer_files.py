"""Reading the settings files of a tokenizer: allow-lists, checked before transformers sees them.

transformers hands all of tokenizer_config.json to the tokenizer's constructor, where some names
reach sentencepiece (`sp_model_kwargs`) and others replace parts of the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AddedToken

from baichuan.errors import TokenizerError
from baichuan.json_fields import (
    BOOLEAN,
    NOTHING,
    Kind,
    either,
    list_of,
    number,
    object_of,
    object_with,
    one_of,
    optional,
    read_fields,
    text,
    whole,
)
from baichuan.json_files import read_object

CONFIG = "tokenizer_config.json"
#: transformers' names of what is read here.
FILES = (
    "tokenizer_config_file",
    "special_tokens_map_file",
    "added_tokens_file",
    "tokenizer_file",
)
#: Bytes of a tokenizer.model; the published ones have about a million.
_MOST_BYTES = 1 << 27

_CONTENT = text(1000, least=1)
_FLAGS = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), BOOLEAN)
_ADDED = object_with({"content": _CONTENT, "__type": one_of("AddedToken"), **_FLAGS}, "content")
_TOKEN = either(_CONTENT, _ADDED)
_ID = text(8, "[0-9]+")
_SPECIAL: dict[str, Kind] = {
    **{f"{name}_token": optional(_TOKEN) for name in ("bos", "eos", "unk", "sep", "pad", "cls")},
    "mask_token": optional(_TOKEN),
    "additional_special_tokens": optional(list_of(_TOKEN, 2000)),
    "extra_special_tokens": optional(
        either(list_of(_TOKEN, 2000), object_of(text(100, r"\w+_token"), _TOKEN, 100))
    ),
}
_TEMPLATE = text(1 << 20)
_FIELDS: dict[str, Kind] = {
    **_SPECIAL,
    "tokenizer_class": optional(text(200)),
    "add_bos_token": BOOLEAN,
    "add_eos_token": BOOLEAN,
    "clean_up_tokenization_spaces": BOOLEAN,
    "split_special_tokens": BOOLEAN,
    "padding_side": one_of("left", "right"),
    "truncation_side": one_of("left", "right"),
    "model_max_length": optional(number(1, 1e31)),  # transformers writes 1e30 for none
    "model_input_names": list_of(one_of("input_ids", "token_type_ids", "attention_mask"), 3),
    "added_tokens_decoder": object_of(_ID, _ADDED, 10_000),
    # Kept and saved again; never rendered.
    "chat_template": optional(
        either(
            either(_TEMPLATE, object_of(text(100), _TEMPLATE, 100)),
            list_of(
                object_with({"name": text(100), "template": _TEMPLATE}, "name", "template"), 99
            ),
        )
    ),
    "sp_model_kwargs": NOTHING,
}


_INDEX = whole(0, 1 << 24)
_BY_TEXT = {"added_tokens": object_of(_CONTENT, _INDEX, 10_000)}
_WITH_ID = {
    "added_tokens": list_of(
        object_with({"id": _INDEX, "content": _CONTENT, **_FLAGS}, "id", "content"), 10_000
    )
}


def read_settings(files: Mapping[str, str | None], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of the constructor that a tokenizer's files hold.

    Args:
        files: paths by transformers' names for them, such as `tokenizer_config_file`.
        given: the user's own arguments, which have precedence.

    Raises:
        TokenizerError: a file is not JSON, or has a value of the wrong kind.
    """
    settings: dict[str, Any] = _tokens(_read(files.get("tokenizer_config_file"), _FIELDS))
    for name in ("tokenizer_class", "sp_model_kwargs"):  # only looked at
        settings.pop(name, None)
    special = _tokens(_read(files.get("special_tokens_map_file"), _SPECIAL), special=True)
    if "added_tokens_decoder" not in settings:  # else it was saved later, and has them all
        settings |= {name: value for name, value in special.items() if not given.get(name)}
        if added := _added_tokens(files, settings):
            settings["added_tokens_decoder"] = added
    return settings


def _added_tokens(
    files: Mapping[str, str | None], settings: Mapping[str, Any]
) -> dict[int, AddedToken]:
    """Return the tokens, by id, of the files that held them before tokenizer_config.json did."""
    added = {}
    special = {str(settings.get(name)) for name in _SPECIAL if name.endswith("_token")}
    for name in ("additional_special_tokens", "extra_special_tokens"):
        tokens = settings.get(name) or ()
        special |= set(map(str, tokens.values() if isinstance(tokens, dict) else tokens))
    if path := files.get("added_tokens_file"):
        content = {"added_tokens": read_object(Path(path), TokenizerError)}
        for text_, i in read_fields(content, _BY_TEXT, path, TokenizerError)[
            "added_tokens"
        ].items():
            flag = text_ in special
            added[i] = AddedToken(
                text_, lstrip=False, rstrip=False, normalized=not flag, special=flag
            )
    if path := files.get("tokenizer_file"):
        whole_file: dict[str, Any] = {"added_tokens": None}
        whole_file |= read_object(Path(path), TokenizerError)
        for token in read_fields(whole_file, _WITH_ID, path, TokenizerError)["added_tokens"]:
            added[token["id"]] = _tokens({k: v for k, v in token.items() if k != "id"})
    return added


def _read(path: str | None, table: Mapping[str, Kind]) -> dict[str, Any]:
    if path is None:
        return {}
    return read_fields(read_object(Path(path), TokenizerError), table, path, TokenizerError)


def _tokens(value: Any, **flags: bool) -> Any:
    """Make tokens of the objects in settings that describe them."""
    if isinstance(value, list):
        return [_tokens(inner, **flags) for inner in value]
    if not isinstance(value, dict):
        return value
    if "content" not in value:
        return {key: _tokens(inner, **flags) for key, inner in value.items()}
    return AddedToken(**{key: inner for key, inner in value.items() if key != "__type"} | flags)


def check_vocabulary(vocab_file: object) -> None:
    """Check that a tokenizer.model is there, and is a file of a size that can be read.

    Raises:
        TokenizerError: it is not.
    """
    if not vocab_file:
        raise TokenizerError(
            "No tokenizer.model was found; a Baichuan tokenizer needs the checkpoint's "
            "tokenizer.model. Put it beside config.json or fetch the checkpoint again."
        )
    if not isinstance(vocab_file, (str, Path)) or not Path(vocab_file).is_file():
        raise TokenizerError(
            "There is no file {file}; a Baichuan tokenizer needs the checkpoint's tokenizer.model. "
            "Put it beside config.json or fetch the checkpoint again.",
            file=vocab_file,
        )
    try:
        Path(vocab_file).open("rb").close()  # transformers would not say why it cannot be read
    except OSError as error:
        raise TokenizerError.unreadable(vocab_file, error) from error
    size = Path(vocab_file).stat().st_size
    if size > _MOST_BYTES:
        raise TokenizerError(
            "{file} has {size:,} bytes; a tokenizer.model of at most {most:,} is read, and the "
            "published one has about a million. Fetch it again.",
            file=vocab_file,
            size=size,
            most=_MOST_BYTES,
        )
