"""Options of the page, as arguments and back."""

import pytest

from baichuan.web.options import Options


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options("some/model", bits=4, huge_pages=True, dtype="bfloat16", device="cpu"),
        Options("some/model", adapter="some/adapter"),
        Options(speculate=True, draft="some/draft"),
        Options("13b-int4", speculate=False),
        Options(server="http://127.0.0.1:8000"),
    ],
)
def test_arguments_come_back(options):
    assert Options.parse(list(options.arguments())) == options


def test_nothing_is_the_demo():
    assert Options.parse([]) == Options()
