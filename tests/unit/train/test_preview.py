"""What a person sees of a row."""

from __future__ import annotations

from baichuan.train.encoding import Encoding
from baichuan.train.formats import Example
from baichuan.train.packing import pack
from baichuan.train.preview import legend, rendered
from baichuan.train.templates import TEMPLATES

ROUNDS = (("hello", "你好"), ("q\n猫", "fine"))


def shown(tokenizer, row):
    """Give the texts without styles, and what is marked as learned or as an end."""
    texts = list(rendered(row, tokenizer, colours=True))
    marked = [
        (text.plain[span.start : span.end], "green" if "green" in str(span.style) else "red")
        for text in texts
        for span in text.spans
        if "green" in str(span.style) or "red" in str(span.style)
    ]
    return [text.plain for text in texts], marked


def row_of(tokenizer, rounds):
    row = Encoding(tokenizer, TEMPLATES["baichuan"], 200).answers(Example(rounds=rounds))
    return {"input_ids": row.ids, "labels": row.labels}


def test_tokens_and_what_is_learned(tokenizer):
    (count, text), marked = shown(tokenizer, row_of(tokenizer, ROUNDS))
    assert count.endswith(" learned")
    # A character that has no piece is shown itself, not its bytes; an end is shown where learned.
    assert text.replace(" ", "") == (
        "<reserved_102>hello<reserved_103>你好</s><reserved_102>q⏎\n猫<reserved_103>fine</s>"
    )
    assert "".join(part for part, colour in marked if colour == "green").split() == ["你好", "fine"]
    assert [part for part, colour in marked if colour == "red"] == ["</s>", "</s>"]


def test_what_is_learned_is_marked_where_there_are_no_colours(tokenizer):
    row = row_of(tokenizer, ROUNDS)
    count, text = (text.plain for text in rendered(row, tokenizer, colours=False))
    assert count.endswith(" learned")
    assert text.replace(" ", "") == (
        "<reserved_102>hello<reserved_103>⟦你好⟧⟨</s>⟩<reserved_102>q⏎\n猫<reserved_103>⟦fine⟧⟨</s>⟩"
    )
    assert legend(colours=False).plain == "read ⟦read and learned⟧ ⟨learned: here it ends⟩"


def test_marks_around_what_is_asked_and_around_all_text(tokenizer):
    asked = Encoding(tokenizer, TEMPLATES["vanilla"], 200, train_on_prompt=True)
    row = asked.answers(Example(rounds=(("hello", "fine"),)))
    (plain,) = asked.text("hello")
    for encoded, expected in ((row, "⟦hellofine⟧⟨</s>⟩"), (plain, "⟦hello⟧⟨</s>⟩")):
        ids = {"input_ids": encoded.ids, "labels": encoded.labels}
        _, text = rendered(ids, tokenizer, colours=False)
        assert text.plain.replace(" ", "") == expected


def test_segments_of_a_packed_row_stand_apart(tokenizer):
    rows = [row_of(tokenizer, (pair,)) for pair in ROUNDS]
    packed = pack({name: [row[name] for row in rows] for name in rows[0]}, 400)
    texts, _ = shown(tokenizer, {name: column[0] for name, column in packed.items()})
    assert len(texts) == 3
    assert "hello" in texts[1]
    assert "hello" not in texts[2]


def test_both_answers_of_a_preference(tokenizer):
    row = row_of(tokenizer, ROUNDS[:1])
    both = {f"{side}_{name}": ids for side in ("chosen", "rejected") for name, ids in row.items()}
    texts, _ = shown(tokenizer, both)
    assert [text.split(":")[0] for text in texts[::2]] == ["chosen", "rejected"]
