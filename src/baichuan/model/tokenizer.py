"""The tokenizer of Baichuan-13B and Baichuan-7B, over the published `tokenizer.model`.

Ids come from sentencepiece itself: exact, and faster than a conversion. transformers contributes
padding, tensors, saving and loading. Importing `baichuan` makes `AutoTokenizer` choose this class,
so a checkpoint's own `tokenization_baichuan.py` never runs. Knows no network and no sampling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, BatchEncoding, PreTrainedConfig
from transformers.models.auto import tokenization_auto
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from baichuan.errors import TokenizerError
from baichuan.json_files import read_object
from baichuan.model.prompt import Form, assistant_mask, encode_chat
from baichuan.model.tokenizer_files import CONFIG, FILES, check_vocabulary, read_settings


class BaichuanTokenizer(SentencePieceBackend):  # type: ignore[misc]  # untyped base
    """Text to ids and back, equal to the published class on every input it accepts.

    `encode`, `__call__` and `tokenize` take `<s>`, `</s>`, `<unk>` and added tokens in the text for
    the tokens they name, as published. `encode_text` does not: use it for what people type.

    Args:
        vocab_file: path of `tokenizer.model`.
        unk_token, bos_token, eos_token, pad_token: special tokens; padding is `<unk>`, id 0.
        add_bos_token, add_eos_token: put them around each sequence; the published files say no.
        kwargs: transformers' own, e.g. `padding_side` (left unless given), `model_max_length`.

    Raises:
        TokenizerError: the file is missing or is no sentencepiece model.
    """

    padding_side = "left"  # generation continues the right end of every row

    def __init__(
        self,
        vocab_file: str | None = None,
        unk_token: str | AddedToken = "<unk>",
        bos_token: str | AddedToken = "<s>",
        eos_token: str | AddedToken = "</s>",
        pad_token: str | AddedToken | None = "<unk>",
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        **kwargs: Any,
    ) -> None:
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        # Neither may reach a saved file: the first points at Python files, the second says nothing.
        kwargs.pop("auto_map", None)
        kwargs.pop("use_fast", None)
        check_vocabulary(vocab_file)
        tokens = {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token}
        try:
            super().__init__(vocab_file=vocab_file, pad_token=pad_token, **tokens, **kwargs)
        except RuntimeError as error:  # sentencepiece's own
            size = Path(str(vocab_file)).stat().st_size
            raise TokenizerError(
                "{file} is not a sentencepiece model: it has {size:,} bytes, where the "
                "published one has about a million and a git-lfs pointer some 130. Fetch it again.",
                file=vocab_file,
                size=size,
            ) from error

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers does.

        Raises:
            TokenizerError: a file is missing, damaged, or may not be read.
        """
        if args:
            _check_json(args[0], kwargs)
        try:
            return super().from_pretrained(*args, **kwargs)
        except PermissionError as error:
            raise TokenizerError.unreadable(error.filename, error) from error
        except json.JSONDecodeError as error:
            raise _no_json(args[0] if args else None, error) from error

    @classmethod
    def _from_pretrained(
        cls,
        resolved_vocab_files: dict[str, str | None],
        name: Any,
        settings: Any,
        *args: Any,
        **kw: Any,
    ) -> Any:
        """Build a tokenizer of its files (transformers calls this to load)."""
        settings = read_settings(resolved_vocab_files, kw)
        # Of tokenizer.json, transformers would take that `add_bos_token` is not to be read.
        files = {name: path for name, path in resolved_vocab_files.items() if name not in FILES}
        return super()._from_pretrained(files, name, settings, *args, **kw)

    def get_vocab(self) -> dict[str, int]:
        """Map every piece and added token to its id."""
        pieces = self.sp_model.id_to_piece(list(range(self.vocab_size)))
        return {piece: i for i, piece in enumerate(pieces)} | dict(self.added_tokens_encoder)

    def pad_within(self, size: int) -> None:
        """Pad with `<unk>`, as published, where padding has no row in a network of `size` tokens.

        Padding is masked, so which token it is makes no difference.
        """
        if self.pad_token_id is not None and self.pad_token_id >= size:
            self.pad_token = self.unk_token

    def encode_text(self, text: str, markers: tuple[int, ...] = (195, 196)) -> list[int]:
        """Encode text as text, whatever it says: for everything that a person or a tool typed.

        No special token (ids 0, 1, 2), no added token and none of `markers` comes out, and the ids
        decode to the same text as sentencepiece's own. A marker that sentencepiece finds by its
        name (also in full-width letters or around control characters, which normalisation mends)
        is spelled out in ordinary pieces.

        Args:
            text: what was typed.
            markers: ids that text must not produce, the two role markers.

        Raises:
            TokenizerError: the text has a lone surrogate, which no encoding can represent.
        """
        ids = self._plain(text)
        if not any(marker in ids for marker in markers):
            return ids
        spelled = {marker: self._spell(marker, markers) for marker in markers}
        return [i for found in ids for i in spelled.get(found, (found,))]

    def decode_text(self, ids: Sequence[int]) -> str:
        """Decode ids as text that grows: one more id only adds to the text of those before it.

        Special tokens have no text, and neither have `unknown_ids`. `decode` puts a space before
        whatever an added token follows, as published, and so changes text that stood there already.
        """
        parts, start = [], 0
        silent = set(self.all_special_ids).union(self.unknown_ids(max(ids, default=0) + 1))
        ids = [i for i in ids if i not in silent]
        for position, i in enumerate(ids):
            if i in self._added_tokens_decoder:
                parts += [self._join(ids[start:position]), self._added_tokens_decoder[i].content]
                start = position + 1
        return "".join([*parts, self._join(ids[start:])])

    def unknown_ids(self, size: int) -> list[int]:
        """Return the ids below `size` that are neither pieces nor added tokens: no text is theirs.

        A network whose vocabulary was resized computes logits for them.
        """
        return [i for i in range(self.vocab_size, size) if i not in self._added_tokens_decoder]

    def tokenize(self, text: str, **kwargs: Any) -> list[str]:
        """Cut text into pieces; `split_special_tokens=True` treats no text as a special token."""
        return list(self.convert_ids_to_tokens(self._ids(text, kwargs)))

    def _plain(self, text: str) -> list[int]:
        try:
            return list(self.sp_model.encode(text))
        except RuntimeError as error:
            raise TokenizerError(
                "The text holds a lone surrogate (half a character), which UTF-8 cannot represent; "
                "decode it from its bytes with errors='replace' first."
            ) from error

    def _spell(self, marker: int, markers: tuple[int, ...]) -> list[int]:
        """Ids of a marker's characters, one by one: no marker can form again."""
        name = self.sp_model.id_to_piece(marker)
        ids = [self.sp_model.piece_to_id(character) for character in name]
        if not {self.sp_model.unk_id(), *markers}.isdisjoint(ids):
            ids = [self.sp_model.piece_to_id(f"<0x{byte:02X}>") for byte in name.encode()]
        return ids

    def _ids(self, text: str, options: dict[str, Any]) -> list[int]:
        """Encode what stands between special and added tokens, each stretch on its own."""
        whole = self.added_tokens_encoder  # the special tokens are among them
        if options.get("split_special_tokens", self.split_special_tokens) or not whole:
            return self._plain(text)
        names = "|".join(re.escape(name) for name in sorted(whole, key=len, reverse=True))
        parts = re.split(f"({names})", text)
        return [i for p in parts for i in ((whole[p],) if p in whole else self._plain(p))]

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:
        def ids(value: Any) -> Any:
            # The base class refuses an empty list of ids but takes an empty text.
            return (self._ids(value, kwargs) or "") if isinstance(value, str) else value

        return super()._encode_plus(ids(text), text_pair=ids(text_pair), **kwargs)

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[Any], token_ids_1: list[Any] | None = None
    ) -> list[Any]:
        """Put `<s>` and `</s>` around each sequence, as `add_bos_token`, `add_eos_token` say."""
        bos = [self.bos_token_id] if self.add_bos_token and self.bos_token else []
        eos = [self.eos_token_id] if self.add_eos_token and self.eos_token else []
        second = [] if token_ids_1 is None else bos + token_ids_1 + eos
        return bos + token_ids_0 + eos + second

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """Mark with 1 what `build_inputs_with_special_tokens` adds."""
        if already_has_special_tokens:
            return list(super().get_special_tokens_mask(token_ids_0, token_ids_1, True))
        second = None if token_ids_1 is None else [None] * len(token_ids_1)
        built = self.build_inputs_with_special_tokens([None] * len(token_ids_0), second)
        return [int(i is not None) for i in built]

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **_: Any,
    ) -> str:
        """Join pieces as published: stretches before a special token keep their leading space."""
        skip = set(self.all_special_ids) if skip_special_tokens else set()
        ids = [
            i for i in ([token_ids] if isinstance(token_ids, int) else token_ids) if i not in skip
        ]
        text, start = "", 0
        for position, i in enumerate(ids):
            if i in self._added_tokens_decoder:
                if start < position:
                    text += " " + self._join(ids[start:position])
                text += self._added_tokens_decoder[i].content
                start = position + 1
        text += self._join(ids[start:])
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return str(self.clean_up_tokenization(text)) if clean_up_tokenization_spaces else text

    def _join(self, ids: list[int]) -> str:
        try:
            return str(self.sp_model.decode(ids))
        except IndexError as error:
            raise TokenizerError(
                "{least} to {most} are not all token ids; they go from 0 to {last} (labels of -100 "
                "must be replaced before decoding).",
                least=min(ids),
                most=max(ids),
                last=len(self) - 1,
            ) from error

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join pieces into text, the same way as `decode`."""
        return self._decode(self.convert_tokens_to_ids(tokens))

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        form: Form = "current",
        user_token_id: int = 195,
        assistant_token_id: int = 196,
        **_: Any,
    ) -> Any:
        """Encode one conversation, or a batch, with `baichuan.model.prompt.encode_chat`.

        Arguments and results as in transformers, but there is no template: it would make text, and
        text cannot name a role marker. So `tokenize=False` gives text for display only; encoding
        it gives other ids. `truncation=True` drops whole rounds down to `max_length` (else
        `model_max_length`). Tools, documents and template variables have no effect.

        Returns:
            `input_ids` and `attention_mask`, lists of ints or tensors [batch, length]; on request
            also `assistant_masks`, 1 on the ids of what assistants said.

        Raises:
            PromptError: the messages form no conversation.
        """
        roles = {"user_token_id": user_token_id, "assistant_token_id": assistant_token_id}
        batched = bool(conversation) and isinstance(conversation[0], (list, tuple))
        batch = [
            encode_chat(
                self,
                messages,
                **roles,
                max_input=(max_length or self.model_max_length) if truncation else None,
                add_generation_prompt=add_generation_prompt,
                form=form,
            )
            for messages in (conversation if batched else [conversation])
        ]
        if not tokenize:
            texts = [self.decode(ids) for ids in batch]
            return texts if batched else texts[0]
        out = self.pad({"input_ids": batch}, padding=padding, max_length=max_length)
        if return_assistant_tokens_mask:
            rows = zip(out["input_ids"], out["attention_mask"], strict=True)
            out["assistant_masks"] = [
                [a & b for a, b in zip(assistant_mask(ids, **roles), seen, strict=True)]
                for ids, seen in rows
            ]
        if return_tensors:
            out.convert_to_tensors(return_tensors)
        elif not batched:
            out = BatchEncoding({name: rows[0] for name, rows in out.items()})
        return out if return_dict else out["input_ids"]

    def save_chat_templates(
        self, save_directory: str, tokenizer_config: dict[str, Any], *args: Any
    ) -> Any:
        """Complete the configuration that is about to be saved (called by `save_pretrained`)."""
        # transformers has just dropped both flags; reloaded, the tokenizer would add `<s>`.
        flags = {"add_bos_token": self.add_bos_token, "add_eos_token": self.add_eos_token}
        return super().save_chat_templates(save_directory, tokenizer_config | flags, *args)


def register_tokenizer() -> None:
    """Make `AutoTokenizer` give this class for each Baichuan directory; may be called again.

    Whatever `trust_remote_code` says, no Python file of the directory runs. Where there is no
    tokenizer_config.json, `BaichuanConfig.tokenizer_class` names this class.
    """
    # Registered under the model's own configuration, a directory's Python file would still win if
    # trust_remote_code=True. Found by the name in `tokenizer_class` alone, ours wins.
    AutoTokenizer.register(_NoModel, BaichuanTokenizer, exist_ok=True)
    # A directory with another `tokenizer_class`, or none, would still run its file; transformers
    # has no supported way to decline that. So we mend what it reads, for Baichuan only.
    tokenization_auto.get_tokenizer_config = _tokenizer_config_without_code


class _NoModel(PreTrainedConfig):  # type: ignore[misc]  # untyped base
    """Stands for no model: see `register_tokenizer`."""


_get_tokenizer_config = tokenization_auto.get_tokenizer_config


def _tokenizer_config_without_code(name: Any, **kwargs: Any) -> dict[str, Any]:
    """Read tokenizer_config.json; where it means Baichuan's own Python file, name our class."""
    _check_json(name, kwargs)
    try:
        found: dict[str, Any] = _get_tokenizer_config(name, **kwargs)
    except json.JSONDecodeError as error:
        raise _no_json(name, error) from error
    ours = BaichuanTokenizer.__name__
    named = found.get("tokenizer_class")
    if "auto_map" not in found and named == ours:
        return found
    # The 7B's file wrote the name with a capital C.
    mentioned = ours.lower() in f"{named} {found.get('auto_map')}".lower()
    if "auto_map" in found and not mentioned:
        model, _ = PreTrainedConfig.get_config_dict(name, **kwargs)  # empty for a tokenizer alone
        mentioned = model.get("model_type") == "baichuan"
    if mentioned:
        found = {**found, "tokenizer_class": ours}
        found.pop("auto_map", None)
    return found


def _check_json(name: Any, options: dict[str, Any]) -> None:
    """Check that a directory's tokenizer_config.json can be read: transformers' reader cannot say.

    Raises:
        TokenizerError: it is not JSON, or is too large.
    """
    path = Path(str(name), str(options.get("subfolder") or ""), CONFIG)
    if path.is_file():
        read_object(path, TokenizerError)


def _no_json(directory: object, error: ValueError) -> TokenizerError:
    return TokenizerError(
        "A settings file of the tokenizer in {directory} is not JSON in UTF-8 without a byte order "
        "mark ({reason}): tokenizer_config.json, special_tokens_map.json or added_tokens.json. "
        "Save it so, or fetch it again.",
        directory=directory,
        reason=error,
    )
