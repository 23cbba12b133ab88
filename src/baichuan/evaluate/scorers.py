"""What gives the four letters' scores: this package's network, or any that transformers loads.

Each scorer takes the prompts of one subject and yields them batch by batch. Knows no benchmark.
"""

from __future__ import annotations

import copy
import inspect
from array import array
from collections.abc import Container, Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from baichuan.engine.cache import Chunk, DecoderModel, SequenceCache
from baichuan.engine.sampling import check_finite
from baichuan.errors import UsageError
from baichuan.evaluate.batches import Row, packed, rows_of
from baichuan.evaluate.data import LETTERS
from baichuan.evaluate.prompts import Content, Count, LetterToken, Prompt
from baichuan.model.network import CACHE_NAME, BaichuanForCausalLM, refuse_damaged_weights
from baichuan.model.prompt import encode_chat

#: Index of a prompt to the scores of A, B, C and D.
Scores = dict[int, tuple[float, ...]]

#: Tokens that go through the network side by side: enough to read the weights seldom, and few
#: enough for caches of a CPU.
BATCH_TOKENS = 1024

#: Texts whose ids are remembered: more than any subject has questions.
_REMEMBERED = 2048


class Scorer(Protocol):
    """Scores letters as continuations of prompts.

    Attributes:
        count: gives a prompt's tokens; None where they cannot be known.
    """

    count: Count | None

    def scores(self, prompts: Sequence[Prompt], done: Container[int]) -> Iterator[Scores]:
        """Yield batch after batch, in any order; a batch wholly in `done` is left out.

        Args:
            prompts: of one subject.
            done: indices of prompts that were scored in an earlier run.
        """
        ...


class Encoder:
    """Ids of prompts and of letters.

    Args:
        tokenizer: of transformers.
        letter: which token stands for a letter.
        bos: whether `<s>` stands before a text; None leaves it to the tokenizer.
        chat: gives the ids of messages; None uses the tokenizer's template.
    """

    def __init__(
        self, tokenizer: Any, letter: LetterToken, bos: bool | None = None, chat: Any = None
    ) -> None:
        self._tokenizer = tokenizer
        self._bos = bos
        self._chat = chat
        # A prompt is counted, to see whether it fits, before it is encoded for the network.
        self._remembered = lru_cache(_REMEMBERED)(self._encode_text)
        self.letters = letter_ids(tokenizer, letter)

    def encode(self, content: Content) -> list[int]:
        """Give the ids of a text, or of messages with the marker of the answer behind them."""
        if isinstance(content, str):
            return self._remembered(content).tolist()
        if self._chat is not None:
            return list(self._chat(content))
        return list(
            self._tokenizer.apply_chat_template(
                content, add_generation_prompt=True, return_dict=False
            )
        )

    def _encode_text(self, text: str) -> array[int]:
        # Not verbose: prompts too long for the model are counted, too, and then shortened.
        if self._bos is None:
            return array("i", self._tokenizer.encode(text, verbose=False))
        ids = self._tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return array("i", [self._tokenizer.bos_token_id, *ids] if self._bos else ids)

    def count(self, content: Content) -> int:
        """Give the number of ids."""
        return len(self.encode(content))


def letter_ids(tokenizer: Any, letter: LetterToken) -> list[int]:
    """Give the ids that stand for A, B, C and D.

    Vocabularies hold a letter several times: "A" inside a word, "▁A" at the beginning of one. A
    sentencepiece tokenizer gives the second for the text "A".

    Args:
        tokenizer: of transformers.
        letter: "first" or "last" id of the text "A", the "piece" named "A", or the last id of
            " A" ("spaced").

    Raises:
        UsageError: these are not four different ids.
    """
    if letter == "piece":
        ids = [tokenizer.convert_tokens_to_ids(name) for name in LETTERS]
    else:
        space = " " if letter == "spaced" else ""
        place = 0 if letter == "first" else -1
        ids = [tokenizer.encode(space + name, add_special_tokens=False)[place] for name in LETTERS]
    if len({i for i in ids if i is not None and i != tokenizer.unk_token_id}) < len(LETTERS):
        raise UsageError(
            "With --letter {letter}, this tokenizer has the ids {ids} for A, B, C and D, which "
            "cannot tell them apart. Choose another of first, last, piece and spaced.",
            letter=letter,
            ids=ids,
        )
    return ids


