"""`model.chat`: the checkpoint's settings obeyed, in every mode of the network."""

import sys
import typing
import warnings
from collections.abc import Iterator

import pytest
import torch
from tests.conftest import tiny_config
from transformers import GenerationConfig, LlamaTokenizer

import baichuan
from baichuan.engine.sampling import SamplingParams
from baichuan.errors import PromptError, UsageError
from baichuan.model.prompt import encode_chat

GREEDY = {"do_sample": False, "max_new_tokens": 8}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tokenizer(pytestconfig):
    return baichuan.BaichuanTokenizer.from_pretrained(
        pytestconfig.rootpath / "tests/data/tokenizer"
    )


@pytest.fixture(params=["alibi", "rope"])
def model(request):
    config = tiny_config(
        vocab_size=1000,
        position_embedding=request.param,
        model_max_length=64,
        initializer_range=0.2,
    )
    model = baichuan.BaichuanForCausalLM(config).eval()
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=0, **GREEDY)
    return model


def tokens(model, tokenizer, messages=HELLO, settings=None):
    steps = model.chat_steps(tokenizer, messages, settings and GenerationConfig(**settings))
    return [step.token for step in steps]


def by_generate(model, tokenizer, messages, **settings):
    """What transformers' own loop answers to the same prompt."""
    ids = torch.tensor([encode_chat(tokenizer, messages)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    return out[0, ids.shape[1] :].tolist()


def test_the_answer_is_that_of_generate(model, tokenizer):
    messages = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好！"},
        {"role": "user", "content": "hello"},
    ]
    for penalty in (1.0, 1.3):
        settings = GREEDY | {"repetition_penalty": penalty}
        expected = by_generate(model, tokenizer, messages, **settings)
        assert tokens(model, tokenizer, messages, settings) == expected
    answer = model.chat(tokenizer, messages, generation_config=GenerationConfig(**settings))
    assert answer == tokenizer.decode(expected, skip_special_tokens=True)


def test_stream_is_the_growing_answer(model, tokenizer):
    texts = list(model.chat(tokenizer, HELLO, stream=True))
    ids = tokens(model, tokenizer)
    whole = [tokenizer.decode(ids[: i + 1]) for i in range(8)]
    assert texts == [*(text.rstrip("\ufffd") for text in whole[:-1]), whole[-1]]
    assert texts[-1] == model.chat(tokenizer, HELLO)


def test_a_continued_answer_keeps_its_first_space():
    model, tokenizer = baichuan.load()
    question = {"role": "user", "content": "What is the capital of France?"}
    begun = [question, {"role": "assistant", "content": "The capital of France is"}]
    assert model.chat(tokenizer, [question]) == "The capital of France is Paris."
    assert model.chat(tokenizer, begun) == " Paris."
    assert list(model.chat(tokenizer, begun, stream=True))[-1] == " Paris."
    stopped = model.chat_steps(tokenizer, begun, stop=(" P",))
    assert "".join(step.text for step in stopped) == ""
    # Role markers of a configuration of one's own, too, begin a turn.
    other = GenerationConfig(user_token_id=300, assistant_token_id=301, max_new_tokens=12)
    prompt, _ = model.chat_request(tokenizer, [question], other)
    ids = [step.token for step in model.chat_steps(tokenizer, [question], other)]
    assert prompt[-1] == 301
    assert model.chat(tokenizer, [question], generation_config=other) == tokenizer.decode_text(ids)


def test_settings_of_the_checkpoint_are_obeyed(model, tokenizer):
    model.generation_config.max_new_tokens = 3
    answer = tokens(model, tokenizer)
    assert len(answer) == 3
    # Any of several ids may end the answer, and the step that ends it adds no text.
    model.generation_config.eos_token_id = [2, answer[1]]
    assert tokens(model, tokenizer) == answer[:2]
    text = tokenizer.decode(answer[:1], skip_special_tokens=True)
    assert model.chat(tokenizer, HELLO, stream=False).startswith(text)


def test_sampling_settings_reach_the_engine(model):
    settings = {"temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.1}
    read = SamplingParams.from_generation_config(
        GenerationConfig(do_sample=True, max_new_tokens=2048, eos_token_id=2, **settings)
    )
    assert read == SamplingParams(max_tokens=2048, eos_token_ids=(2,), **settings)


def test_top_k_of_one_is_greedy_and_sampling_is_not(model, tokenizer):
    greedy = tokens(model, tokenizer)
    hot = {"do_sample": True, "temperature": 5.0}
    assert tokens(model, tokenizer, settings=hot | {"top_k": 1}) == greedy
    assert tokens(model, tokenizer, settings=hot | {"top_p": 1e-6}) == greedy
    assert tokens(model, tokenizer, settings=hot) != greedy


def test_what_a_given_configuration_leaves_open_is_the_checkpoints(model, tokenizer):
    answer = tokens(model, tokenizer)
    model.generation_config.eos_token_id = answer[4]
    assert tokens(model, tokenizer, settings={"max_new_tokens": 20}) == answer[:5]
    assert tokens(model, tokenizer, settings={"max_new_tokens": 2}) == answer[:2]
    assert model.generation_config.max_new_tokens == 8
    # Without any word on the end in either, the network's configuration has the last.
    model.generation_config = GenerationConfig(max_new_tokens=8)
    model.config.eos_token_id = answer[2]
    assert tokens(model, tokenizer) == answer[:3]


def test_without_a_length_the_answer_takes_half_the_context_at_most(model, tokenizer):
    model.generation_config.max_new_tokens = None
    model.generation_config.eos_token_id = []
    assert len(tokens(model, tokenizer)) == 32


def test_an_answer_longer_than_the_context_is_refused(model, tokenizer):
    with pytest.raises(UsageError, match=r"64 leaves no room .* ask for at most 63"):
        model.chat(tokenizer, HELLO, generation_config=GenerationConfig(max_new_tokens=64))


def test_rounds_that_do_not_fit_are_dropped_whole(model, tokenizer):
    def say(i):
        user, assistant = f"question {i} ...", f"answer {i}"
        return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]

    rounds = [message for i in range(12) for message in say(i)]
    messages = [*rounds, {"role": "user", "content": "hello"}]
    prompt = encode_chat(tokenizer, messages, max_input=64 - 8)
    assert 0 < len(prompt) <= 56
    assert prompt[0] == 195
    steps = list(model.chat_steps(tokenizer, messages))
    assert steps[0].usage.prompt_tokens == len(prompt)
    kept = next(
        messages[i:] for i in range(len(messages)) if encode_chat(tokenizer, messages[i:]) == prompt
    )
    assert kept[0]["role"] == "user"
    assert tokens(model, tokenizer, kept) == [step.token for step in steps]


def test_role_ids_come_from_the_generation_configuration(model, tokenizer):
    before = tokens(model, tokenizer)
    model.generation_config.user_token_id = 300
    ids = torch.tensor([encode_chat(tokenizer, HELLO, user_token_id=300)])
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)
    assert tokens(model, tokenizer) == expected[0, ids.shape[1] :].tolist() != before


