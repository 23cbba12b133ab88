"""The model process's part, here without a process: calls in, replies out."""

import queue

import pytest
import torch

import baichuan
from baichuan.serve.protocol import Cancel, Count, Counts, Encode, Encoded, Failure, Job, Piece
from baichuan.serve.worker import Worker, failure

QUESTION = [{"role": "user", "content": "世界上第二高的山峰是哪座"}]


@pytest.fixture(scope="module")
def demo():
    return baichuan.load()


@pytest.fixture
def replies():
    return queue.Queue()


@pytest.fixture
def sender(replies):
    return lambda together: [replies.put(reply) for reply in together]


@pytest.fixture
def worker(demo, sender):
    with Worker(*demo, sender, 4, 2, cache_tokens=4096) as worker:
        yield worker


def answers(replies, number, count):
    """Wait until `count` answers have ended; give their texts, and the last piece of each."""
    texts, last = [""] * count, [None] * count
    while not all(piece is not None and piece.finish_reason for piece in last):
        came, piece = replies.get(timeout=60)
        assert came == number
        assert isinstance(piece, Piece), piece
        texts[piece.index] += piece.text
        last[piece.index] = piece
    return texts, last


def test_answers_to_conversations_texts_and_ids(worker, replies, demo):
    model, tokenizer = demo
    text = "世界上第二高的"
    prompts = [QUESTION, text, tokenizer.encode(text)]
    worker.handle(5, Job(prompts, settings={"max_tokens": 9}))
    texts, last = answers(replies, 5, 3)
    assert model.chat(tokenizer, QUESTION).startswith(texts[0])
    assert texts[1] == texts[2]
    assert [piece.finish_reason for piece in last] == ["length", "stop", "stop"]
    assert last[2].prompt_tokens == len(prompts[2])


def test_several_answers_have_several_seeds(worker, replies):
    job = Job([QUESTION], 3, {"temperature": 5.0, "seed": 2**63 - 1, "max_tokens": 12})
    texts = []
    for number in range(2):
        worker.handle(number, job)
        texts.append(answers(replies, number, 3)[0])
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3


def test_pieces_of_one_pass_are_sent_together(demo):
    sent = queue.Queue()
    with Worker(*demo, sent.put, 4, 2, cache_tokens=4096) as worker:
        worker.handle(0, Job([QUESTION], 4, {"temperature": 9.0, "seed": 1, "max_tokens": 40}))
        together = []
        while sum(map(len, together)) < 4 * 40:
            together.append([piece.index for _, piece in sent.get(timeout=60)])
    assert [0, 1, 2, 3] in together
    assert all(len(set(indices)) == len(indices) for indices in together)


@pytest.mark.parametrize("speculate", [None, True])
def test_a_draft_changes_no_answer(worker, replies, demo, sender, speculate):
    job = Job([QUESTION, "世界上"], 2, {"temperature": 0.7, "seed": 3, "max_tokens": 30})
    worker.handle(0, job)
    plain, _ = answers(replies, 0, 4)
    with Worker(*demo, sender, 4, 2, 4096, speculate, draft=demo[0]) as drafted:
        drafted.handle(1, job)
        assert answers(replies, 1, 4)[0] == plain


def test_answers_follow_a_schema_and_end_with_it(worker, replies):
    worker.handle(0, Job([QUESTION], schema={"const": {"a": [1, "二"]}}))
    texts, last = answers(replies, 0, 1)
    assert texts == ['{"a": [1, "二"]}']
    assert last[0].finish_reason == "stop"


@pytest.fixture
def damaged(sender):
    """A worker whose network has eight logits more than there are tokens; and its output layer."""
    model, tokenizer = baichuan.load()
    model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    with Worker(model, tokenizer, sender, 4, 2, cache_tokens=4096) as worker:
        yield worker, model.lm_head.weight


def test_ids_that_no_token_has_are_not_answered(damaged, replies, demo):
    worker, weights = damaged
    with torch.no_grad():
        weights[-8:] = 100 * weights[:-8].abs().max()
        weights[-4:] *= -1
    expected = demo[0].chat(demo[1], QUESTION)
    prompts = [QUESTION, [5, weights.shape[0] - 1]]
    for number, temperature in enumerate((0, 0.01)):
        settings = {"temperature": temperature, "seed": 1, "max_tokens": 40}
        worker.handle(number, Job(prompts, settings=settings))
        texts, last = answers(replies, number, 2)
        assert texts[0] == expected
        assert last[0].finish_reason == "stop"


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_a_fault_of_the_server(damaged, replies, temperature, value):
    worker, weights = damaged
    with torch.no_grad():
        weights[300] = value
    worker.handle(0, Job([QUESTION], settings={"temperature": temperature}))
    number, reply = replies.get(timeout=60)
    assert isinstance(reply, Failure)
    assert (number, reply.kind) == (0, "internal")
    assert "not finite" in reply.message


