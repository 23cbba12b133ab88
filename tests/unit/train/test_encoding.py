"""Ids and labels: what is read, what is learned, and what gives way to the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan.errors import DataError
from baichuan.model.prompt import encode_chat
from baichuan.train.encoding import Encoding
from baichuan.train.formats import Example
from baichuan.train.templates import TEMPLATES

U, A, END, X = 195, 196, 2, -100


class Letters:
    """A tokenizer that gives each character its code point."""

    add_bos_token = False
    bos_token_id = 1
    eos_token_id = END

    def encode_text(self, text: str, markers: tuple[int, ...] = ()) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


def encoding(template: str = "baichuan", limit: int = 100, **options: bool) -> Encoding:
    return Encoding(Letters(), TEMPLATES[template], limit, **options)


def ids(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_the_chat_format_reads_what_the_chat_will_read_and_learns_each_end():
    example = Example(system="s", rounds=(("q", "ab"), ("r", "c")))
    row = encoding().answers(example)
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "ab"},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "c"},
    ]
    assert row.ids == [*encode_chat(Letters(), messages), END]
    #         s  U  q  A  a, b         U    r  A  c         end
    assert row.labels == [X, X, X, X, *ids("ab"), END, X, X, *ids("c"), END]
    assert not row.cut


def test_questions_are_learned_too_if_asked_for():
    example = Example(rounds=(("q", "a"), ("r", "b")))
    row = encoding(train_on_prompt=True).answers(example)
    assert row.ids == [U, *ids("q"), A, *ids("a"), U, *ids("r"), A, *ids("b"), END]
    assert row.labels == [U, *ids("q"), A, *ids("a"), END, *ids("r"), A, *ids("b"), END]


def test_a_history_is_read_and_not_learned_if_asked_for():
    example = Example(rounds=(("q", "a"), ("r", "b")))
    row = encoding(mask_history=True).answers(example)
    assert row.ids == [U, *ids("q"), A, *ids("a"), U, *ids("r"), A, *ids("b"), END]
    assert row.labels == [X, X, X, X, X, X, X, *ids("b"), END]


N, F, T = None, False, True


@pytest.mark.parametrize(
    ("template", "options", "marks", "labels"),
    [
        # What is read: U q A a U r A b END in the chat's format, q a END r b END in vanilla.
        ("baichuan", {}, ((N, F), (N, N)), [X, X, X, X, X, X, X, *ids("b"), END]),
        ("baichuan", {}, ((N, N), (N, F)), [X, X, X, *ids("a"), END, X, X, X, X]),
        ("baichuan", {}, ((N, F), (T, T)), [X, X, X, X, X, *ids("r"), A, *ids("b"), END]),
        (
            "baichuan",
            {"train_on_prompt": True},
            ((F, F), (N, N)),
            [X, X, X, X, X, *ids("r"), A, *ids("b"), END],
        ),
        ("baichuan", {"mask_history": True}, ((T, T), (T, T)), [X] * 7 + [*ids("b"), END]),
        ("vanilla", {}, ((N, F), (N, N)), [X, X, X, X, *ids("b"), END]),
        ("vanilla", {}, ((N, T), (N, F)), [X, *ids("a"), END, X, X, X]),
    ],
)
def test_marked_turns_are_read_and_learned_as_they_say(template, options, marks, labels):
    example = Example(rounds=(("q", "a"), ("r", "b")), marks=marks)
    row = encoding(template, **options).answers(example)
    plain = encoding(template).answers(Example(rounds=example.rounds))
    assert (row.ids, row.labels) == (plain.ids, labels)


@pytest.mark.parametrize(
    ("marks", "options"),
    [
        (((N, F), (N, F)), {}),
        (((N, T), (N, F)), {"mask_history": True}),
        (((N, F), (N, T)), {"limit": 16}),  # the second round is cut
    ],
)
def test_a_row_of_which_nothing_is_learned_is_refused(marks, options):
    example = Example(rounds=(("q", "a"), ("r", "b" * 20)), marks=marks)
    with pytest.raises(DataError, match="none of its turns that are to be learned fits into"):
        encoding(**options).answers(example)


PREFIX = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def test_the_default_template_of_july_2023():
    example = Example(rounds=(("q", "a"), ("r", "b")))
    row = encoding("default2023", 300).answers(example)
    first, second = f"{PREFIX}\nHuman: q\nAssistant: ", "\nHuman: r\nAssistant: "
    assert row.ids == [*ids(first), *ids("a"), END, *ids(second), *ids("b"), END]
    assert row.labels == [X] * len(first) + [*ids("a"), END] + [X] * len(second) + [*ids("b"), END]


def test_a_system_text_stands_for_the_prefix_of_july_2023():
    row = encoding("default2023").answers(Example(system="S", rounds=(("q", "a"),)))
    assert row.ids == [*ids("S\nHuman: q\nAssistant: a"), END]


def test_vanilla_is_the_bare_text():
    row = encoding("vanilla").answers(Example(rounds=(("q", "a"), ("r", "b"))))
    assert row.ids == [*ids("qa"), END, *ids("rb"), END]
    assert row.labels == [X, *ids("a"), END, X, *ids("b"), END]


def test_a_tokenizer_that_begins_texts_does_so_in_words_only():
    tokenizer = Letters()
    tokenizer.add_bos_token = True
    row = Encoding(tokenizer, TEMPLATES["vanilla"], 100).answers(Example(rounds=(("q", "a"),)))
    assert row.ids == [1, *ids("qa"), END]


def test_a_long_conversation_loses_its_last_rounds_whole():
    example = Example(rounds=(("q", "a"), ("r", "b" * 20)))
    row = encoding(limit=16).answers(example)
    assert row.ids == [U, *ids("q"), A, *ids("a"), END]
    assert row.labels == [X, X, X, *ids("a"), END]
    assert row.cut


def test_a_long_history_loses_its_first_rounds_where_the_last_answer_counts():
    example = Example(system="s", rounds=(("q" * 20, "a"), ("r", "b"), ("t", "c")))
    row = encoding(limit=16, mask_history=True).answers(example)
    assert row.ids == [*ids("s"), U, *ids("r"), A, *ids("b"), U, *ids("t"), A, *ids("c"), END]
    assert row.cut


@pytest.mark.parametrize("template", TEMPLATES)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(220, 300))
def test_neither_markers_nor_the_end_are_ever_cut(template, question, answer, limit):
    example = Example(rounds=(("q" * 3 * question, "a" * 3 * answer),))
    row = encoding(template, limit).answers(example)
    whole = encoding(template, 10_000).answers(example)
    assert len(row.ids) == len(row.labels) == min(limit, len(whole.ids))
    assert row.ids[-1] == row.labels[-1] == END
    answer_ids = [label for label in row.labels if label not in (X, END)]
    assert answer_ids
    assert set(answer_ids) == {ord("a")}
    # What stands around the question is what stands around an empty one.
    around = TEMPLATES[template].question(Letters(), "", "", first=True)
    read = [i for i, label in zip(row.ids, row.labels, strict=True) if label == X]
    assert [i for i in read if i != ord("q")] == [i for i in around if i != ord("q")]


@pytest.mark.parametrize(
    ("question", "answer", "kept"),
    [
        (3, 40, (3, 13)),  # the question needs less than half, and stays whole
        (40, 3, (13, 3)),  # so does the answer
        (40, 40, (8, 8)),
        (30, 10, (12, 4)),
    ],
)
def test_question_and_answer_share_the_room(question, answer, kept):
    row = encoding(limit=19).answers(Example(rounds=(("q" * question, "a" * answer),)))
    assert (row.ids.count(ord("q")), row.ids.count(ord("a"))) == kept


def test_a_system_text_that_fills_the_row_is_refused():
    example = Example(system="s" * 50, rounds=(("q", "a"),))
    with pytest.raises(DataError, match="leave no room in 20 tokens; raise --cutoff_len"):
        encoding(limit=20).answers(example)


def test_preferences_read_the_same_and_learn_only_the_answer():
    example = Example(rounds=(("q", "a"), ("r", "")), chosen="bc", rejected="d")
    better, worse = encoding().preference(example)
    read = [U, *ids("q"), A, *ids("a"), U, *ids("r"), A]
    assert better.ids == [*read, *ids("bc"), END]
    assert better.labels == [X] * len(read) + [*ids("bc"), END]
    assert worse.ids == [*read, *ids("d"), END]
    assert worse.labels == [X] * len(read) + [*ids("d"), END]


def test_preferences_that_are_too_long_still_read_the_same():
    example = Example(rounds=(("q" * 30, ""),), chosen="b" * 30, rejected="c" * 10)
    better, worse = encoding(limit=20).preference(example)
    asked = better.ids[: better.ids.index(A) + 1]
    assert worse.ids[: len(asked)] == asked
    assert (len(better.ids), better.ids[-1], worse.ids[-1]) == (20, END, END)


def test_plain_text_is_learned_whole_with_its_end_in_pieces_alike():
    pieces = list(encoding(limit=16).text("a" * 39))
    assert [len(piece.ids) for piece in pieces] == [14, 14, 12]
    assert [i for piece in pieces for i in piece.ids] == [*ids("a" * 39), END]
    assert all(piece.labels == piece.ids for piece in pieces)


def test_cut_text_of_the_real_tokenizer_keeps_its_markers(tokenizer):
    example = Example(rounds=(("你好吗？天气 hello world 🙂" * 9, "很好 fine " * 30),))
    row = Encoding(tokenizer, TEMPLATES["baichuan"], 40).answers(example)
    assert len(row.ids) <= 40
    assert (row.ids[0], row.ids.count(A), row.ids[-1]) == (U, 1, END)
    assert row.cut
