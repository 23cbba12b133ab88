"""Rows in each layout, and what is said of broken ones."""

from __future__ import annotations

import pytest

from baichuan.errors import DataError
from baichuan.train.formats import Example, read
from baichuan.train.registry import Layout

PLAIN = Layout()


def sft(row: object, layout: Layout = PLAIN) -> Example:
    return read(row, layout, "sft")


def test_instruction_and_input_are_joined_by_a_line_end():
    row = {"instruction": "Translate.", "input": "你好", "output": "hello"}
    assert sft(row) == Example(rounds=(("Translate.\n你好", "hello"),))


@pytest.mark.parametrize("nothing", [{}, {"input": ""}, {"input": None, "history": None}])
def test_what_an_alpaca_row_may_lack(nothing):
    row = {"instruction": "q", "output": "a", **nothing}
    assert sft(row) == Example(rounds=(("q", "a"),))


def test_history_and_system_of_alpaca():
    row = {"instruction": "r", "output": "b", "history": [["q", "a"]], "system": "s"}
    assert sft(row) == Example("s", (("q", "a"), ("r", "b")))


CONVERSATION = Example("s", (("q", "a"), ("r", "b")))


def test_openai_messages():
    roles = ("system", "user", "assistant", "user", "assistant")
    row = {
        "messages": [
            {"role": role, "content": text} for role, text in zip(roles, "sqarb", strict=True)
        ]
    }
    assert sft(row) == CONVERSATION


def test_sharegpt_conversations_with_the_system_text_beside_them():
    turns = [
        {"from": who, "value": text} for who, text in zip(["human", "gpt"] * 2, "qarb", strict=True)
    ]
    assert sft({"conversations": turns, "system": "s"}) == CONVERSATION


def test_columns_and_tags_of_the_registry():
    layout = Layout(
        "sharegpt",
        columns={"messages": "talk"},
        tags={"role_tag": "who", "content_tag": "said", "user_tag": "U", "assistant_tag": "A"},
    )
    row = {"talk": [{"who": "U", "said": "q"}, {"who": "A", "said": "a"}]}
    assert sft(row, layout) == Example(rounds=(("q", "a"),))
    layout = Layout("alpaca", columns={"prompt": "question", "response": "answer"})
    assert sft({"question": "q", "answer": "a"}, layout) == Example(rounds=(("q", "a"),))


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "chosen": "good", "rejected": "bad"},
        {"instruction": "q", "output": ["good", "bad"]},
        {"messages": [{"role": "user", "content": "q"}], "chosen": "good", "rejected": "bad"},
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": [{"from": "gpt", "value": "bad"}],
        },
    ],
)
def test_preferences(row):
    expected = Example(rounds=(("q", ""),), chosen="good", rejected="bad")
    assert read(row, PLAIN, "dpo") == expected


@pytest.mark.parametrize(
    ("row", "columns"), [({"text": "t"}, {}), ({"content": "t"}, {"prompt": "content"})]
)
def test_plain_text(row, columns):
    assert read(row, Layout(columns=columns), "pt") == Example(text="t")


USER = {"role": "user", "content": "q"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (5, "it is 5, not an object of columns"),
        ({None: ["x"], "instruction": "q"}, "it has more columns than the header"),
        ({"instruction": "q"}, "it has no 'output'; its columns are instruction"),
        ({"instruction": 3, "output": "a"}, "'instruction' is 3; it must be text"),
        ({"instruction": "q", "output": None}, "'output' is None; it must be text"),
        ({"instruction": "q", "output": " "}, "'output' is empty"),
        ({"instruction": "q", "input": 1, "output": "a"}, "'input' is 1; it must be text"),
        ({"instruction": "q\ud800", "output": "a"}, "half a character .* at 1"),
        (
            {"instruction": "q", "output": "a", "history": [["x"]]},
            r"'history\[0\]' is \['x'\]; it must be two texts",
        ),
        (
            {"instruction": "q", "output": "a", "history": "x"},
            "'history' is 'x'; it must be a list",
        ),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": "x"}, "'messages' is 'x'; it must be a list"),
        ({"messages": ["x"]}, r"'messages\[0\]' is 'x'; it needs the keys 'role' and 'content'"),
        ({"messages": [USER]}, "does not end with an answer"),
        ({"messages": [USER, USER]}, "turn 2 of 'messages' is the user's; users and assistants"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "is said by 'tool'; it must be one of user, assistant, system",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": None}]},
            r"'messages\[1\].content' is None; it must be text",
        ),
    ],
)
def test_broken_rows_say_what_is_wrong(row, problem):
    with pytest.raises(DataError, match=problem):
        sft(row)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"instruction": "q", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"instruction": "q", "output": ["a"]}, "it must be two texts"),
        ({"instruction": "q", "chosen": "a"}, "it has no 'rejected'"),
        (
            {
                "messages": [USER, {"role": "assistant", "content": "a"}],
                "chosen": "a",
                "rejected": "b",
            },
            "'messages' must end with the user",
        ),
    ],
)
def test_broken_preferences(row, problem):
    with pytest.raises(DataError, match=problem):
        read(row, PLAIN, "dpo")
