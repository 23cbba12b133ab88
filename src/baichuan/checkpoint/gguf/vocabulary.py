"""The tokenizer in GGUF: sentencepiece's pieces, both ways, and the chat form.

llama.cpp has no normalisation, and puts a space behind each user-defined symbol, digits too. So, as
its own converter does, those are written as ordinary pieces, which changes the ids of a few texts
and never their meaning; only the two role markers are control tokens, which no typed text can form.
Reading knows user-defined symbols by their place: sentencepiece puts them before its bytes. Tokens
that were added to the tokenizer beside sentencepiece's are user-defined or control tokens, too;
their place is behind the bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gguf import GGUFWriter
from sentencepiece import SentencePieceNormalizer, SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as sp
from transformers import AddedToken

from baichuan.checkpoint.gguf.metadata import Metadata
from baichuan.errors import CheckpointError
from baichuan.json_files import parse_json, read_object
from baichuan.language import translate
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.tokenizer import BaichuanTokenizer

_PIECE = sp.ModelProto.SentencePiece
_KINDS = _PIECE.Type.values()
_FILLING = "[PAD"
#: Of an added token, as llama.cpp's converter writes it: sentencepiece's merges never prefer it.
_ADDED_SCORE = -1000.0
_NAMED = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
_GENERATION = "baichuan.generation_config"
_ROLES = {"user_token_id": 195, "assistant_token_id": 196}
#: Our name to llama.cpp's, and the least and the largest value.
_SAMPLING = {
    "temperature": ("temp", 0.0, 1e6),
    "top_k": ("top_k", 0, 2**31 - 1),
    "top_p": ("top_p", 0.0, 1.0),
    "repetition_penalty": ("penalty_repeat", 0.0, 1e6),
}
#: The same ids as `model/prompt.py`: each content by itself behind its speaker's marker.
_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- 'USER' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- 'ASSISTANT' -}}{%- endif -%}"
    "{{- message['content'] -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}"
    "{{- 'ASSISTANT' -}}{%- endif -%}"
)


def write_vocabulary(writer: GGUFWriter, directory: Path, config: BaichuanConfig) -> None:
    """Add a checkpoint's tokenizer, chat form and sampling settings to a GGUF file.

    Raises:
        TokenizerError: tokenizer.model is missing or damaged.
        CheckpointError: it has more tokens than the network.
    """
    tokenizer = BaichuanTokenizer.from_pretrained(directory)
    model = sp.ModelProto.FromString(Path(tokenizer.vocab_file).read_bytes())
    if len(model.pieces) > config.vocab_size:
        raise CheckpointError(
            "{directory}: tokenizer.model has {pieces:,} pieces, the network {size:,}. They are of "
            "two checkpoints; fetch the directory afresh.",
            directory=directory,
            pieces=len(model.pieces),
            size=config.vocab_size,
        )
    padding = tokenizer.pad_token_id
    tokenizer.pad_within(config.vocab_size)
    added = dict(tokenizer.added_tokens_decoder)
    if padding != tokenizer.pad_token_id:
        del added[padding]
    tokens = _tokens(model.pieces, added, config.vocab_size)
    texts, kinds = [token.text for token in tokens], [token.kind for token in tokens]
    generation = _generation(directory)
    roles = {name: generation.get(name, default) for name, default in _ROLES.items()}
    named = [i for i in roles.values() if isinstance(i, int) and 0 <= i < len(texts)]
    for i in named:
        kinds[i] = _PIECE.CONTROL
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores([token.score for token in tokens])
    writer.add_token_types(kinds)
    normalizer = model.normalizer_spec
    writer.add_add_space_prefix(normalizer.add_dummy_prefix)
    writer.add_remove_extra_whitespaces(normalizer.remove_extra_whitespaces)
    writer.add_precompiled_charsmap(normalizer.precompiled_charsmap)
    writer.add_add_bos_token(tokenizer.add_bos_token)
    writer.add_add_eos_token(tokenizer.add_eos_token)
    _write_special(writer, tokenizer, config)
    if len(named) == len(roles):
        user, assistant = (texts[i] for i in named)
        writer.add_chat_template(_TEMPLATE.replace("ASSISTANT", assistant).replace("USER", user))
    _write_generation(writer, generation)


class _Token(NamedTuple):
    """A token of the file; its kind is one of sentencepiece's types."""

    text: str
    score: float
    kind: int


