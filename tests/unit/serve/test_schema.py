"""What a body may hold: nulls, fields without effect, and fields that would have one."""

import pytest
from pydantic import ValidationError

from baichuan.serve.responses import Error, ErrorBody, event
from baichuan.serve.schema import Body, ChatBody, CompletionBody, TokenizeBody

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
TEXT = {"prompt": "hello"}
ROUTES = [(ChatBody, CHAT), (CompletionBody, TEXT)]


@pytest.mark.parametrize(("kind", "right"), [*ROUTES, (TokenizeBody, TEXT)])
def test_a_null_is_absent_in_every_field(kind, right):
    nulls = dict.fromkeys(kind.model_fields.keys() - right.keys())
    assert kind.model_validate({**nulls, **right}) == kind.model_validate(right)


def test_a_null_is_absent_in_every_part():
    call = {"id": "c", "function": {"name": "f", "arguments": "{}"}}
    schema = {"type": "object", "properties": {"a": {"default": None}}}
    body = {
        "messages": [
            {"role": "user", "content": "x", "tool_calls": None, "tool_call_id": None},
            {"role": "assistant", "content": None, "tool_calls": [{**call, "type": None}]},
        ],
        "stream_options": {"include_usage": None},
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "f",
                    "description": None,
                    "strict": None,
                    "parameters": schema,
                },
            }
        ],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
    }
    read = ChatBody.model_validate(body)
    assert read.stream_options.include_usage is False
    assert read.messages[1].tool_calls[0].type == "function"
    assert read.tools[0].function.parameters == schema, "the nulls of a schema are the schema's"
    assert read.response_format.json_schema.schema_ == schema


@pytest.mark.parametrize(("kind", "right"), ROUTES)
@pytest.mark.parametrize(
    "field",
    [
        *({"user": "me"}, {"metadata": {"a": "b"}}, {"store": True}, {"service_tier": "auto"}),
        *({"parallel_tool_calls": False}, {"cache_prompt": True}, {"stop": ""}, {"stop": [""]}),
        *({"best_of": 1}, {"ignore_eos": False}, {"min_tokens": 0}, {"logit_bias": {}}),
        *({"stop_token_ids": []}, {"skip_special_tokens": True}, {"use_beam_search": False}),
        {"stream_options": {"include_obfuscation": False}},
    ],
)
def test_what_changes_no_answer_is_taken(kind, right, field):
    assert kind.model_validate({**right, **field})


@pytest.mark.parametrize(("kind", "right"), ROUTES)
@pytest.mark.parametrize(
    "field",
    [
        *({"guided_json": {}}, {"guided_choice": ["a"]}, {"guided_regex": "a"}, {"grammar": "x"}),
        *({"json_schema": {}}, {"structured_outputs": {}}, {"regex": "a"}, {"ebnf": "a"}),
        *({"best_of": 2}, {"stop_token_ids": [5]}, {"min_tokens": 1}, {"ignore_eos": True}),
        *({"logit_bias": {"5": 1}}, {"bad_words": ["a"]}, {"use_beam_search": True}),
        *({"repeat_penalty": 1.2}, {"length_penalty": 2.0}, {"truncate_prompt_tokens": 5}),
        *({"include_stop_str_in_output": True}, {"skip_special_tokens": False}, {"mirostat": 2}),
        *({"n_predict": 5}, {"prompt_logprobs": 1}, {"temprature": 0.5}, {"chat_template": "x"}),
        {"response_format": {"type": "json_object"}},
    ],
)
def test_what_would_change_an_answer_is_refused(kind, right, field):
    if kind is ChatBody and "response_format" in field:
        field = {"response_format": {"type": "json_object", "schema": {"type": "object"}}}
    with pytest.raises(ValidationError):
        kind.model_validate({**right, **field})


@pytest.mark.parametrize(
    "field",
    [
        *({"modalities": ["text", "audio"]}, {"audio": {}}, {"reasoning_effort": "high"}),
        *({"functions": [{}]}, {"function_call": {"name": "f"}}, {"web_search_options": {}}),
        *({"chat_template_kwargs": {"a": 1}}, {"documents": [{}]}, {"echo": True}),
        {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
    ],
)
def test_what_would_change_a_chat_is_refused(field):
    with pytest.raises(ValidationError):
        ChatBody.model_validate({**CHAT, **field})


def test_messages_may_have_fields_of_other_servers():
    said = {"role": "assistant", "content": "x", "refusal": None, "annotations": [], "name": "a"}
    assert ChatBody.model_validate({"messages": [said]}).messages[0].text == "x"


def bodies(kind=Body):
    return [kind, *(found for child in kind.__subclasses__() for found in bodies(child))]


@pytest.mark.parametrize("kind", bodies(), ids=lambda kind: kind.__name__)
def test_the_documentation_allows_null_where_the_server_does(kind):
    schema = kind.model_json_schema()
    schema = schema.get("$defs", {}).get(kind.__name__, schema)
    for name, field in schema.get("properties", {}).items():
        nullable = {"type": "null"} in field.get("anyOf", ()) or name in kind.ignored
        assert nullable == (name not in schema.get("required", ())), name


def test_an_event_has_no_line_end_but_its_own():
    text = "a\u2028b\u2029c\x85d\r\n\x0b\x1c"
    content = ErrorBody(error=Error(message=text, type="x"))
    (line, *rest) = event(content).decode().splitlines()
    assert rest == [""]
    assert ErrorBody.model_validate_json(line.removeprefix("data: ")) == content
