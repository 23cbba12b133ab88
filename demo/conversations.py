"""Turns the corpus into an epoch of conversations: choose a phrasing, roughen it, join some.

Everything is drawn from one seeded generator, so an epoch is the same on every machine.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from texts import HeldOut, Item, plain

#: How many questions one conversation has: most have one, so that one is the best known case.
_LENGTHS = (1, 2, 3, 4)
_LENGTH_WEIGHTS = (65, 20, 10, 5)

_LOWER = 0.15
_NO_FULL_STOP = 0.3
_TYPO = 0.06
_POLITE = 0.07
_SYSTEM = 0.06
_SHORT = 0.15

_SYSTEMS = (
    "You are a helpful assistant.",
    "Answer in one sentence.",
    "You are a friendly teacher.",
    "Be brief and polite.",
    "你是一个乐于助人的助手。",
    "请简短地回答问题。",
    "你是一位友好的老师。",
)
_POLITE_EN = ("Please tell me: ", "Quick question: ", "I want to know: ", "Hi! ", "Tell me, ")
_POLITE_ZH = ("请问", "你好，", "我想知道", "请告诉我，")
_SHORTENED = (
    ("What is", "What's"),
    ("Who is", "Who's"),
    ("Where is", "Where's"),
    ("do not", "don't"),
)
_SPELLED = (("colour", "color"), ("licence", "license"), ("metre", "meter"))
_CJK = re.compile(r"[\u4e00-\u9fff]")
_LONG_WORD = re.compile(r"[A-Za-z]{5,}")


@dataclass(frozen=True)
class Conversation:
    """A system text, possibly empty, and pairs of question and answer."""

    system: str
    turns: tuple[tuple[str, str], ...]


def epoch(items: Iterable[Item], held: Iterable[HeldOut], seed: str) -> list[Conversation]:
    """Draw one epoch: each item about `weight` times, in random words, order and company."""
    draw = random.Random(seed)
    forbidden = {plain(h.question) for h in held}
    alone: list[tuple[str, str]] = []
    done: list[Conversation] = []
    for item in items:
        for _ in range(_count(item.weight, draw)):
            turns = tuple(
                (_question(draw, turn.questions, forbidden), turn.answer) for turn in item.turns
            )
            if len(turns) == 1 and not item.systems:
                alone.append(turns[0])
            else:
                system = draw.choice(item.systems) if item.systems else _system(draw)
                done.append(Conversation(system, turns))
    done.extend(_joined(alone, draw))
    draw.shuffle(done)
    return done


def _count(weight: float, draw: random.Random) -> int:
    whole = int(weight)
    return whole + (draw.random() < weight - whole)


def _system(draw: random.Random) -> str:
    return draw.choice(_SYSTEMS) if draw.random() < _SYSTEM else ""


def _joined(turns: list[tuple[str, str]], draw: random.Random) -> list[Conversation]:
    """Join unrelated questions, so that the model looks at the newest one."""
    draw.shuffle(turns)
    conversations, start = [], 0
    while start < len(turns):
        end = start + draw.choices(_LENGTHS, _LENGTH_WEIGHTS)[0]
        conversations.append(Conversation(_system(draw), tuple(turns[start:end])))
        start = end
    return conversations


def _question(draw: random.Random, questions: tuple[str, ...], forbidden: set[str]) -> str:
    """Choose a phrasing and roughen it, but never into a held-out question."""
    question = draw.choice(questions)
    rough = _roughened(question, draw)
    return question if plain(rough) in forbidden else rough


def _roughened(text: str, draw: random.Random) -> str:
    """Write a question as people type: small letters, no full stop, short forms, slips."""
    if len(text) > 4 and draw.random() < _POLITE:
        text = draw.choice(_POLITE_ZH if _CJK.search(text) else _POLITE_EN) + text
    for usual, other in (*_SHORTENED, *_SPELLED):
        if usual in text and draw.random() < _SHORT:
            text = text.replace(usual, other)
    if draw.random() < _LOWER:
        text = text.lower()
    if len(text) > 2 and draw.random() < _NO_FULL_STOP:
        text = text.rstrip("?.!？。！") or text
    if draw.random() < _TYPO:
        text = _with_slip(text, draw)
    return text


def _with_slip(text: str, draw: random.Random) -> str:
    """Leave out or exchange one letter inside a long word."""
    words = list(_LONG_WORD.finditer(text))
    if not words:
        return text
    word = draw.choice(words)
    at = draw.randrange(word.start() + 1, word.end() - 1)
    if draw.random() < 0.5:
        return text[:at] + text[at + 1 :]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