def _tokens(pieces: Sequence[Any], added: Mapping[int, AddedToken], size: int) -> list[_Token]:
    """Return a token for each of the network's `size` rows: pieces, added tokens, filling.

    Raises:
        CheckpointError: an added token has no row.
    """
    tokens = [_Token(f"{_FILLING}{i}]", 0.0, _PIECE.UNUSED) for i in range(size)]
    for i, piece in enumerate(pieces):
        kind = _PIECE.NORMAL if piece.type == _PIECE.USER_DEFINED else piece.type
        tokens[i] = _Token(piece.piece, piece.score, kind)
    front = _first_byte([token.kind for token in tokens])
    for i, token in sorted(added.items()):
        if i >= size:
            raise CheckpointError(
                "The tokenizer's added token {text!r} has the id {id:,}, but the network has only "
                "{size:,} rows: call model.resize_token_embeddings({needed}) and save both, or "
                "remove the token.",
                text=token.content,
                id=i,
                size=size,
                needed=max(added) + 1,
            )
        kind = _PIECE.CONTROL if token.special else _PIECE.USER_DEFINED
        if i >= len(pieces):
            tokens[i] = _Token(token.content, _ADDED_SCORE, kind)
        elif tokens[i].kind == _PIECE.NORMAL and (token.special or i >= front):
            tokens[i] = tokens[i]._replace(kind=kind)
    return tokens


def _first_byte(kinds: Sequence[int]) -> int:
    return kinds.index(_PIECE.BYTE) if _PIECE.BYTE in kinds else len(kinds)


def _write_special(
    writer: GGUFWriter, tokenizer: BaichuanTokenizer, config: BaichuanConfig
) -> None:
    ends = config.eos_token_id
    eos = next(iter(ends), None) if isinstance(ends, list) else ends
    for add, value in (
        (writer.add_bos_token_id, config.bos_token_id),
        (writer.add_eos_token_id, eos),
        (writer.add_pad_token_id, config.pad_token_id),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
    ):
        if value is not None:
            add(value)


def _generation(directory: Path) -> dict[str, Any]:
    """Read generation_config.json; nothing where there is none."""
    path = directory / "generation_config.json"
    return read_object(path) if path.is_file() else {}


def _write_generation(writer: GGUFWriter, generation: dict[str, Any]) -> None:
    """Add sampling settings as llama.cpp reads them, and all settings as we do."""
    for ours, (theirs, least, most) in _SAMPLING.items():
        value = generation.get(ours)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if least <= value <= most:
            key = f"general.sampling.{theirs}"
            if ours == "top_k":
                writer.add_int32(key, int(value))
            else:
                writer.add_float32(key, value)
    writer.add_string(_GENERATION, json.dumps(generation))