class BaichuanScorer:
    """This package's network: a common beginning is computed once, the rests side by side."""

    def __init__(
        self,
        model: BaichuanForCausalLM,
        tokenizer: Any,
        letter: LetterToken,
        bos: bool | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        def chat(messages: Any) -> list[int]:
            settings = model.generation_config
            return encode_chat(
                tokenizer,
                messages,
                user_token_id=getattr(settings, "user_token_id", None) or 195,
                assistant_token_id=getattr(settings, "assistant_token_id", None) or 196,
            )

        self._model: DecoderModel = model
        self._encoder = Encoder(tokenizer, letter, bos, chat)
        self._batch_tokens = batch_tokens
        self.count: Count | None = self._encoder.count

    def scores(self, prompts: Sequence[Prompt], done: Container[int]) -> Iterator[Scores]:
        """Score; see `Scorer`."""
        rows = rows_of(prompts, [self._encoder.encode(prompt.content) for prompt in prompts])
        pool = self._model.new_pool()
        beginnings: dict[int, SequenceCache] = {}
        for batch in packed(rows, self._batch_tokens):
            if all(row.index in done for row in batch):
                continue
            groups = {row.group: row for row in batch}
            for gone in beginnings.keys() - groups.keys():
                beginnings.pop(gone).truncate(0)
            for group in groups.keys() - beginnings.keys():
                beginnings[group] = self._computed(groups[group].beginning, SequenceCache(pool))
            yield self._scored(batch, beginnings)

    def _computed(self, beginning: list[int], cache: SequenceCache) -> SequenceCache:
        if beginning:
            self._model.forward_chunks([Chunk(beginning, cache, logits=0)])
        return cache

    def _scored(self, batch: list[Row], beginnings: dict[int, SequenceCache]) -> Scores:
        chunks = [Chunk(row.rest, beginnings[row.group], kept=False) for row in batch]
        logits = self._model.forward_chunks(chunks)
        return _of_letters(batch, torch.cat(logits), self._encoder.letters)


class TransformersScorer:
    """Any causal model of transformers, the same way: one cache per beginning, rests padded.

    Rests are padded at their right end, where no earlier token sees it, so that neither masks nor
    positions matter and any causal model will do.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        letter: LetterToken,
        bos: bool | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        self._model = model
        self._encoder = Encoder(tokenizer, letter, bos)
        self._batch_tokens = batch_tokens
        self._picks_positions = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.count: Count | None = self._encoder.count

    @torch.inference_mode()
    def scores(self, prompts: Sequence[Prompt], done: Container[int]) -> Iterator[Scores]:
        """Score; see `Scorer`."""
        rows = rows_of(prompts, [self._encoder.encode(prompt.content) for prompt in prompts])
        group, cache = None, None
        for batch in packed(rows, self._batch_tokens, padded=True):
            if all(row.index in done for row in batch):
                continue
            if batch[0].group != group:
                group, cache = batch[0].group, self._computed(batch[0].beginning)
            logits = self._last_logits([row.rest for row in batch], cache)
            yield _of_letters(batch, logits, self._encoder.letters)

    def _computed(self, beginning: list[int]) -> Any:
        if not beginning:
            return None
        ids = torch.tensor([beginning], device=self._model.device)
        keep = {"logits_to_keep": 1} if self._picks_positions else {}
        return self._model(input_ids=ids, use_cache=True, **keep)[CACHE_NAME]

    def _last_logits(self, rests: list[list[int]], cache: Any) -> Tensor:
        """Give logits [rests, vocabulary] of the last token of each."""
        lengths = [len(rest) for rest in rests]
        ids = torch.zeros(len(rests), max(lengths), dtype=torch.long)
        for row, rest in zip(ids, rests, strict=True):
            row[: len(rest)] = torch.tensor(rest)
        settings: dict[str, Any] = {"use_cache": False}
        if cache is not None:
            many = copy.deepcopy(cache)
            many.batch_repeat_interleave(len(rests))
            settings = {CACHE_NAME: many, "use_cache": True}
        kept = list(range(max(lengths)))
        if self._picks_positions:
            kept = sorted({length - 1 for length in lengths})
            settings["logits_to_keep"] = torch.tensor(kept, device=self._model.device)
        logits: Tensor = self._model(input_ids=ids.to(self._model.device), **settings).logits
        logits = logits[range(len(rests)), [kept.index(length - 1) for length in lengths]]
        if not bool(logits.isfinite().all()):
            refuse_damaged_weights(self._model)
        return logits


def _of_letters(batch: Sequence[Row], logits: Tensor, letters: list[int]) -> Scores:
    check_finite(logits)
    picked = logits[:, letters].float().tolist()
    return {row.index: tuple(four) for row, four in zip(batch, picked, strict=True)}
