"""Tools for a chat model of 2023: asked for in the prompt, found in the answer.

The model was not trained to call functions. It gets their description as a system text and answers
with JSON, which a grammar can enforce where a call is demanded. Knows the API's bodies only.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from typing import Any

from baichuan.errors import UsageError
from baichuan.serve.protocol import Message
from baichuan.serve.schema import CalledFunction, ChatBody, ChatMessage, NamedTool, Tool, ToolCall

_INSTRUCTIONS = """\
You can call functions. To call one, answer with one JSON object and nothing else:
{{"name": "<name of the function>", "arguments": {{<its arguments>}}}}
{duty}
Functions:
{functions}"""
_FREE = "If none is of use, answer as usual."
_MUST = "Call one now."
#: Chat models like to put code into a fence.
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
#: How an answer begins that may turn out to be a call.
_OPENINGS = ("{", "`")


def offered(body: ChatBody) -> list[Tool]:
    """Give the tools that the answer may call.

    Raises:
        UsageError: a tool is demanded that is not there.
    """
    choice, tools = body.tool_choice, body.tools or []
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    if not tools and choice not in (None, "auto"):
        raise UsageError("tool_choice asks for a function that is not among the tools; add it.")
    return tools


def demanded(body: ChatBody) -> bool:
    """Say whether the answer must be a call."""
    return body.tool_choice not in (None, "none", "auto")


def call_schema(tools: Sequence[Tool]) -> dict[str, Any]:
    """Give the JSON schema of a call of one of the tools."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": _arguments(number, tool.function.parameters or {}),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for number, tool in enumerate(tools)
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def _arguments(number: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a call's arguments: of its parameters, and an object.

    With an `$id`, the parameters stay a schema of their own, to which their `$ref`s refer.
    """
    return {"allOf": [{"$id": f"tool:{number}", **parameters}, {"type": "object"}]}


def conversation(
    messages: Sequence[ChatMessage], tools: Sequence[Tool], must: bool
) -> list[Message]:
    """Turn the API's messages into those that the model knows: system, user, assistant.

    Instructions for tools and the system messages at the beginning become one system text, a call
    becomes the JSON that it was, and a tool's result becomes what the user says next. A system
    message further on joins the user's turn beside it, or is one.
    """
    called = {call.id: call.function.name for m in messages for call in m.tool_calls or ()}
    turns = [_turn(message, called) for message in messages]
    heads = 0
    while heads < len(turns) and turns[heads]["role"] == "system":
        heads += 1
    system = [turn["content"] for turn in turns[:heads] if turn["content"]]
    if tools:
        system.append(_instructions(tools, must))
    head: list[Message] = [{"role": "system", "content": "\n".join(system)}] if system else []
    return [*head, *_without_system(turns[heads:])]


def _without_system(turns: Sequence[Message]) -> list[Message]:
    merged: list[Message] = []
    after_system = False
    for turn in turns:
        is_system = turn["role"] == "system"
        said = {**turn, "role": "user"} if is_system else turn
        if merged and merged[-1]["role"] == said["role"] == "user" and (is_system or after_system):
            said = {**said, "content": "\n".join([merged.pop()["content"], said["content"]])}
        merged.append(said)
        after_system = is_system
    return merged


def _turn(message: ChatMessage, called: dict[str, str]) -> Message:
    if message.role in ("system", "developer"):
        return {"role": "system", "content": message.text}
    if message.role == "tool":
        name = called.get(message.tool_call_id or "", "the function")
        return {"role": "user", "content": f"Result of {name}: {message.text}"}
    if message.role == "assistant":
        calls = [
            f'{{"name": {json.dumps(call.function.name)}, "arguments": {call.function.arguments}}}'
            for call in message.tool_calls or ()
        ]
        return {"role": "assistant", "content": "\n".join([*filter(None, [message.text]), *calls])}
    return {"role": "user", "content": message.text}


def _instructions(tools: Sequence[Tool], must: bool) -> str:
    lines = [
        json.dumps(tool.function.model_dump(exclude_none=True), ensure_ascii=False)
        for tool in tools
    ]
    return _INSTRUCTIONS.format(duty=_MUST if must else _FREE, functions="\n".join(lines))


def may_be_call(text: str) -> bool:
    """Say whether an answer that begins so may turn out to be a call."""
    start = text.lstrip()
    return not start or start.startswith(_OPENINGS)


def parse_call(text: str, tools: Sequence[Tool]) -> ToolCall | None:
    """Find the call that an answer is, if it is one and of these tools."""
    fenced = _FENCED.fullmatch(text.strip())
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    name, arguments = found.get("name"), found.get("arguments", {})
    if name not in [tool.function.name for tool in tools] or not isinstance(arguments, dict):
        return None
    function = CalledFunction(name=name, arguments=json.dumps(arguments, ensure_ascii=False))
    return ToolCall(id=f"call_{uuid.uuid4().hex[:24]}", function=function)
