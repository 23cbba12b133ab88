"""Tools in the prompt and in the answer."""

import json

import pytest

from baichuan.errors import UsageError
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
    assert one["properties"]["arguments"] == TOOLS[0].function.parameters
    assert both == {"anyOf": [one, call_schema(TOOLS[1:])]}


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
