"""Tools in the prompt and in the answer."""

import json

import pytest

from baichuan.checkpoint.load import DEMO
from baichuan.errors import UsageError
from baichuan.model.tokenizer import BaichuanTokenizer
from baichuan.serve.grammar import JsonGrammars, token_bytes
from baichuan.serve.schema import ChatBody, Tool
from baichuan.serve.tools import (
    call_schema,
    conversation,
    demanded,
    may_be_call,
    offered,
    parse_call,
)


def tool(name, **parameters):
    function = {"name": name, "description": f"what {name} does", "parameters": parameters or None}
    return Tool.model_validate({"type": "function", "function": function})


def body(messages=(("user", "hello"),), **rest):
    turns = [{"role": role, "content": text} for role, text in messages]
    return ChatBody.model_validate({"messages": turns, **rest})


TOOLS = [tool("add", type="object", properties={"a": {"type": "integer"}}), tool("now")]
DUMPED = [one.model_dump() for one in TOOLS]


@pytest.mark.parametrize(
    ("choice", "names", "must"),
    [
        (None, ["add", "now"], False),
        ("auto", ["add", "now"], False),
        ("none", [], False),
        ("required", ["add", "now"], True),
        ({"type": "function", "function": {"name": "now"}}, ["now"], True),
    ],
)
def test_choices(choice, names, must):
    asked = body(tools=DUMPED, tool_choice=choice)
    assert [one.function.name for one in offered(asked)] == names
    assert demanded(asked) == must


def test_a_tool_that_is_not_there_cannot_be_demanded():
    for choice in ("required", {"type": "function", "function": {"name": "other"}}):
        with pytest.raises(UsageError, match="not among the tools"):
            offered(body(tools=[] if choice == "required" else DUMPED, tool_choice=choice))


def test_the_schema_is_of_one_call():
    one, both = call_schema(TOOLS[:1]), call_schema(TOOLS)
    assert one["properties"]["name"] == {"const": "add"}
    assert [call["properties"]["name"]["const"] for call in both["anyOf"]] == ["add", "now"]


TOKENIZER = BaichuanTokenizer(str(DEMO / "tokenizer.model"))
TEXTS = token_bytes(TOKENIZER)


@pytest.fixture(scope="module")
def grammars():
    with JsonGrammars(TOKENIZER, len(TOKENIZER), (195, 196), 2) as grammars:
        yield grammars


def end_of(constraint, text):
    """Texts of the tokens that may follow `text`, b"" for the end; None if `text` cannot be."""
    rest = text.encode()
    while True:
        allowed = constraint.allowed().nonzero().flatten().tolist()
        if not rest:
            return {TEXTS[i] for i in allowed}
        fitting = [i for i in allowed if TEXTS[i] and rest.startswith(TEXTS[i])]
        if not fitting:
            return None
        token = max(fitting, key=lambda i: len(TEXTS[i]))
        constraint.accept(token)
        rest = rest[len(TEXTS[token]) :]


X = {"type": "object", "properties": {"x": {"const": 7}}, "required": ["x"]}
CLOSED_X = {**X, "additionalProperties": False}
LIST = {
    "type": "object",
    "properties": {"rest": {"anyOf": [{"const": 7}, {"$ref": "#"}]}},
    "required": ["rest"],
    "additionalProperties": False,
}