@pytest.mark.parametrize("mode", ["train", "checkpointing", "gradients", "no grad"])
def test_every_mode_answers_alike_and_is_kept(model, tokenizer, mode):
    expected = tokens(model, tokenizer)
    if mode in ("train", "checkpointing"):
        model.train()
        model.model.layers[0].eval()
    if mode == "checkpointing":
        model.gradient_checkpointing_enable()
    before = [module.training for module in model.modules()]
    with torch.set_grad_enabled(mode != "no grad"), warnings.catch_warnings():
        assert tokens(model, tokenizer) == expected
        # The network trains on: nothing of inference mode stays in its weights.
        if mode != "no grad":
            model(torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss.backward()
    assert [module.training for module in model.modules()] == before


def test_wrong_messages_are_refused_before_the_first_token(model, tokenizer):
    for stream in (False, True):
        with pytest.raises(PromptError, match="messages is empty"):
            model.chat(tokenizer, [], stream=stream)


def test_a_request_is_what_chat_answers(model, tokenizer):
    prompt, params = model.chat_request(tokenizer, HELLO, max_tokens=5)
    assert prompt == encode_chat(tokenizer, HELLO)
    engine = baichuan.Engine(model, tokenizer.decode)
    by_request = [step.token for step in engine.generate(prompt, params)]
    assert by_request == tokens(model, tokenizer)[:5]


def test_another_tokenizer_is_refused(model):
    with pytest.raises(
        UsageError, match=r"tokenizer is a LlamaTokenizer, .* needs a BaichuanToken"
    ):
        model.chat(LlamaTokenizer(), HELLO)


def test_sampling_parameters_are_arguments(model, tokenizer):
    model.generation_config.update(do_sample=True, temperature=5.0)
    greedy = model.chat(tokenizer, HELLO, temperature=0)
    assert model.chat(tokenizer, HELLO, do_sample=False) == greedy
    first, again = (model.chat(tokenizer, HELLO, seed=3) for _ in range(2))
    assert first == again != greedy
    (*_, streamed) = model.chat(tokenizer, HELLO, stream=True, temperature=0, top_p=None)
    assert streamed == greedy
    for name in ("max_tokens", "max_new_tokens"):
        steps = list(model.chat_steps(tokenizer, HELLO, temperature=0, **{name: 2}))
        assert [step.finish_reason for step in steps] == [None, "length"]
    assert model.generation_config.temperature == 5.0
    assert model.generation_config.max_new_tokens == 8
    with pytest.raises(UsageError, match="No sampling parameter is called temprature"):
        model.chat(tokenizer, HELLO, temprature=0.5)
    with pytest.raises(UsageError, match=r"temperature is -1; allowed is 0 \(greedy\)"):
        model.chat(tokenizer, HELLO, temperature=-1)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads is of Python 3.11")
def test_the_type_of_an_answer_depends_on_stream():
    overloads = typing.get_overloads(baichuan.BaichuanForCausalLM.chat)
    hints = [typing.get_type_hints(one) for one in overloads]
    assert [(hint["stream"], hint["return"]) for hint in hints] == [
        (typing.Literal[False], str),
        (typing.Literal[True], Iterator[str]),
        (bool, str | Iterator[str]),
    ]
