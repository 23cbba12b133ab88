"""Sequences that share an engine answer as each alone; turns that share a cache cost their own."""

import random
from pathlib import Path

import pytest
from tests.conftest import tiny_config

import baichuan
from baichuan.chat import Conversation
from baichuan.engine.loop import Engine
from baichuan.engine.sampling import SamplingParams
from baichuan.model.tokenizer import BaichuanTokenizer

DEMO = Path(baichuan.__file__).parent / "demo"
TOKENIZER = Path(__file__).parents[1] / "data" / "tokenizer" / "tokenizer.model"

PARAMETERS = [
    SamplingParams(max_tokens=15, eos_token_ids=()),
    SamplingParams(max_tokens=9, eos_token_ids=(), repetition_penalty=1.3),
    SamplingParams(max_tokens=20, temperature=1.5, seed=11, eos_token_ids=()),
    SamplingParams(max_tokens=6, temperature=0.8, top_k=20, top_p=0.9, seed=12),
    SamplingParams(max_tokens=12, temperature=1.0, min_p=0.05, seed=13, logprobs=2),
]


def requests(count, seed):
    chooser = random.Random(seed)
    return [
        ([chooser.randrange(3, 700) for _ in range(chooser.choice((1, 2, 9, 25, 60)))], parameters)
        for parameters in (PARAMETERS * count)[:count]
    ]


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_requests_that_come_and_go_answer_as_alone(model, chunk):
    asked = requests(12, seed=chunk)
    engine = Engine(model, str, prefill_chunk=chunk)
    chooser, waiting, answers = random.Random(chunk), list(asked), {}
    names = {}
    while waiting or engine.running:
        while waiting and (not engine.running or chooser.random() < 0.4):
            names[engine.add(*waiting[0])] = len(asked) - len(waiting)
            waiting.pop(0)
        for step in engine.step():
            answers.setdefault(names[step.request], []).append(step)
    assert len({len(steps) for steps in answers.values()}) > 2
    for number, (prompt, parameters) in enumerate(asked):
        alone = list(Engine(model, str).generate(prompt, parameters))
        together = answers[number]
        assert [s.token for s in together] == [s.token for s in alone]
        assert [s.text for s in together] == [s.text for s in alone]
        assert together[-1].finish_reason == alone[-1].finish_reason
        if parameters.logprobs:
            for a, b in zip(together, alone, strict=True):
                assert a.logprobs.chosen == pytest.approx(b.logprobs.chosen, abs=1e-4)


def test_a_batch_numbers_its_steps_by_prompt(model):
    prompts = [prompt for prompt, _ in requests(4, seed=1)]
    engine = Engine(model, str, prefill_chunk=16)
    other = engine.add([5, 6], PARAMETERS[0])
    answers = [[] for _ in prompts]
    for step in engine.generate_batch(prompts, PARAMETERS[2]):
        answers[step.request].append(step.token)
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = Engine(model, str).generate(prompt, PARAMETERS[2])
        assert answer == [step.token for step in alone]
    assert len(list(engine.generate_batch([], PARAMETERS[0]))) == 0
    engine.cancel(other)
    assert engine.running == 0


def test_leaving_a_batch_early_cancels_all_of_it(model):
    engine = Engine(model, str)
    steps = engine.generate_batch([[5], [6, 7]], PARAMETERS[0])
    next(steps)
    assert engine.running == 2
    steps.close()
    assert engine.running == 0


QUESTIONS = [
    "你好",
    "What is the second highest mountain in the world?",
    "世界上第二高的山是什么山",
    "How do I install it?",
    "谢谢",
    "Who are you?",
    "怎么量化",
    "How do I serve it?",
    "怎么微调",
    "bye",
]


def test_each_of_ten_turns_computes_its_new_tokens_only():
    model, tokenizer = baichuan.load(DEMO)
    conversation = Conversation(model, tokenizer, temperature=0.0, max_tokens=100)
    held = 0
    for question in QUESTIONS:
        last = list(conversation.say(question))[-1]
        usage = last.usage
        assert usage.cached_tokens == held
        # The question between two markers; an answer cut short leaves its last token to compute.
        new = usage.prompt_tokens - held
        assert new <= len(tokenizer.encode_text(question)) + 3
        held = usage.prompt_tokens + usage.completion_tokens - 1
    assert usage.prompt_tokens > 20 * new


def test_a_conversation_answers_as_without_a_cache():
    tokenizer = BaichuanTokenizer(str(TOKENIZER))
    config = tiny_config(vocab_size=len(tokenizer), initializer_range=0.2)
    model = baichuan.BaichuanForCausalLM(config).eval()
    conversation = Conversation(model, tokenizer, temperature=0.0, max_tokens=10)
    asked = 0
    for turn, question in enumerate(QUESTIONS[:5]):
        steps = list(conversation.say(question))
        messages = conversation.messages[:-1]
        fresh = list(model.chat_steps(tokenizer, messages, temperature=0.0, max_tokens=10))
        assert [s.token for s in steps] == [s.token for s in fresh]
        # A random network's answer is no text that encodes to the same ids, so the latest answer
        # may be computed again, but nothing before it.
        assert steps[-1].usage.cached_tokens >= asked
        asked = steps[-1].usage.prompt_tokens
        if turn == 3:
            assert conversation.undo()
            asked = 0
