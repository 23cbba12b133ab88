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

from baichuan.errors import CheckpointError
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.tokenizer import BaichuanTokenizer

_PIECE = sp.ModelProto.SentencePiece
_FILLING = "[PAD"
#: Of an added token, as llama.cpp's converter writes it: sentencepiece's merges never prefer it.
_ADDED_SCORE = -1000.0
_NAMED = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
_GENERATION = "baichuan.generation_config"
_ROLES = {"user_token_id": 195, "assistant_token_id": 196}
_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "repetition_penalty": "penalty_repeat",
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
    eos = ends[0] if isinstance(ends, list) else ends
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
    try:
        content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise CheckpointError(
            "{path} is not JSON ({reason}; {size:,} bytes). Fetch the file again.",
            path=path,
            reason=error,
            size=path.stat().st_size,
        ) from error
    return content if isinstance(content, dict) else {}


def _write_generation(writer: GGUFWriter, generation: dict[str, Any]) -> None:
    """Add sampling settings as llama.cpp reads them, and all settings as we do."""
    for ours, theirs in _SAMPLING.items():
        value = generation.get(ours)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            key = f"general.sampling.{theirs}"
            if ours == "top_k":
                writer.add_int32(key, int(value))
            else:
                writer.add_float32(key, value)
    writer.add_string(_GENERATION, json.dumps(generation))


def save_vocabulary(
    settings: Mapping[str, Any], path: Path, config: BaichuanConfig, directory: Path
) -> None:
    """Write a GGUF file's tokenizer and sampling settings as files of a checkpoint.

    Args:
        settings: of the file.
        path: of the file, for messages.
        config: of its network.
        directory: to write to.

    Raises:
        CheckpointError: the file holds no sentencepiece vocabulary, or one that cannot be.
    """
    model, added = _model(settings, path, config)
    file = directory / "tokenizer.model"
    file.write_bytes(model)
    tokenizer = BaichuanTokenizer(
        str(file),
        **_special(settings, added),
        added_tokens_decoder=added,
        extra_special_tokens=[token for token in added.values() if token.special],
        add_bos_token=settings.get("tokenizer.ggml.add_bos_token") is True,
        add_eos_token=settings.get("tokenizer.ggml.add_eos_token") is True,
        model_max_length=config.context_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(directory)
    ids = {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    generation = _saved_generation(settings) or {**ids, **_sampling(settings)}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2), "utf-8")


def _saved_generation(settings: Mapping[str, Any]) -> dict[str, Any]:
    try:
        saved = json.loads(settings.get(_GENERATION, "{}"))
    except (TypeError, ValueError):
        return {}
    return saved if isinstance(saved, dict) else {}


def _sampling(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {ours: settings.get(f"general.sampling.{theirs}") for ours, theirs in _SAMPLING.items()}
    return {ours: value for ours, value in found.items() if isinstance(value, (int, float))}


def _special(settings: Mapping[str, Any], added: Mapping[int, AddedToken]) -> dict[str, str]:
    """Return the texts of the tokens that begin, end and pad, where the file names some."""
    texts, kinds = (settings[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    found = {}
    for ours, theirs in _NAMED.items():
        i = settings.get(f"tokenizer.ggml.{theirs}_token_id")
        if not isinstance(i, int) or not 0 <= i < len(texts):
            continue
        if i in added or kinds[i] in (_PIECE.CONTROL, _PIECE.UNKNOWN):
            found[f"{ours}_token"] = texts[i]
    return found


def _model(
    settings: Mapping[str, Any], path: Path, config: BaichuanConfig
) -> tuple[bytes, dict[int, AddedToken]]:
    """Build tokenizer.model, and the tokens that are added to it."""
    texts, scores, kinds = (
        settings.get(f"tokenizer.ggml.{name}", ()) for name in ("tokens", "scores", "token_type")
    )
    kind = settings.get("tokenizer.ggml.model")
    counts = {len(texts), len(scores), len(kinds)}
    if kind != "llama" or len(counts) != 1 or not 0 < len(texts) <= config.vocab_size:
        raise CheckpointError(
            "{path} has no vocabulary that can serve: tokenizer.ggml.model is {kind!r} with "
            "{tokens:,} tokens, {scores:,} scores and {kinds:,} types; needed is 'llama' with at "
            "most {size:,} of each.",
            path=path,
            kind=kind,
            tokens=len(texts),
            scores=len(scores),
            kinds=len(kinds),
            size=config.vocab_size,
        )
    numbers, added = _parted(texts, [int(kind) for kind in kinds], _roles(settings))
    model = sp.ModelProto()
    for text, score, number in zip(texts, scores, numbers, strict=False):
        model.pieces.add(piece=text, score=float(score), type=number)
    _complete(model, settings)
    content: bytes = model.SerializeToString()
    try:
        SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise CheckpointError(
            "The vocabulary of {path} is none of sentencepiece ({reason}). Fetch the file again.",
            path=path,
            reason=str(error).splitlines()[0],
        ) from error
    return content, added


def _roles(settings: Mapping[str, Any]) -> set[Any]:
    generation = _saved_generation(settings)
    return {generation.get(name, default) for name, default in _ROLES.items()}


def _parted(
    texts: Sequence[str], kinds: Sequence[int], roles: set[Any]
) -> tuple[list[int], dict[int, AddedToken]]:
    """Return sentencepiece's types of its own pieces, and the added tokens by their ids.

    The pieces end where only added tokens and filling follow. A piece may be an added token, too.
    """
    found, added, end = list(kinds), {}, 0
    has_bytes = _PIECE.BYTE in found
    front = _first_byte(found) if has_bytes else 0
    for i, (text, kind) in enumerate(zip(texts, kinds, strict=True)):
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


def _complete(model: Any, settings: Mapping[str, Any]) -> None:
    """Set what stands beside the pieces."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = sp.TrainerSpec.BPE
    trainer.vocab_size = len(model.pieces)
    trainer.byte_fallback = any(piece.type == _PIECE.BYTE for piece in model.pieces)
    trainer.pad_id = -1
    charsmap = settings.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is None:  # no file from elsewhere has it; this is the published one's rule
        whole = SentencePieceNormalizer(rule_name="nmt_nfkc").serialized_model_proto()
        normalizer.CopyFrom(sp.ModelProto.FromString(whole).normalizer_spec)
    else:
        normalizer.precompiled_charsmap = bytes(charsmap)
    normalizer.add_dummy_prefix = settings.get("tokenizer.ggml.add_space_prefix", True) is True
    normalizer.remove_extra_whitespaces = (
        settings.get("tokenizer.ggml.remove_extra_whitespaces") is True
    )
    normalizer.escape_whitespaces = True