def test_a_schema_that_proves_too_complex_fails_its_request_alone(worker, replies):
    large = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(550)}}
    worker.handle(0, Job([QUESTION], schema=large))
    worker.handle(1, Job([QUESTION], schema={"const": "right"}))
    arrived = {0: [], 1: []}
    while not (arrived[0] and isinstance(arrived[0][-1], Failure)) or not (
        arrived[1] and arrived[1][-1].finish_reason
    ):
        number, reply = replies.get(timeout=60)
        arrived[number].append(reply)
    assert arrived[0][-1].kind == "invalid"
    assert "JSON schema cannot be used" in arrived[0][-1].message
    assert "".join(piece.text for piece in arrived[1]) == '"right"'


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        (Job([[0, 99_999]]), "invalid"),
        (Job([[]]), "invalid"),
        (Job([[{"role": "king", "content": "x"}]]), "invalid"),
        (Job([QUESTION], settings={"temperature": -1.0}), "invalid"),
        (Job([QUESTION], schema={"type": "objekt"}), "invalid"),
        (Job(["\ud800"]), "invalid"),
        (Job([[5] * 1024]), "too_long"),
        (Job([QUESTION], settings={"max_tokens": 1020}), "too_long"),
        (Job([QUESTION] * 7, settings={"max_tokens": 900, "temperature": 9.0}), "busy"),
    ],
)
def test_what_cannot_be_answered_fails_with_a_sentence_and_leaves_nothing(
    worker, replies, job, kind
):
    worker.handle(1, job)
    reply = None
    while not isinstance(reply, Failure):  # the first of seven may have begun
        _, reply = replies.get(timeout=60)
    assert reply.kind == kind
    assert reply.message.endswith(".")
    worker.handle(2, Job([QUESTION], settings={"max_tokens": 1}))
    number = None
    while number != 2:
        number, reply = replies.get(timeout=60)
    worker.handle(3, Count())
    while number != 3:
        number, reply = replies.get(timeout=60)
    assert (reply.values["running"], reply.values["queued"]) == (0, 0)


def test_an_answer_fits_behind_its_prompt(worker, replies):
    worker.handle(0, Job([[5] * 1020], settings={"temperature": 9.0, "seed": 1}))
    _, (last,) = answers(replies, 0, 1)
    assert (last.finish_reason, last.completion_tokens) == ("length", 4)


def test_small_caches_shorten_the_context(demo, replies, sender):
    with Worker(*demo, sender, 4, 2, cache_tokens=100) as worker:
        assert worker.context_length == 100
        worker.handle(0, Job([[5] * 90], settings={"temperature": 9.0, "seed": 1}))
        _, (last,) = answers(replies, 0, 1)
        assert (last.finish_reason, last.completion_tokens) == ("length", 10)
        worker.handle(1, Job([[5] * 90], settings={"max_tokens": 11}))
        _, reply = replies.get(timeout=60)
        assert reply.kind == "too_long"
        assert "100 tokens" in reply.message and "90" in reply.message and "11" in reply.message


def test_requests_that_wait_for_room_are_queued(demo, replies, sender):
    with Worker(*demo, sender, 4, 2, cache_tokens=1024) as worker:
        long = {"max_tokens": 900, "temperature": 9.0, "seed": 1}
        worker.handle(0, Job([QUESTION] * 3, settings=long))
        replies.get(timeout=60)
        worker.handle(1, Count())
        number = 0
        while number == 0:
            number, counts = replies.get(timeout=60)
        assert (counts.values["running"], counts.values["queued"]) == (1, 2)
        assert 0 < counts.values["held_tokens"] <= counts.values["limit_tokens"] == 1024
        worker.handle(0, Cancel())
        worker.handle(2, Job([QUESTION], settings=long))
        _, (last,) = answers(Later(replies, 2), 2, 1)
        assert last.finish_reason == "length"
        worker.handle(3, Count())
        _, counts = Later(replies, 3).get(timeout=60)
        assert counts.values["held_tokens"] == 0 < counts.values["kept_tokens"]


class Later:
    """Replies to one call, those to earlier ones being left out."""

    def __init__(self, replies, number):
        self._replies, self._number = replies, number

    def get(self, timeout):
        number = None
        while number != self._number:
            number, reply = self._replies.get(timeout=timeout)
        return number, reply


def test_cancelled_answers_stop(worker, replies):
    worker.handle(0, Job([QUESTION], 4, {"max_tokens": 900, "temperature": 9.0, "seed": 1}))
    replies.get(timeout=60)
    worker.handle(0, Cancel())
    worker.handle(1, Job([QUESTION], settings={"max_tokens": 1}))
    number = 0
    while number == 0:
        number, _ = replies.get(timeout=60)
    worker.handle(2, Count())
    number, counts = replies.get(timeout=60)
    assert isinstance(counts, Counts)
    assert (counts.values["cancelled"], counts.values["held_tokens"]) == (4, 0)


def test_encoding(worker, replies, demo):
    worker.handle(0, Encode("你好 </s>"))
    assert replies.get() == (0, Encoded(demo[1].encode_text("你好 </s>")))


def test_logprobs_carry_the_bytes_of_tokens(worker, replies):
    worker.handle(0, Job([QUESTION], settings={"logprobs": 2, "max_tokens": 6}))
    pieces = [replies.get(timeout=60)[1] for _ in range(6)]
    told = b"".join(piece.logprob.token for piece in pieces).decode()
    assert told.strip() == "".join(piece.text for piece in pieces)
    assert all(len(piece.logprob.top) == 2 for piece in pieces)


def test_our_own_errors_are_logged_and_not_told(caplog):
    told = failure(KeyError("secret"))
    assert told.kind == "internal"
    assert "secret" not in told.message
    assert "secret" in caplog.text
