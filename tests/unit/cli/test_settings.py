"""What /set understands."""

import pytest

from baichuan.cli.settings import NAMES, parse_setting
from baichuan.engine.sampling import SamplingParams
from baichuan.errors import UsageError


@pytest.mark.parametrize(
    ("name", "typed", "value"),
    [
        ("top_k", "40", 40),
        ("max_tokens", "7", 7),
        ("seed", "0", 0),
        ("temperature", "0.3", 0.3),
        ("top_p", "1", 1.0),
        ("stop", "END", ("END",)),
        ("stop", "'two words' '\\n\\n' #", ("two words", "\n\n", "#")),
        ("stop", "用户：", ("用户：",)),
    ],
)
def test_values(name, typed, value):
    parsed = parse_setting(name, typed)
    assert parsed == value
    assert type(parsed) is type(value)
    SamplingParams().changed(**{name: parsed})


@pytest.mark.parametrize(
    ("name", "typed", "sentence"),
    [
        ("top_k", "0.5", "whole number"),
        ("max_tokens", "many", "whole number"),
        ("seed", "-1", "allowed is 0"),
        ("seed", str(2**63), "allowed is 0"),
        ("temperature", "warm", "must be a number"),
        ("temperature", "nan", "must be a number"),
        ("temperature", "inf", "must be a number"),
        ("stop", "'open", "no partner"),
        ("eos_token_ids", "2", "no setting"),
        ("temprature", "1", "no setting"),
    ],
)
def test_wrong_values_are_sentences(name, typed, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse_setting(name, typed)


def test_every_name_can_be_parsed():
    for name in NAMES:
        parse_setting(name, "1")