def holding(schema, place):
    properties = {"a": {"$ref": f"#/{place}/X"}}
    return {
        "type": "object",
        "properties": properties,
        "required": ["a"],
        place: {"X": schema},
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    ("parameters", "possible"),
    [
        (holding(CLOSED_X, "$defs"), [{"a": {"x": 7}}]),
        (holding(CLOSED_X, "definitions"), [{"a": {"x": 7}}]),
        ({"$ref": "#/$defs/X", "$defs": {"X": CLOSED_X}}, [{"x": 7}]),
        (LIST, [{"rest": 7}, {"rest": {"rest": 7}}, {"rest": {"rest": {"rest": 7}}}]),
        ({key: CLOSED_X[key] for key in CLOSED_X if key != "type"}, [{"x": 7}]),
        ({**CLOSED_X, "type": ["object", "null"]}, [{"x": 7}]),
        ({**holding(CLOSED_X, "$defs"), "$id": "https://example.com/own"}, [{"a": {"x": 7}}]),
    ],
    ids=["$defs", "definitions", "root reference", "#", "no type", "two types", "own $id"],
)
@pytest.mark.parametrize("others", [0, 1])
def test_references_are_to_the_parameters_and_arguments_are_an_object(
    grammars, parameters, possible, others
):
    tools = [tool("first", **LIST)] * others + [tool("f", **parameters)]
    make = grammars.constraint(call_schema(tools))
    for arguments in possible:
        text = json.dumps({"name": "f", "arguments": arguments})
        assert end_of(make(), text) == {b""}
        assert parse_call(text, tools).function.name == "f"
    assert {text[:1] for text in end_of(make(), '{"name": "f", "arguments": ')} == {b"{"}
    assert end_of(make(), '{"name": "f", "arguments": {"y') is None


def test_parameters_that_are_no_object_are_refused(grammars):
    with pytest.raises(UsageError, match="JSON schema cannot be used"):
        grammars.constraint(call_schema([tool("f", type="string")]))


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("su", "s u"),
        ("sdu", "s/d u"),
        ("uasu", "u a s/u"),
        ("uads", "u a d/s"),
        ("uaus", "u a u/s"),
        ("uas", "u a s"),
        ("usau", "u/s a u"),
        ("suadua", "s u a d/u a"),
        ("uu", "u u"),
    ],
)
def test_later_system_texts_join_the_user_beside_them(roles, expected):
    kinds = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}
    asked = body([(kinds[role], role) for role in roles])
    turns = conversation(asked.messages, [], False)
    assert " ".join(turn["content"].replace("\n", "/") for turn in turns) == expected
    assert {turn["role"] for turn in turns[1:]} <= {"user", "assistant"}
    assert turns[0]["role"] == ("system" if roles[0] in "sd" else "user")
    assert (turns[-1]["role"] == "assistant") == (roles[-1] == "a")


def test_parts_of_a_message_are_lines():
    parts = [{"type": "text", "text": text} for text in ("one", "two")]
    asked = ChatBody.model_validate({"messages": [{"role": "user", "content": parts}]})
    assert conversation(asked.messages, [], False) == [{"role": "user", "content": "one\ntwo"}]


def test_conversations_become_what_the_model_knows():
    asked = ChatBody.model_validate(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
                {"role": "user", "content": "1 + 2?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c1", "function": {"name": "add", "arguments": '{"a": 1}'}}
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "3"},
            ]
        }
    )
    assert conversation(asked.messages, [], False) == [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": '{"name": "add", "arguments": {"a": 1}}'},
        {"role": "user", "content": "Result of add: 3"},
    ]
    system = conversation(asked.messages, TOOLS, True)[0]["content"]
    assert system.startswith("Be brief.\nBe kind.\nYou can call functions.")
    for one in TOOLS:
        assert f"what {one.function.name} does" in system


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "add", "arguments": {"a": 1}}',
        ' \n{"arguments": {"a": 1}, "name": "add"}\n',
        '```json\n{"name": "add", "arguments": {"a": 1}}\n```',
    ],
)
def test_calls_are_found(text):
    assert all(may_be_call(text[:end]) for end in range(len(text)))
    call = parse_call(text, TOOLS)
    assert call.function.name == "add"
    assert json.loads(call.function.arguments) == {"a": 1}
    assert call.id != parse_call(text, TOOLS).id


@pytest.mark.parametrize(
    "text",
    [
        *("", "hello", '{"name": "add"', "[1]", "null", '{"name": "other", "arguments": {}}'),
        *('{"name": "add", "arguments": [1]}', '{"name": ["add"]}', "[" * 100_000),
    ],
)
def test_what_is_no_call_stays_text(text):
    assert parse_call(text, TOOLS) is None
