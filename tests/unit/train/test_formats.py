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
    ("row", "columns"),
    [
        ({"text": "t"}, {}),
        ({"content": "t"}, {"prompt": "content"}),
        ({"content": "t", "text": "title"}, {"prompt": "content"}),
        ({"body": "t", "content": "title", "text": ""}, {"text": "body", "prompt": "content"}),
    ],
)
def test_plain_text(row, columns):
    assert read(row, Layout(columns=columns), "pt") == Example(text="t")


ALPACA = {
    "instruction": "usual question",
    "input": "q",
    "output": "a",
    "system": "usual system",
    "history": [["x", "y"]],
    "chosen": "good",
    "rejected": "bad",
    "kto_tag": False,
    "images": ["a.png"],
}


@pytest.mark.parametrize(
    ("columns", "stage", "expected"),
    [
        ({"prompt": "input", "response": "output"}, "sft", Example(rounds=(("q", "a"),))),
        (
            {"prompt": "input", "response": "output", "history": "history"},
            "sft",
            Example(rounds=(("x", "y"), ("q", "a"))),
        ),
        (
            {"prompt": "input", "chosen": "chosen", "rejected": "rejected"},
            "dpo",
            Example(rounds=(("q", ""),), chosen="good", rejected="bad"),
        ),
        ({"prompt": "input"}, "pt", Example(text="q")),
    ],
)
def test_once_columns_are_named_no_other_is_read(columns, stage, expected):
    assert read(ALPACA, Layout(columns=columns), stage) == expected
    assert read(ALPACA, Layout("alpaca", columns=columns), stage) == expected


@pytest.mark.parametrize("formatting", [None, "sharegpt"])
def test_once_columns_are_named_no_other_is_read_beside_a_conversation(formatting):
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    row = {**ALPACA, "conversations": turns[:1], "talk": turns}
    layout = Layout(formatting, columns={"messages": "talk"})
    assert sft(row, layout) == Example(rounds=(("q", "a"),))
    layout = Layout(formatting, columns={"messages": "talk", "system": "system"})
    assert sft(row, layout) == Example("usual system", (("q", "a"),))


def test_named_columns_choose_the_layout_and_turns_the_keys():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"messages": turns, "instruction": "r", "output": "b"}
    alpaca = Layout(columns={"prompt": "instruction", "response": "output"})
    assert sft(row, alpaca) == Example(rounds=(("r", "b"),))
    named = Layout(columns={"messages": "messages"})
    assert sft(row, named) == sft({"conversations": turns}) == Example(rounds=(("q", "a"),))


def test_once_tags_are_named_no_other_role_is_read():
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    row = {
        "conversations": [
            {"from": "system", "value": "s"},
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "a"},
        ]
    }
    assert sft(row, Layout("sharegpt")).system == "s"
    with pytest.raises(DataError, match="said by 'system'; it must be one of human, gpt"):
        sft(row, Layout("sharegpt", tags=tags))


@pytest.mark.parametrize(
    ("columns", "stage", "problem"),
    [
        ({"prompt": "instruction"}, "sft", "no 'response', and only the columns named there"),
        ({"query": "input", "response": "output"}, "sft", "'columns' .* has no 'prompt'"),
        ({"prompt": "instruction"}, "dpo", "has no 'chosen'"),
        ({"system": "system"}, "pt", "has no 'prompt'"),
    ],
)
def test_columns_that_are_needed_must_be_named(columns, stage, problem):
    with pytest.raises(DataError, match=problem):
        read(ALPACA, Layout(columns=columns), stage)


def test_plain_text_is_not_taken_from_an_instruction():
    with pytest.raises(DataError, match="it has no 'text'; its columns are instruction, output"):
        read({"instruction": "q", "output": "a"}, PLAIN, "pt")