def save_vocabulary(metadata: Metadata, config: BaichuanConfig, directory: Path) -> None:
    """Write a GGUF file's tokenizer and sampling settings as files of a checkpoint.

    Args:
        metadata: of the file.
        config: of its network.
        directory: to write to.

    Raises:
        CheckpointError: the file holds no sentencepiece vocabulary, or metadata of another type or
            range.
    """
    generation = _saved_generation(metadata)
    tokens = _read_tokens(metadata, config.vocab_size)
    numbers, added = _parted(tokens, _roles(metadata, generation, config.vocab_size))
    file = directory / "tokenizer.model"
    file.write_bytes(_model(metadata, tokens, numbers))
    tokenizer = BaichuanTokenizer(
        str(file),
        **_special(metadata, tokens, added),
        added_tokens_decoder=added,
        extra_special_tokens=[token for token in added.values() if token.special],
        add_bos_token=metadata.boolean("tokenizer.ggml.add_bos_token", False),
        add_eos_token=metadata.boolean("tokenizer.ggml.add_eos_token", False),
        model_max_length=config.context_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(directory)
    ids = {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    content = json.dumps(generation or {**ids, **_sampling(metadata)}, indent=2)
    (directory / "generation_config.json").write_text(content, "utf-8")


def _saved_generation(metadata: Metadata) -> dict[str, Any]:
    """Return the generation_config.json in a file of ours, empty where there is none."""
    try:
        saved = parse_json(metadata.string(_GENERATION, "{}"))
    except ValueError as error:
        raise metadata.wrong(_GENERATION, translate("JSON ({reason})", reason=error)) from error
    if not isinstance(saved, dict):
        raise metadata.wrong(_GENERATION, translate("a JSON object"))
    return saved


def _sampling(metadata: Metadata) -> dict[str, float | int]:
    """Return the sampling settings that llama.cpp reads, where the file has them."""
    found: dict[str, float | int] = {}
    for ours, (theirs, least, most) in _SAMPLING.items():
        key = f"general.sampling.{theirs}"
        if key not in metadata:
            continue
        if ours == "top_k":
            found[ours] = metadata.integer(key, int(least), int(most))
        else:
            found[ours] = metadata.number(key, least, most)
    return found


def _special(
    metadata: Metadata, tokens: Sequence[_Token], added: Mapping[int, AddedToken]
) -> dict[str, str]:
    """Return the texts of the tokens that begin, end and pad, where the file names some."""
    found = {}
    for ours, theirs in _NAMED.items():
        i = metadata.integer(f"tokenizer.ggml.{theirs}_token_id", default=-1)
        if 0 <= i < len(tokens) and (
            i in added or tokens[i].kind in (_PIECE.CONTROL, _PIECE.UNKNOWN)
        ):
            found[f"{ours}_token"] = tokens[i].text
    return found


def _read_tokens(metadata: Metadata, size: int) -> list[_Token]:
    """Return the tokens of a file.

    Raises:
        CheckpointError: they are none of sentencepiece, or more than `size`.
    """
    kind = metadata.string("tokenizer.ggml.model", "")
    texts = metadata.strings("tokenizer.ggml.tokens")
    scores = metadata.numbers("tokenizer.ggml.scores")
    kinds = metadata.integers("tokenizer.ggml.token_type", min(_KINDS), max(_KINDS))
    counts = {len(texts), len(scores), len(kinds)}
    if kind != "llama" or len(counts) != 1 or not 0 < len(texts) <= size:
        raise CheckpointError(
            "{path} has no vocabulary that can serve: tokenizer.ggml.model is {kind!r} with "
            "{tokens:,} tokens, {scores:,} scores and {kinds:,} types; needed is 'llama' with at "
            "most {size:,} of each.",
            path=metadata.path,
            kind=kind,
            tokens=len(texts),
            scores=len(scores),
            kinds=len(kinds),
            size=size,
        )
    return [_Token(*fields) for fields in zip(texts, scores, kinds, strict=True)]


def _model(metadata: Metadata, tokens: Sequence[_Token], numbers: Sequence[int]) -> bytes:
    """Build tokenizer.model; its pieces are the first tokens, with these types."""
    model = sp.ModelProto()
    for token, number in zip(tokens, numbers, strict=False):
        model.pieces.add(piece=token.text, score=token.score, type=number)
    _complete(model, metadata)
    content: bytes = model.SerializeToString()
    try:
        SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise CheckpointError(
            "The vocabulary of {path} is none of sentencepiece ({reason}). Fetch the file again.",
            path=metadata.path,
            reason=" ".join(str(error).split()),
        ) from error
    return content


def _roles(metadata: Metadata, generation: Mapping[str, Any], size: int) -> set[int | None]:
    """Return the ids of the two role markers."""
    roles = {name: generation.get(name, default) for name, default in _ROLES.items()}
    for name, i in roles.items():
        if i is not None and (type(i) is not int or not 0 <= i < size):
            raise CheckpointError(
                "{path} cannot be used: the {name} of its {key} is {value!r}; allowed are ids of "
                "the vocabulary, 0 to {last}.",
                path=metadata.path,
                name=name,
                key=_GENERATION,
                value=i,
                last=size - 1,
            )
    return set(roles.values())


def _parted(
    tokens: Sequence[_Token], roles: set[int | None]
) -> tuple[list[int], dict[int, AddedToken]]:
    """Return sentencepiece's types of its own pieces, and the added tokens by their ids.

    The pieces end where only added tokens and filling follow. A piece may be an added token, too.
    """
    found, added, end = [token.kind for token in tokens], {}, 0
    has_bytes = _PIECE.BYTE in found
    front = _first_byte(found) if has_bytes else 0
    for i, (text, _, kind) in enumerate(tokens):
        special = kind == _PIECE.CONTROL
        if i < front:
            symbol = special and text not in ("<s>", "</s>")
            if symbol or kind == _PIECE.NORMAL:
                found[i] = _PIECE.USER_DEFINED
            is_added = symbol and i not in roles
        else:
            is_added = has_bytes and kind in (_PIECE.CONTROL, _PIECE.USER_DEFINED)
            if is_added:
                found[i] = _PIECE.NORMAL
        if is_added:
            added[i] = AddedToken(text, special=special, normalized=False)
        if i < front or not (is_added or (kind == _PIECE.UNUSED and text.startswith(_FILLING))):
            end = i + 1
    return found[:end], added


def _complete(model: Any, metadata: Metadata) -> None:
    """Set what stands beside the pieces."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = sp.TrainerSpec.BPE
    trainer.vocab_size = len(model.pieces)
    trainer.byte_fallback = any(piece.type == _PIECE.BYTE for piece in model.pieces)
    trainer.pad_id = -1
    charsmap = metadata.octets("tokenizer.ggml.precompiled_charsmap")
    if charsmap is None:  # no file from elsewhere has it; this is the published one's rule
        whole = SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto()
        normalizer.CopyFrom(sp.ModelProto.FromString(whole).normalizer_spec)
    else:
        normalizer.precompiled_charsmap = charsmap
    normalizer.add_dummy_prefix = metadata.boolean("tokenizer.ggml.add_space_prefix", True)
    normalizer.remove_extra_whitespaces = metadata.boolean(
        "tokenizer.ggml.remove_extra_whitespaces", False
    )
    normalizer.escape_whitespaces = True
