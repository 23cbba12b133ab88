"""Text as it arrives: whole characters only, and together exactly the whole text."""

from pathlib import Path

import pytest
import sentencepiece
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from baichuan.engine.detokenize import IncrementalDetokenizer, StopStrings
from baichuan.model.tokenizer import BaichuanTokenizer

VOCABULARY = Path(__file__).parents[2] / "data" / "tokenizer" / "tokenizer.model"
PLAIN = sentencepiece.SentencePieceProcessor(model_file=str(VOCABULARY))
OURS = BaichuanTokenizer(str(VOCABULARY))
FIRST_BYTE = 393

TEXT = "Hello, 世界！ 👩🏽‍🚀 naïve 𠮷野家\n\tdef f(x): return x  # 好"


def without_special(ids):
    return OURS.decode(ids, skip_special_tokens=True)


def byte_tokens(data):
    return [FIRST_BYTE + byte for byte in data]


def pieces(ids, decode=PLAIN.decode, context=()):
    detokenizer = IncrementalDetokenizer(decode, context)
    return [*(detokenizer.push(i) for i in ids), detokenizer.finish()]


ids_of_text = st.text(max_size=6).map(PLAIN.encode)
any_bytes = st.binary(max_size=6).map(byte_tokens)
characters = st.text(max_size=4).map(lambda text: byte_tokens(text.encode()))
any_tokens = st.lists(st.integers(0, PLAIN.vocab_size() - 1), max_size=5)
streams = st.lists(st.one_of(ids_of_text, any_bytes, characters, any_tokens), max_size=8).map(
    lambda parts: [i for part in parts for i in part]
)


@pytest.mark.parametrize("decode", [PLAIN.decode, without_special], ids=["plain", "ours"])
@settings(max_examples=300)
@given(ids=streams)
@example(ids=byte_tokens(b"\xff\xff\xff\xf0\x9f\x98\x80"))
@example(ids=byte_tokens(b"\xff\xff\xff\xff\xe4\xbd\xa0"))
@example(ids=byte_tokens("\ufffd".encode() * 5 + "你".encode()))
@example(ids=[1, *PLAIN.encode("a b"), 2, *PLAIN.encode("c")])
def test_pieces_join_to_the_whole_text(decode, ids):
    assert "".join(pieces(ids, decode)) == decode(ids)


@pytest.mark.parametrize("decode", [PLAIN.decode, OURS.decode_text], ids=["plain", "ours"])
@settings(max_examples=300)
@given(context=streams, ids=streams)
@example(context=PLAIN.encode("France is"), ids=PLAIN.encode("Paris"))
@example(context=byte_tokens("a\ufffd".encode()), ids=byte_tokens(b"b"))
@example(context=PLAIN.encode("a b "), ids=PLAIN.encode(" "))
@example(context=[1], ids=PLAIN.encode("a"))
def test_an_answer_is_what_it_adds_to_its_context(decode, context, ids):
    before, whole = decode(context), decode([*context, *ids])
    assume(whole.startswith(before))  # not where the answer finishes a character
    assert "".join(pieces(ids, decode, context)) == whole[len(before) :]


@pytest.mark.parametrize("cut", [1, 2])
def test_an_answer_may_finish_a_character_of_its_context(cut):
    character = byte_tokens("好".encode())
    context = [*PLAIN.encode("a"), *character[:cut]]
    assert "".join(pieces([*character[cut:], *byte_tokens(b"b")], context=context)) == "好b"
    assert "".join(pieces(byte_tokens(b"b"), context=context)) == "b"


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_no_character_is_ever_broken(text):
    ids = byte_tokens(text.replace("\ufffd", "").encode())
    given_out = pieces(ids)
    assert not any("\ufffd" in piece for piece in given_out)
    assert "".join(given_out) == PLAIN.decode(ids)


def test_text_comes_as_soon_as_it_is_certain():
    ids = PLAIN.encode(TEXT)
    detokenizer, text = IncrementalDetokenizer(PLAIN.decode), ""
    for count, token in enumerate(ids, 1):
        text += detokenizer.push(token)
        assert text == PLAIN.decode(ids[:count]).rstrip("\ufffd")
    assert detokenizer.finish() == ""


def test_an_unfinished_character_is_flushed_once():
    detokenizer = IncrementalDetokenizer(PLAIN.decode)
    assert [detokenizer.push(i) for i in byte_tokens("好".encode()[:2])] == ["", ""]
    assert detokenizer.finish() == PLAIN.decode(byte_tokens("好".encode()[:2]))
    assert detokenizer.finish() == ""


def test_a_real_replacement_character_is_text():
    assert pieces(byte_tokens("a\ufffdb".encode())) == ["a", "", "", "", "\ufffdb", ""]
    assert "".join(pieces(byte_tokens("a\ufffd".encode()))) == "a\ufffd"


@pytest.mark.parametrize("length", [50, 400])
def test_the_cost_of_a_token_does_not_grow(length):
    longest = 0

    def decode(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return PLAIN.decode(ids)

    pieces((PLAIN.encode(TEXT) * 20)[:length], decode)
    assert longest <= 16


texts = st.text(alphabet="ab好", max_size=12)
stop_lists = st.lists(st.text(alphabet="ab好", min_size=1, max_size=4), max_size=3)


@settings(max_examples=300)
@given(parts=st.lists(texts, max_size=8), stops=stop_lists)
def test_stop_strings_end_the_text_however_it_is_cut(parts, stops):
    stopper, out, met = StopStrings(stops), "", False
    for part in parts:
        piece, met = stopper.push(part)
        out += piece
        if met:
            break
    else:
        out += stopper.finish()
    whole = "".join(parts)
    for end in range(len(whole) + 1):
        places = [end - len(stop) for stop in stops if whole[:end].endswith(stop)]
        if places:
            assert (out, met) == (whole[: min(places)], True)
            return
    assert (out, met) == (whole, False)


def test_only_what_may_become_a_stop_string_is_held_back():
    stopper = StopStrings(["END"])
    assert stopper.push("the E") == ("the ", False)
    assert stopper.push("N") == ("", False)
    assert stopper.push("G") == ("ENG", False)
    assert stopper.push("E") == ("", False)
    assert stopper.finish() == "E"
    assert stopper.finish() == ""
