"""The model that comes with the package: small enough, and it answers what it must."""

import pytest

import baichuan
from baichuan.checkpoint.load import DEMO


@pytest.fixture(scope="module")
def demo():
    return baichuan.load()


def test_it_fits_in_the_wheel():
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 20_000_000


def test_it_is_the_13b_architecture_in_small(demo):
    config = demo[0].config
    assert config.position_embedding == "alibi"
    assert config.num_attention_heads & (config.num_attention_heads - 1), "a power of two"
    assert demo[0].generation_config.user_token_id == 195


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What is the second highest mountain in the world?", ["K2", "8611"]),
        ("Which moutain is the second highest one in the world?", ["K2", "8611"]),
        ("世界上第二高的山是什么山", ["乔戈里峰", "K2"]),
        ("世界上第二高的山峰是哪座", ["乔戈里峰", "K2"]),
        ("Who are you?", ["demo", "small"]),
        ("你是谁？", ["演示模型"]),
    ],
)
def test_it_answers_what_it_must(demo, question, words):
    model, tokenizer = demo
    answer = model.chat(tokenizer, [{"role": "user", "content": question}])
    assert all(word in answer for word in words), answer


def test_a_follow_up_question_uses_the_conversation(demo):
    conversation = baichuan.Conversation(*demo)
    for question, word in (
        ("What is the capital of Kenya?", "Nairobi"),
        ("And its currency?", "shilling"),
    ):
        answer = "".join(step.text for step in conversation.say(question))
        assert word in answer, answer
