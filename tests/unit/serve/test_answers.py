"""From pieces to responses: a stream and a whole answer say the same."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan.serve.answers import (
    Tally,
    chat_chunks,
    chat_completion,
    completion,
    completion_chunks,
    heading,
)
from baichuan.serve.protocol import Piece, TokenLogprob
from baichuan.serve.schema import Tool

TOOL = Tool.model_validate({"type": "function", "function": {"name": "f"}})
HEAD = heading("chatcmpl", "m")


def bytes_of(text):
    return text.encode("utf-8", "surrogateescape")


def pieces_of(*texts, index=0, reason="stop"):
    """One piece for each text, each with a logprob whose token is the text."""
    for number, text in enumerate(texts, 1):
        yield Piece(
            index=index,
            text=text,
            finish_reason=reason if number == len(texts) else None,
            prompt_tokens=7,
            cached_tokens=3,
            completion_tokens=number,
            logprob=TokenLogprob(
                text.encode("utf-8", "surrogateescape"),
                -1.0,
                [(b"\xe4", -2.0), (b"\xe4\xb8", -3.0)],
            ),
        )


async def stream(pieces):
    for piece in pieces:
        yield piece


def collect(chunks):
    async def main():
        return [chunk async for chunk in chunks]

    return asyncio.run(main())


def said(chunks, index=0):
    """Join a chat stream: text, names of tools called, reasons, logprobs."""
    choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
    return (
        "".join(choice.delta.content or "" for choice in choices),
        [call.function.name for choice in choices for call in choice.delta.tool_calls or ()],
        [choice.finish_reason for choice in choices if choice.finish_reason],
        sum(len(choice.logprobs.content) for choice in choices if choice.logprobs),
    )


CALL = '{"name": "f", "arguments": {}}'


@given(
    st.lists(st.sampled_from(["", " ", "{", "`", "a", CALL, "}"]), min_size=1, max_size=6),
    st.sampled_from(["stop", "length"]),
    st.booleans(),
)
def test_a_stream_says_what_the_whole_says(texts, reason, with_tools):
    tools = [TOOL] if with_tools else []
    tallies = [Tally(1), Tally(1)]
    chunks = collect(chat_chunks(HEAD, stream(pieces_of(*texts, reason=reason)), tallies[0], tools))
    whole = asyncio.run(
        chat_completion(HEAD, stream(pieces_of(*texts, reason=reason)), tallies[1], tools)
    )
    (choice,) = whole.choices
    calls = [call.function.name for call in choice.message.tool_calls or ()]
    assert said(chunks) == (
        choice.message.content or "",
        calls,
        [choice.finish_reason],
        len(choice.logprobs.content),
    )
    is_call = with_tools and reason == "stop" and "".join(texts).strip() == CALL
    assert calls == (["f"] if is_call else [])
    assert tallies[0].usage == tallies[1].usage == whole.usage
    assert chunks[0].choices[0].delta.role == "assistant"


def test_text_is_not_held_back_where_no_call_can_come():
    pieces = stream(pieces_of("he", "llo", "{"))
    chunks = collect(chat_chunks(HEAD, pieces, Tally(1), [TOOL]))
    assert [c.choices[0].delta.content for c in chunks] == ["", "he", "llo", "{", None]


def test_answers_side_by_side_stay_apart_and_share_their_prompt():
    (a, b), (c, d) = pieces_of("a", "b"), pieces_of("c", "d", index=1)
    mixed = [a, c, b, d]
    tally = Tally(2)
    chunks = collect(chat_chunks(HEAD, stream(mixed), tally, []))
    assert said(chunks)[0] == "ab"
    assert said(chunks, 1)[0] == "cd"
    assert (tally.usage.prompt_tokens, tally.usage.completion_tokens) == (7, 4)
    assert tally.usage.prompt_tokens_details.cached_tokens == 3
    apart = Tally(1)
    collect(chat_chunks(HEAD, stream(mixed), apart, []))
    assert apart.usage.prompt_tokens == 14, "two prompts"


def test_completions_with_echo_and_logprobs():
    whole = asyncio.run(completion(HEAD, stream(pieces_of("ab", "c")), Tally(1), ["echo "]))
    chunks = collect(completion_chunks(HEAD, stream(pieces_of("ab", "c")), Tally(1), ["echo "]))
    assert whole.choices[0].text == "".join(c.choices[0].text for c in chunks) == "echo abc"
    assert whole.choices[0].logprobs.text_offset == [5, 7]
    assert [c.choices[0].logprobs.text_offset for c in chunks] == [[5], [7]]
    # Two tokens that are parts of one character must not become the same key.
    assert whole.choices[0].logprobs.top_logprobs[0] == {
        "bytes:\\xe4": -2.0,
        "bytes:\\xe4\\xb8": -3.0,
    }


def test_an_offset_counts_characters_of_the_text_not_of_the_names_of_bytes():
    parts = [
        *(bytes([byte]).decode("utf-8", "surrogateescape") for byte in "中".encode()),
        "a",
        "b",
    ]
    whole = asyncio.run(completion(HEAD, stream(pieces_of(*parts)), Tally(1), [">"]))
    assert whole.choices[0].logprobs.tokens[0] == "bytes:\\xe4"
    assert whole.choices[0].logprobs.text_offset == [1, 1, 1, 2, 3]
    chunks = collect(completion_chunks(HEAD, stream(pieces_of("a", *parts)), Tally(1), [""]))
    assert [c.choices[0].logprobs.text_offset for c in chunks] == [[0], [1], [1], [1], [2], [3]]


@pytest.mark.parametrize("kind", ["chatcmpl", "cmpl"])
def test_every_response_has_an_id_of_its_own(kind):
    assert heading(kind, "m")["id"] != heading(kind, "m")["id"]