def marked(*marks: dict[str, object], roles: tuple[str, ...] = ("user", "assistant") * 2):
    return [
        {"role": role, "content": text, **mark}
        for role, text, mark in zip(roles, "qarb", [*marks, {}, {}, {}, {}], strict=False)
    ]


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([{}, {"weight": 0}], ((None, False), (None, None))),
        ([{}, {"weight": 0.0}, {}, {"weight": 1}], ((None, False), (None, True))),
        ([{}, {"loss": False}], ((None, False), (None, None))),
        ([{"train": False}, {"train": True}], ((False, True), (None, None))),
        ([{"loss": True}, {"loss": None}], ((True, None), (None, None))),
        ([{}, {"weight": 1, "train": False}], ((None, False), (None, None))),
        ([{}, {"weight": None, "loss": None}], ()),
    ],
)
def test_turns_say_whether_they_are_learned(marks, expected):
    turns = marked(*marks)
    assert sft({"messages": turns}) == Example(rounds=(("q", "a"), ("r", "b")), marks=expected)
    renamed = [
        {
            "from": {"user": "human"}.get(turn.pop("role"), "gpt"),
            "value": turn.pop("content"),
            **turn,
        }
        for turn in turns
    ]
    assert sft({"conversations": renamed}).marks == expected


def test_a_system_text_is_marked_with_the_first_question():
    roles = ("system", "user", "assistant")
    row = {"messages": marked({"loss": False}, {}, {"loss": True}, roles=roles)}
    assert sft(row).marks == ((False, True),)
    row = {"messages": marked({"loss": False}, {"loss": True}, roles=roles)}
    with pytest.raises(DataError, match="the system text is marked False, the first question True"):
        sft(row)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": marked({}, {"weight": 0.5})}, r"'messages\[1\].weight' is 0.5; allowed is 0"),
        ({"messages": marked({}, {"loss": "no"})}, r"'messages\[1\].loss' is 'no'"),
        (
            {"messages": marked({}, {"tool_calls": [{"id": 1}]})},
            r"'messages\[1\].tool_calls' is .*; tool_calls is not supported in training",
        ),
        ({"messages": marked({"images": ["a"]})}, r"'messages\[0\].images'"),
        ({"messages": marked(), "tools": "[{}]"}, "its 'tools' is .* is not supported in training"),
        ({"instruction": "q", "output": "a", "kto_tag": False}, "its 'kto_tag' is False"),
        ({"instruction": "q", "output": "a", "image": {"bytes": b"x"}}, "its 'image' is"),
        ({"instruction": "<image>\nWho?", "output": "a"}, "'instruction' holds '<image>'"),
        ({"instruction": "Who?", "input": "see <audio>", "output": "a"}, "'input' holds '<audio>'"),
        (
            {"instruction": "q", "output": "a", "history": [["<video>Why?", "b"]]},
            r"'history\[0\]\[0\]' holds '<video>'",
        ),
        (
            {"conversations": [{"from": "human", "value": "Who? <image>\n"}]},
            r"'conversations\[0\].value' holds '<image>'",
        ),
    ],
)
def test_what_is_not_learned_from_is_refused(row, problem):
    with pytest.raises(DataError, match=problem):
        sft(row)


@pytest.mark.parametrize(
    "more",
    [{"tools": ""}, {"tools": "[]", "images": []}, {"videos": None, "id": 7, "weight": "9 kg"}],
)
def test_what_says_nothing_is_passed_over(more):
    row = {"instruction": "Use <video> for it?", "output": "<image> is SVG's", **more}
    assert sft(row) == Example(rounds=(("Use <video> for it?", "<image> is SVG's"),))


def test_columns_that_are_not_supported_are_refused_under_any_name():
    row = {"talk": marked(), "label": True}
    layout = Layout(columns={"messages": "talk", "kto_tag": "label"})
    with pytest.raises(DataError, match="its 'label' is True; kto_tag is not supported"):
        sft(row, layout)


def test_an_answer_that_is_not_to_be_learned_is_no_preference():
    row = {
        "messages": marked()[:1],
        "chosen": {"role": "assistant", "content": "a", "weight": 0},
        "rejected": "b",
    }
    with pytest.raises(DataError, match="'chosen' is marked as not to be learned"):
        read(row, PLAIN, "dpo")


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
