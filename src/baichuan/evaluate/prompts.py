"""What a model is asked, to the letter, under each scheme.

    official   hendrycks/test, hkust-nlp/ceval and haonan-li/CMMLU, each by its own scripts
    baichuan   the scripts of the Baichuan team (Baichuan-7B/evaluation), for C-Eval and MMLU

Knows texts and how many tokens they have; no model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from baichuan.errors import UsageError
from baichuan.evaluate.data import LETTERS, Question
from baichuan.model.prompt import Message

#: Which token stands for a letter; see `tokens.letter_ids`.
LetterToken = Literal["first", "last", "piece", "spaced"]
#: Which examples go when a prompt is too long.
Shorten = Literal["last", "longest", "none"]
#: Text to continue, or messages to answer.
Content = str | list[Message]
#: Gives the number of tokens, with what the tokenizer puts around them.
Count = Callable[[Content], int]

#: All official scripts cut prompts at so many tokens.
MAX_LENGTH = 2048


@dataclass(frozen=True)
class Scheme:
    """How one team evaluates with one benchmark.

    Attributes:
        name: "official" or "baichuan".
        header: stands at the top; `{}` is the subject's name.
        before: stands before each question's text.
        ask: ends each question.
        space: between that and an example's letter.
        between: ends an example.
        letter: which token stands for a letter.
        bos: whether `<s>` stands before the prompt; None leaves it to the tokenizer.
        shorten: which examples go when the prompt has more than `max_length` tokens.
        shuffled: whether each question gets the examples in an order of its own.
        average: "micro", over questions, or "macro", over subjects.
        renamed: names of subjects that are not the benchmark's.
    """

    name: str
    header: str
    ask: str
    between: str
    letter: LetterToken
    average: Literal["micro", "macro"]
    before: str = ""
    space: str = ""
    bos: bool | None = None
    shorten: Shorten = "last"
    shuffled: bool = False
    renamed: tuple[tuple[str, str], ...] = ()


_MMLU = Scheme(
    "official",
    # The subject's name begins with a space, too: hence two.
    "The following are multiple choice questions (with answers) about {}.\n\n",
    "Answer:",
    space=" ",
    between="\n\n",
    letter="last",
    average="micro",
)
_CEVAL_HEADER = "以下是中国关于{}考试的单项选择题，请选出其中的正确答案。\n\n"

SCHEMES: dict[tuple[str, str], Scheme] = {
    ("mmlu", "official"): _MMLU,
    ("mmlu", "baichuan"): replace(_MMLU, name="baichuan", bos=False),
    ("ceval", "official"): Scheme(
        "official", _CEVAL_HEADER, "答案：", between="\n\n", letter="first", average="macro"
    ),
    ("ceval", "baichuan"): Scheme(
        "baichuan",
        _CEVAL_HEADER,
        "答案：",
        between="\n",
        letter="last",
        average="macro",
        bos=False,
        shorten="none",
        shuffled=True,
        renamed=(("mao_zedong_thought", "毛泽东思想和中国特色社会主义理论概论"),),
    ),
    ("cmmlu", "official"): Scheme(
        "official",
        "以下是关于{}的单项选择题，请直接给出正确答案的选项。\n\n",
        "答案是：",
        before="题目：",
        between="\n\n",
        letter="piece",
        average="macro",
        shorten="longest",
    ),
}


def scheme_of(benchmark: str, name: str) -> Scheme:
    """Find a scheme.

    Raises:
        UsageError: there is none of this name for this benchmark.
    """
    names = [scheme for known, scheme in SCHEMES if known == benchmark]
    if name not in names:
        raise UsageError(
            "scheme is {given!r}; for {benchmark} there is {allowed}. (The Baichuan team "
            "published no script for CMMLU and names the official one.)",
            given=name,
            benchmark=benchmark,
            allowed=", ".join(names),
        )
    return SCHEMES[benchmark, name]


@dataclass(frozen=True)
class Prompt:
    """What is asked for one question.

    Attributes:
        question: the question.
        content: text to continue with a letter, or messages to answer with one.
        shots: places of the examples in `dev` that are in it, in their order.
        beginning: equal for prompts that begin alike: header, and examples in their order.
    """

    question: Question
    content: Content
    shots: tuple[int, ...]
    beginning: tuple[bool, tuple[int, ...]]


class PromptMaker:
    """Makes the prompts of one scheme.

    Args:
        scheme: whose.
        names: subject to what prompts call it.
        shots: examples to show, 0 to as many as `dev` has.
        chat: as messages: header and examples as turns that were answered, instead of one text.
        max_length: most tokens; which examples go beyond it is the scheme's rule, but for messages
            always the last ones.
        seed: of the examples' order, where the scheme shuffles.
        count: None where tokens cannot be counted; then nothing is shortened.
    """

    def __init__(
        self,
        scheme: Scheme,
        names: dict[str, str],
        *,
        shots: int = 5,
        chat: bool = False,
        max_length: int = MAX_LENGTH,
        seed: int = 0,
        count: Count | None = None,
    ) -> None:
        if max_length < 1:
            raise UsageError("max_length is {given}; allowed is 1 or more.", given=max_length)
        self._scheme = scheme
        self._names = {**names, **dict(scheme.renamed)}
        self._shots = shots
        self._chat = chat
        self._max_length = max_length
        self._seed = seed
        self._count = count
        # Examples are counted anew for each question otherwise.
        self._count_text = lru_cache(maxsize=64)(lambda text: count(text) if count else 0)

    def prompt(self, question: Question, examples: Sequence[Question]) -> Prompt:
        """Make the prompt of one question.

        Args:
            question: what is asked.
            examples: all rows of `dev` of its subject.
        """
        places = list(range(len(examples)))
        if self._scheme.shuffled:
            # Each question has its own order, as published; and the same in every run.
            place = f"{self._seed} {question.subject} {question.number}"
            random.Random(place).shuffle(places)
        del places[self._shots :]
        kept, headed = self._fitting(question, [examples[place] for place in places])
        shown = tuple(places[place] for place in kept)
        content = self._content(question, [examples[place] for place in shown], headed)
        return Prompt(question, content, shown, (headed, shown))

    def _fitting(self, question: Question, examples: Sequence[Question]) -> tuple[list[int], bool]:
        """Say which examples stay, by their places, and whether the header does."""
        kept = list(range(len(examples)))
        shorten = "last" if self._chat else self._scheme.shorten
        if self._count is None or shorten == "none":
            return kept, True
        if shorten == "longest":
            return self._without_longest(question, examples)
        while (
            kept
            and self._count(self._content(question, [examples[place] for place in kept]))
            > self._max_length
        ):
            kept.pop()
        return kept, True

    def _without_longest(
        self, question: Question, examples: Sequence[Question]
    ) -> tuple[list[int], bool]:
        """Drop the longest examples, and the header where it alone is too much (CMMLU's rule).

        Its script encodes header, examples and question each for itself; so do we.
        """
        header = self._scheme.header.format(self._names[question.subject])
        fixed = self._count_text(header) + self._count_text(self._asked(question))
        if fixed > self._max_length:
            return [], False
        lengths = {
            place: self._count_text(self._example(example))
            for place, example in enumerate(examples)
        }
        while lengths and sum(lengths.values()) >= self._max_length - fixed:
            longest = max(lengths.values())
            lengths = {place: n for place, n in lengths.items() if n != longest}
        return list(lengths), True

    def _content(
        self, question: Question, examples: Sequence[Question], headed: bool = True
    ) -> Content:
        name = self._names[question.subject]
        header = self._scheme.header.format(name) if headed else ""
        if not self._chat:
            return header + "".join(map(self._example, examples)) + self._asked(question)
        messages: list[Message] = []
        for example in examples:
            assert example.answer is not None, "rows of dev have answers"
            messages.append({"role": "user", "content": self._asked(example)})
            messages.append({"role": "assistant", "content": example.answer})
        messages.append({"role": "user", "content": self._asked(question)})
        messages[0]["content"] = header + messages[0]["content"]
        return messages

    def _example(self, example: Question) -> str:
        scheme = self._scheme
        return f"{self._asked(example)}{scheme.space}{example.answer}{scheme.between}"

    def _asked(self, question: Question) -> str:
        choices = "".join(
            f"\n{letter}. {choice}"
            for letter, choice in zip(LETTERS, question.choices, strict=True)
        )
        return f"{self._scheme.before}{question.text}{choices}\n{self._scheme.ask}"
