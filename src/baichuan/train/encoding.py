"""From what is learned to ids and labels, within a length. Knows no file and no batch.

A label is the id that the model should give at the position before it; -100 is not learned. The
end marker is learned behind every answer, so that a trained model stops. In the chat format no
marker is read between an answer and the next question; there its label stands at the marker of
the next user's turn: seeing the answer's last token, the model learns to end, as it must, and what
it reads is exactly what it will read when it chats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baichuan.errors import DataError
from baichuan.train.collate import IGNORED
from baichuan.train.formats import Example
from baichuan.train.templates import Encoder, Template


@dataclass(frozen=True)
class Encoded:
    """One row.

    Attributes:
        ids: what is read.
        labels: of the same length.
        cut: whether something was left out for the length.
    """

    ids: list[int]
    labels: list[int]
    cut: bool = False


@dataclass(frozen=True)
class Encoding:
    """How examples are encoded.

    Attributes:
        tokenizer: makes ids of text.
        template: makes ids of a question.
        cutoff_len: most ids of a row, markers counted.
        train_on_prompt: learn questions too.
        mask_history: learn the last answer alone.
    """

    tokenizer: Encoder
    template: Template
    cutoff_len: int
    train_on_prompt: bool = False
    mask_history: bool = False

    def answers(self, example: Example) -> Encoded:
        """Encode a conversation whose answers are learned.

        One that is too long loses its last rounds, or its first ones if the last answer alone is
        learned; if a single round is too long, question and answer are cut.

        Raises:
            DataError: the limit leaves no room for anything that is learned.
        """
        encoded = self._last_answer(example) if self.mask_history else self._all_answers(example)
        if all(label == IGNORED for label in encoded.labels[1:]):  # nothing predicts the first one
            raise DataError(
                "none of its turns that are to be learned fits into {limit} tokens; raise "
                "--cutoff_len, or leave the row out.",
                limit=self.cutoff_len,
            )
        return encoded

    def _all_answers(self, example: Example) -> Encoded:
        learned = self._learned(example)
        turns = [self._turn(example, number) for number in range(len(example.rounds))]
        kept, used = 0, 1 - self.template.closes_each
        for question, answer in turns:
            used += len(question) + len(answer) + self.template.closes_each
            if used > self.cutoff_len:
                break
            kept += 1
        if not kept:
            return self._cut_round(example.system, *example.rounds[0], learned[:1])
        return self._joined(turns[:kept], learned, cut=kept < len(turns))

    def _last_answer(self, example: Example) -> Encoded:
        _, learned = self._learned(example)[-1]
        (encoded,) = self._last(example, (example.rounds[-1][1],), learned=learned)
        return encoded

    def _learned(self, example: Example) -> Sequence[tuple[bool, bool]]:
        """Return of each round whether question and answer are learned: as marked, else asked."""
        marks = example.marks or [(None, None)] * len(example.rounds)
        return [
            (self.train_on_prompt if asked is None else asked, said is not False)
            for asked, said in marks
        ]

    def preference(self, example: Example) -> tuple[Encoded, Encoded]:
        """Encode the better and the worse answer, each behind the same question.

        Raises:
            DataError: the limit leaves no room for anything.
        """
        better, worse = self._last(example, (example.chosen, example.rejected))
        return better, worse

    def text(self, text: str) -> Iterator[Encoded]:
        """Encode plain text with its end, in pieces that the limit allows; all of it is learned."""
        opening = [self.tokenizer.bos_token_id] if self.tokenizer.add_bos_token else []
        ids = [*opening, *self.tokenizer.encode_text(text), self.tokenizer.eos_token_id]
        pieces = -(-len(ids) // self.cutoff_len)
        size = -(-len(ids) // pieces)  # alike, lest the last one be a word without a context
        for start in range(0, len(ids), size):
            piece = ids[start : start + size]
            yield Encoded(piece, list(piece))

    def _turn(self, example: Example, number: int) -> tuple[list[int], list[int]]:
        """Encode a round by itself."""
        question, answer = example.rounds[number]
        system, first = example.system, number == 0
        return (
            self.template.question(self.tokenizer, question, system, first=first),
            self.tokenizer.encode_text(answer),
        )

    def _joined(
        self,
        turns: Sequence[tuple[list[int], list[int]]],
        learned: Sequence[tuple[bool, bool]],
        *,
        cut: bool,
    ) -> Encoded:
        """Join rounds; `learned` says of each whether question and answer are."""
        end = self.tokenizer.eos_token_id
        ids: list[int] = []
        labels: list[int] = []
        for number, (question, answer) in enumerate(turns):
            last = number == len(turns) - 1
            said = [*answer, *([end] if last or self.template.closes_each else [])]
            learns_question, learns_answer = learned[number]
            asked = list(question) if learns_question else [IGNORED] * len(question)
            if number and not self.template.closes_each:
                # The end of the answer before, which has no marker of its own.
                asked[0] = end if learned[number - 1][1] else IGNORED
            ids += [*question, *said]
            labels += [*asked, *(said if learns_answer else [IGNORED] * len(said))]
        return Encoded(ids, labels, cut)

    def _last(
        self, example: Example, answers: Sequence[str], *, learned: bool = True
    ) -> Iterator[Encoded]:
        """Encode each answer behind all rounds that fit; only the answer is learned."""
        said = [self.tokenizer.encode_text(answer) for answer in answers]
        longest = max(map(len, said))
        alone = [*[(False, False)] * (len(example.rounds) - 1), (False, learned)]
        for start in range(len(example.rounds)):
            rounds = Example(example.system, example.rounds[start:])
            turns = [self._turn(rounds, number) for number in range(len(rounds.rounds))]
            turns[-1] = (turns[-1][0], [])
            read = self._joined(turns, alone[start:], cut=start > 0)
            if len(read.ids) + longest <= self.cutoff_len:
                break
        else:
            yield from self._cut_last(example, said, alone[-1:])
            return
        for answer in said:
            whole = [*turns[:-1], (turns[-1][0], answer)]
            yield self._joined(whole, alone[start:], cut=start > 0)

    def _cut_last(
        self, example: Example, said: Sequence[list[int]], learned: Sequence[tuple[bool, bool]]
    ) -> Iterator[Encoded]:
        """Cut the last question, and the answers by the length of the longest."""
        asked, room = self._shortened(example.system, example.rounds[-1][0], max(map(len, said)))
        for answer in said:
            yield self._joined([(asked, answer[:room])], learned, cut=True)

    def _cut_round(
        self, system: str, question: str, answer: str, learned: Sequence[tuple[bool, bool]]
    ) -> Encoded:
        said = self.tokenizer.encode_text(answer)
        asked, room = self._shortened(system, question, len(said))
        return self._joined([(asked, said[:room])], learned, cut=True)

    def _shortened(self, system: str, question: str, answer: int) -> tuple[list[int], int]:
        """Encode as much of a question as its share allows; give also the answer's share.

        What needs less than half of the room is kept whole; else both lose in proportion. The
        beginning is kept, where instructions stand. Markers are put around what is left.
        """

        def encoded(text: str) -> list[int]:
            return self.template.question(self.tokenizer, text, system, first=True)

        text = self.tokenizer.encode_text(question)
        markers = len(encoded(""))
        room = self.cutoff_len - 1 - markers
        if room < 2:
            raise DataError(
                "its system text and the markers leave no room in {limit} tokens; raise "
                "--cutoff_len.",
                limit=self.cutoff_len,
            )
        share = _share(len(text), answer, room)
        asked = encoded(question)
        kept = min(share, len(text))
        while len(asked) > markers + share and kept:
            # Cut text may be cut into more pieces than it was part of.
            asked = encoded(self.tokenizer.decode(text[:kept]).rstrip("\ufffd"))
            kept -= 1
        return asked, self.cutoff_len - 1 - len(asked)


def _share(question: int, answer: int, room: int) -> int:
    """Say how many of `room` ids the question gets; at least one is left for the answer."""
    if 2 * answer < room:
        share = room - answer
    elif 2 * question < room:
        share = question
    else:
        share = room * question // (question + answer)
    return min(share, room - 1)
