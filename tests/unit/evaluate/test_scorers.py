"""Scores do not depend on how prompts are computed: shared beginnings, batches, other classes."""

import copy
from dataclasses import replace

import pytest
import torch
from tests.conftest import tiny_config
from transformers.utils import logging

import baichuan
from baichuan.errors import NumericalError, UsageError
from baichuan.evaluate.batches import packed, rows_of
from baichuan.evaluate.data import read_data
from baichuan.evaluate.prompts import Prompt, PromptMaker, scheme_of
from baichuan.evaluate.scorers import BaichuanScorer, TransformersScorer, letter_ids
from baichuan.evaluate.subjects import BENCHMARKS
from baichuan.model.prompt import encode_chat


@pytest.fixture(scope="module")
def demo():
    return baichuan.load()


def prompts(folder, benchmark, subject, *, count=None, scheme="official", **settings):
    data = read_data(BENCHMARKS[benchmark], str(folder), subjects=[subject])
    maker = PromptMaker(
        scheme_of(benchmark, scheme), BENCHMARKS[benchmark].names, count=count, **settings
    )
    return [maker.prompt(row, data.shots[subject]) for row in data.questions[subject]]


def one_by_one(model, letters, ids):
    """Each prompt alone through the network's ordinary forward: the published way."""
    with torch.inference_mode():
        logits = [model(torch.tensor([row])).logits[0, -1, letters] for row in ids]
    return torch.stack(logits)


def scores(scorer, asked, done=()):
    found = {}
    for batch in scorer.scores(asked, done):
        assert not found.keys() & batch.keys()
        found |= batch
    return torch.tensor([found[index] for index in range(len(asked))])


@pytest.mark.parametrize(
    ("benchmark", "subject", "scheme", "settings"),
    [
        ("cmmlu", "agronomy", "official", {}),
        ("ceval", "law", "official", {"shots": 2}),
        ("ceval", "law", "baichuan", {}),
        ("mmlu", "anatomy", "baichuan", {"shots": 0}),
        ("cmmlu", "agronomy", "official", {"max_length": 330}),
        ("mmlu", "anatomy", "official", {"chat": True}),
    ],
)
@pytest.mark.parametrize("batch_tokens", [1, 70, 2048])
def test_equal_to_one_prompt_at_a_time(
    demo, make_data, benchmark, subject, scheme, settings, batch_tokens
):
    model, tokenizer = demo
    letter = scheme_of(benchmark, scheme).letter
    scorer = BaichuanScorer(model, tokenizer, letter, batch_tokens=batch_tokens)
    folder = make_data(benchmark, [subject])
    asked = prompts(folder, benchmark, subject, scheme=scheme, count=scorer.count, **settings)
    encode = encode_chat if settings.get("chat") else None
    ids = [
        encode(tokenizer, prompt.content) if encode else tokenizer.encode(prompt.content)
        for prompt in asked
    ]
    if "max_length" in settings:
        assert 0 < len(asked[0].shots) < 5
    alone = one_by_one(model, letter_ids(tokenizer, letter), ids)
    together = scores(scorer, asked)
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)
    assert together.argmax(1).tolist() == alone.argmax(1).tolist()
    assert len(set(together[:, 0].tolist())) == len(asked)


@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_transformers_classes_score_the_same(demo, make_data, batch_tokens):
    model, tokenizer = demo
    asked = prompts(make_data("cmmlu", ["agronomy"]), "cmmlu", "agronomy")
    ours = scores(BaichuanScorer(model, tokenizer, "piece"), asked)
    theirs = scores(TransformersScorer(model, tokenizer, "piece", None, batch_tokens), asked)
    torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=0)


