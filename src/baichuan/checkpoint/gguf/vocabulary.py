"""The tokenizer in GGUF: sentencepiece's pieces, both ways, and the chat form.

llama.cpp has no normalisation, and puts a space behind each user-defined symbol, digits too. So, as
its own converter does, those are written as ordinary pieces, which changes the ids of a few texts
and never their meaning; only the two role markers are control tokens, which no typed text can form.
Reading knows user-defined symbols by their place: sentencepiece puts them before its bytes. Tokens
that were added to a tokenizer stand behind all pieces, as user-defined or, if special, as control
tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gguf import GGUFWriter
from sentencepiece import SentencePieceNormalizer, SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as sp
from transformers import AddedToken

from baichuan.errors import CheckpointError
from baichuan.files import read_text
from baichuan.model.configuration import BaichuanConfig
from baichuan.model.tokenizer import BaichuanTokenizer

_PIECE = sp.ModelProto.SentencePiece
_FILLING = "[PAD"
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
        CheckpointError: it has more pieces than the network.
    """
    tokenizer = BaichuanTokenizer.from_pretrained(directory)
    model = sp.ModelProto.FromString(Path(tokenizer.vocab_file).read_bytes())
    texts = [piece.piece for piece in model.pieces]
    behind = [
        _behind_pieces(tokenizer, i) for i in range(len(texts), config.vocab_size)
    ]  # and no token without a row in the network
    if len(texts) > config.vocab_size:
        raise CheckpointError(
            "{directory}: tokenizer.model has {pieces:,} pieces, the network {size:,}. They are of "
            "two checkpoints; fetch the directory afresh.",
            directory=directory,
            pieces=len(texts),
            size=config.vocab_size,
        )
    generation = _generation(directory)
    roles = {name: generation.get(name, default) for name, default in _ROLES.items()}
    kinds = [
        _PIECE.NORMAL if piece.type == _PIECE.USER_DEFINED else piece.type for piece in model.pieces
    ]
    named = [i for i in roles.values() if isinstance(i, int) and 0 <= i < len(texts)]
    for i in named:
        kinds[i] = _PIECE.CONTROL
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(texts + [text for text, _ in behind])
    writer.add_token_scores([piece.score for piece in model.pieces] + [0.0 for _ in behind])
    writer.add_token_types(kinds + [kind for _, kind in behind])
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


def _behind_pieces(tokenizer: BaichuanTokenizer, i: int) -> tuple[str, int]:
    """Return text and type of an id that tokenizer.model does not have."""
    added = tokenizer.added_tokens_decoder.get(i)
    if added is None:
        return f"{_FILLING}{i}]", _PIECE.UNUSED
    return added.content, _PIECE.CONTROL if added.special else _PIECE.USER_DEFINED


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
        content = json.loads(read_text(path)) if path.is_file() else {}
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
        added_tokens_decoder=added,
        add_bos_token=settings.get("tokenizer.ggml.add_bos_token") is True,
        add_eos_token=settings.get("tokenizer.ggml.add_eos_token") is True,
        model_max_length=config.context_length,
        clean_up_tokenization_spaces=False,
    )
    special = [token for token in added.values() if token.special]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
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


def _model(
    settings: Mapping[str, Any], path: Path, config: BaichuanConfig
) -> tuple[bytes, dict[int, AddedToken]]:
    """Build tokenizer.model, and the tokens that stand behind its pieces, by id."""
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
    model, numbers = sp.ModelProto(), [int(number) for number in kinds]
    end = _end_of_pieces(texts, numbers)
    added = {
        i: AddedToken(texts[i], normalized=False, special=numbers[i] == _PIECE.CONTROL)
        for i in range(end, len(texts))
        if numbers[i] != _PIECE.UNUSED
    }
    for text, score, number in zip(texts[:end], scores, _piece_types(texts, numbers[:end])):  # noqa: B905
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


def _end_of_pieces(texts: Sequence[str], kinds: Sequence[int]) -> int:
    """Return the first id behind sentencepiece's pieces: of added tokens and of padding."""
    behind = {_PIECE.USER_DEFINED, _PIECE.CONTROL}
    end = len(kinds)
    while end and (
        kinds[end - 1] in behind
        or (kinds[end - 1] == _PIECE.UNUSED and texts[end - 1].startswith(_FILLING))
    ):
        end -= 1
    return end


def _piece_types(texts: Sequence[str], kinds: Sequence[int]) -> list[int]:
    """Return sentencepiece's types of the pieces."""
    found = list(kinds)
    first_byte = found.index(_PIECE.BYTE) if _PIECE.BYTE in found else 0
    special = ("<s>", "</s>")
    for i in range(first_byte):
        if found[i] == _PIECE.NORMAL or (found[i] == _PIECE.CONTROL and texts[i] not in special):
            found[i] = _PIECE.USER_DEFINED
    return found


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
