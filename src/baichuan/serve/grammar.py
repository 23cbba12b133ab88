"""Answers that must be JSON: a schema becomes a constraint on tokens, by llguidance.

Knows a sentencepiece vocabulary and llguidance; no request and no prompt.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from torch import Tensor

from baichuan.engine.sampling import Constraint
from baichuan.errors import UsageError
from baichuan.model.tokenizer import BaichuanTokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_OPTIONS: JsonCompileOptions = {
    # White space as Python's `json.dumps` puts it. Free to put any, a model that is not sure how
    # to go on fills the whole answer with it.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # What it cannot enforce becomes a warning, which `_check_warnings` judges.
    "coerce_one_of": True,
    "lenient": True,
}
#: A `format` is an annotation (JSON Schema 2020-12, validation, 7.2.1); a `oneOf` whose branches
#: may overlap is enforced as `anyOf`.
_HARMLESS = ("Unknown format:", "oneOf not fully supported")
#: What a schema may cost: some 40 ms to read and 15 ms per token by the library's own figures.
_LIMITS = LLParserLimits(
    initial_lexer_fuel=2_000_000, step_lexer_fuel=200_000, max_grammar_size=100_000
)


def token_bytes(tokenizer: BaichuanTokenizer) -> list[bytes]:
    """Give what each id of the vocabulary adds to a text; nothing for control tokens."""
    pieces = tokenizer.sp_model
    return [_bytes_of(pieces, i) for i in range(pieces.vocab_size())]


def _bytes_of(pieces: Any, i: int) -> bytes:
    if pieces.is_control(i) or pieces.is_unknown(i) or pieces.is_unused(i):
        return b""
    piece = str(pieces.id_to_piece(i))
    if pieces.is_byte(i):  # <0xE4>
        return bytes([int(piece[3:-1], 16)])
    return piece.replace("\u2581", " ").encode()


class JsonGrammars:
    """Makes constraints for one vocabulary.

    Args:
        tokenizer: whose ids the network chooses among.
        vocabulary: number of logits; ids behind the tokenizer's are never allowed.
        never: ids that are no text, the role markers.
        eos: the id that ends an answer.
    """

    def __init__(
        self, tokenizer: BaichuanTokenizer, vocabulary: int, never: Iterable[int], eos: int
    ) -> None:
        self._vocabulary = vocabulary
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Vocabulary(tokenizer, never, eos)),
            slices=LLTokenizer.json_slices(),
        )

    def constraint(self, schema: dict[str, Any]) -> Callable[[], Constraint]:
        """Give what makes a constraint to JSON of this schema, one for each sequence.

        Raises:
            UsageError: the schema is wrong, too complex, or uses what llguidance does not know.
        """
        try:
            grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
        except ValueError as error:
            raise _refused(str(error)) from error
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=_LIMITS)
        if matcher.is_error():
            raise _refused(matcher.get_error())
        _check_warnings(matcher.get_grammar_warnings())
        return lambda: _Matcher(matcher.deep_copy(), self._vocabulary, self._tokenizer.eos_token)


class _Vocabulary:
    """A tokenizer as llguidance wants to see it; there is a token for each byte."""

    def __init__(self, tokenizer: BaichuanTokenizer, never: Iterable[int], eos: int) -> None:
        self.eos_token_id = eos
        self.bos_token_id = None
        self.tokens = token_bytes(tokenizer)
        silent = {i for i, text in enumerate(self.tokens) if not text}
        self.special_token_ids = sorted(silent.union(never))
        for i in self.special_token_ids:
            self.tokens[i] = f"<special {i}>".encode()
        spoken = set(range(len(self.tokens))).difference(self.special_token_ids)
        self._ids = {self.tokens[i]: i for i in sorted(spoken, reverse=True)}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes) -> list[int]:
        """Cut what the grammar forces into the longest tokens.

        sentencepiece's own cut would put a space before it and normalise it: other bytes.
        """
        ids = []
        while text:
            ends = range(min(self._longest, len(text)), 0, -1)
            end = next(end for end in ends if text[:end] in self._ids)
            ids.append(self._ids[text[:end]])
            text = text[end:]
        return ids


class _Matcher:
    """A constraint by a matcher; one that gives up ends the request with an error."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, eos: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._eos = eos

    def allowed(self) -> Tensor:
        mask = torch.zeros(self._vocabulary, dtype=torch.bool)
        if not self._matcher.is_stopped():
            bias = bytearray(self._matcher.compute_logit_bias())
            known = torch.frombuffer(bias, dtype=torch.uint8)[: self._vocabulary]
            mask[: len(known)] = known > 0
        if self._matcher.is_error():
            raise _gave_up(self._matcher.get_error())
        if self._matcher.is_stopped():  # the answer is complete
            mask[self._eos] = True
        return mask

    def accept(self, token: int) -> None:
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)


def _check_warnings(warnings: Iterable[str]) -> None:
    """Refuse a schema with keywords that would not be enforced."""
    for warning in warnings:
        if not warning.startswith(_HARMLESS):
            raise _refused(warning)


def _gave_up(reason: str) -> UsageError:
    if reason.startswith("NoExtensionBias"):
        return UsageError(
            "No text satisfies the JSON schema; a $ref that never ends, for example. Correct it."
        )
    return _refused(reason)


def _refused(reason: str) -> UsageError:
    return UsageError(
        "The JSON schema cannot be used: {reason}. Give a schema that is simpler or correct.",
        reason=json.dumps(reason.partition("\n")[0].rstrip("."), ensure_ascii=False),
    )