def test_any_model_of_transformers(demo, make_data):
    """LLaMA takes the positions to keep; a class that does not gives all logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    _, tokenizer = demo
    sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=3072, num_attention_heads=6, initializer_range=0.3, **sizes)
    model = LlamaForCausalLM(config).eval()
    asked = prompts(make_data("cmmlu", ["agronomy"]), "cmmlu", "agronomy")
    ids = [tokenizer.encode(prompt.content) for prompt in asked]
    alone = one_by_one(model, letter_ids(tokenizer, "piece"), ids)
    scorer = TransformersScorer(model, tokenizer, "piece", None, 200)
    torch.testing.assert_close(scores(scorer, asked), alone, atol=1e-4, rtol=0)
    scorer._picks_positions = False
    torch.testing.assert_close(scores(scorer, asked), alone, atol=1e-4, rtol=0)


def test_rotary_positions_go_on_behind_the_shared_beginning(demo, make_data):
    _, tokenizer = demo
    config = tiny_config(vocab_size=3072, position_embedding="rope", initializer_range=0.3)
    model = baichuan.BaichuanForCausalLM(config).eval()
    asked = prompts(make_data("cmmlu", ["agronomy"]), "cmmlu", "agronomy")
    ids = [tokenizer.encode(prompt.content) for prompt in asked]
    alone = one_by_one(model, letter_ids(tokenizer, "piece"), ids)
    found = scores(BaichuanScorer(model, tokenizer, "piece"), asked)
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


def test_bos(demo, make_data):
    model, tokenizer = demo
    asked = prompts(make_data("cmmlu", ["agronomy"]), "cmmlu", "agronomy")
    ids = [[1, *tokenizer.encode(prompt.content)] for prompt in asked]
    alone = one_by_one(model, letter_ids(tokenizer, "piece"), ids)
    with_bos = BaichuanScorer(model, tokenizer, "piece", bos=True)
    torch.testing.assert_close(scores(with_bos, asked), alone, atol=2e-4, rtol=0)
    assert with_bos.count(asked[0].content) == len(ids[0])
    without = BaichuanScorer(model, tokenizer, "piece", bos=False)
    assert without.count(asked[0].content) == len(ids[0]) - 1


def test_batches_that_are_done_are_left_out(demo, make_data):
    model, tokenizer = demo
    scorer = BaichuanScorer(model, tokenizer, "piece", batch_tokens=100)
    asked = prompts(make_data("cmmlu", ["agronomy"]), "cmmlu", "agronomy")
    whole = list(scorer.scores(asked, ()))
    assert len(whole) > 2
    rest = list(scorer.scores(asked, whole[0].keys() | set(list(whole[1])[:-1])))
    assert rest == whole[1:]  # to the last bit: the batches are the same


def test_the_shared_beginning_is_computed_once(demo, make_data):
    model, tokenizer = demo
    asked = prompts(make_data("cmmlu", ["agronomy"], questions=5), "cmmlu", "agronomy")
    passed = []

    class Counting:
        new_pool = model.new_pool

        def forward_chunks(self, chunks):
            passed.append(sum(len(chunk.tokens) for chunk in chunks))
            return model.forward_chunks(chunks)

    scorer = BaichuanScorer(model, tokenizer, "piece")
    scorer._model = Counting()
    scores(scorer, asked)
    ids = [tokenizer.encode(prompt.content) for prompt in asked]
    shared = rows_of(asked, ids)[0].shared
    assert passed == [shared, sum(map(len, ids)) - 5 * shared]
    assert shared > 200


@pytest.mark.parametrize("kind", [BaichuanScorer, TransformersScorer])
def test_logits_that_are_no_numbers_are_no_scores(demo, make_data, kind):
    model, tokenizer = demo
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[7] = float("nan")
    asked = prompts(make_data("cmmlu", ["agronomy"]), "cmmlu", "agronomy")
    with pytest.raises(NumericalError, match="not finite"):
        scores(kind(broken, tokenizer, "piece"), asked)


def test_letters_have_four_ids(demo):
    _, tokenizer = demo
    pieces = {
        kind: tokenizer.convert_ids_to_tokens(letter_ids(tokenizer, kind))
        for kind in ("first", "last", "piece", "spaced")
    }
    assert pieces["piece"] == ["A", "B", "C", "D"]
    assert pieces["first"] == pieces["last"] == pieces["spaced"] == ["▁A", "▁B", "▁C", "▁D"]


def test_one_id_for_all_letters_is_refused(demo):
    """A vocabulary without "▁A" gives "▁", "A": the first id says nothing."""
    _, tokenizer = demo

    class Split:
        unk_token_id = 0

        def encode(self, text, **_):
            return [1983, *tokenizer.convert_tokens_to_ids(list(text.strip()))]

    assert len(set(letter_ids(Split(), "last"))) == 4
    with pytest.raises(UsageError, match="--letter first, this tokenizer has the ids"):
        letter_ids(Split(), "first")


def rows(*lengths, beginnings=None):
    beginnings = beginnings or [0] * len(lengths)
    asked = [Prompt(None, "", (), (True, (b,))) for b in beginnings]
    ids = [[7, 7, *range(100 * i, 100 * i + n - 2)] for i, n in enumerate(lengths, 1)]
    return rows_of(asked, ids)


def test_rows_share_what_their_group_has_in_common():
    found = rows(5, 9, 4, 6, beginnings=[0, 1, 0, 2])
    assert [(row.index, row.shared, row.group) for row in found] == [
        (2, 2, 0),
        (0, 2, 0),
        (1, 0, 1),
        (3, 0, 2),
    ]
    same = replace(found[0], ids=[7, 7])
    (first, second) = rows_of([Prompt(None, "", (), (True, ()))] * 2, [same.ids, same.ids])
    assert first.rest == second.rest == [7]  # equal prompts, too, have a last token each


@pytest.mark.parametrize("budget", [1, 5, 8, 100])
@pytest.mark.parametrize("padded", [False, True])
def test_batches_keep_to_their_budget(budget, padded):
    found = rows(3, 4, 5, 3, 9, 4, beginnings=[0, 0, 0, 1, 1, 0])
    batches = list(packed(found, budget, padded=padded))
    assert [row for batch in batches for row in batch] == found
    for batch in batches:
        sizes = [len(row.rest) for row in batch]
        total = max(sizes) * len(sizes) if padded else sum(sizes)
        assert total <= budget or len(batch) == 1
        assert not padded or len({row.group for row in batch}) == 1
    if budget == 100:
        assert len(batches) == (2 if padded else 1)


def test_what_was_counted_is_not_encoded_again(demo, make_data, monkeypatch):
    model, tokenizer = demo
    scorer = BaichuanScorer(model, tokenizer, "last")
    texts, encode = [], tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text, **how: texts.append(text) or encode(text))
    asked = prompts(make_data("mmlu", ["anatomy"]), "mmlu", "anatomy", count=scorer.count)
    scores(scorer, asked)
    assert sorted(texts) == sorted(prompt.content for prompt in asked)


def test_counting_a_prompt_that_is_too_long_warns_of_nothing(caplog):
    model, tokenizer = baichuan.load()  # the warning comes once for each tokenizer
    text = "hello " * tokenizer.model_max_length
    logging.enable_propagation()
    try:
        for bos in (None, False):
            scorer = BaichuanScorer(model, tokenizer, "last", bos=bos)
            assert scorer.count(text) > tokenizer.model_max_length
        assert caplog.records == []
        tokenizer.encode(text)
        assert "longer than" in caplog.text  # so it would have been seen
    finally:
        logging.disable_propagation()
