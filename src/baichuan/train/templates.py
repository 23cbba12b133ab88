"""How a conversation becomes tokens for training: the model's own chat format, or plain text.

    baichuan      195 question 196 answer ... 195 question 196 answer 2
    vanilla       question answer 2 question answer 2 ...
    default2023   "<prefix>\\nHuman: question\\nAssistant: " answer 2 "\\nHuman: ..." answer 2 ...

`baichuan` is the published format (model/prompt.py), which puts nothing between an answer and the
next question: there the end is learned without being read, see encoding.py. `default2023` is what
models have that were trained by the original README's commands in July 2023: these gave no
template, and this was LLaMA-Efficient-Tuning's default. Knows no row and no limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from baichuan.model.prompt import Message, TextEncoder, encode_chat

Rounds = Sequence[tuple[str, str]]


class Encoder(TextEncoder, Protocol):
    """What a template needs of a tokenizer."""

    add_bos_token: bool
    bos_token_id: int
    eos_token_id: int

    def decode(self, ids: list[int]) -> str:
        """Give the text of ids."""
        ...


class Template(Protocol):
    """Encodes questions; answers are encoded by themselves in all of them."""

    @property
    def closes_each(self) -> bool:
        """Whether the end marker stands behind each answer, or only behind the last."""
        ...

    def question(self, tokenizer: Encoder, text: str, system: str, *, first: bool) -> list[int]:
        """Encode a question, with all that stands between it and its answer.

        Args:
            tokenizer: encodes.
            text: what the user says.
            system: the text before the conversation; "" for none.
            first: whether the conversation begins with it.
        """
        ...


@dataclass(frozen=True)
class ChatTemplate:
    """The published format: role markers are ids, which no text can give."""

    closes_each: bool = False

    def question(self, tokenizer: Encoder, text: str, system: str, *, first: bool) -> list[int]:
        """Encode `system`, if it is first, 195, the text and 196."""
        messages: list[Message] = [{"role": "user", "content": text}]
        if first and system:
            messages.insert(0, {"role": "system", "content": system})
        return encode_chat(tokenizer, messages)


@dataclass(frozen=True)
class TextTemplate:
    """A format whose roles are words.

    Attributes:
        prefix: before the conversation, where no system text is given.
        wording: around the question, which stands for `{query}`.
        separator: between prefix and question, and between rounds.
    """

    prefix: str
    wording: str
    separator: str
    closes_each: bool = True

    def question(self, tokenizer: Encoder, text: str, system: str, *, first: bool) -> list[int]:
        """Encode prefix or separator, and the question in its wording, as one text."""
        prefix = (system or self.prefix) if first else ""
        opening = prefix + self.separator if prefix or not first else ""
        ids = tokenizer.encode_text(opening + self.wording.replace("{query}", text))
        return [tokenizer.bos_token_id, *ids] if tokenizer.add_bos_token else ids


TEMPLATES: dict[str, Template] = {
    "baichuan": ChatTemplate(),
    "vanilla": TextTemplate(prefix="", wording="{query}", separator=""),
    "default2023": TextTemplate(
        prefix="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        wording="Human: {query}\nAssistant: ",
        separator="\n",
    ),
}
