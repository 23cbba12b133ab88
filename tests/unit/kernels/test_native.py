"""Finding the compiled kernels, and what happens where there are none."""

import os
import subprocess
import sys
import warnings

import pytest

from baichuan.errors import UsageError
from baichuan.kernels import native


@pytest.fixture
def fresh():
    """Forget what was found, before and after."""

    def forget():
        native.library.cache_clear()
        native.available.cache_clear()

    forget()
    yield
    forget()


def test_plain_code_is_everywhere_and_the_best_is_taken(monkeypatch):
    monkeypatch.delenv("BAICHUAN_KERNELS", raising=False)
    found = native.available()
    assert found[0] == "torch"
    assert native.chosen() == found[-1]
    assert len(found) == 1 or found[1] == "generic"


def test_a_name_forces_an_implementation(monkeypatch):
    for name in native.available():
        monkeypatch.setenv("BAICHUAN_KERNELS", name)
        assert native.chosen() == name
    monkeypatch.setenv("BAICHUAN_KERNELS", "avx3")
    with pytest.raises(UsageError, match=r"'avx3'; this machine runs torch.*Unset it"):
        native.chosen()


@pytest.mark.parametrize("content", [None, b"", b"no library"])
def test_without_a_library_there_is_one_warning(monkeypatch, tmp_path, fresh, content):
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    if content is not None:
        (tmp_path / (native._NAME + native.EXTENSION_SUFFIXES[0])).write_bytes(content)
    with pytest.warns(RuntimeWarning, match=r"native kernels are absent.*Install a C\+\+ compiler"):
        assert native.available() == ("torch",)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.chosen() == "torch"


WITHOUT = """
import warnings, torch
from baichuan.kernels import native
native.__file__ = {missing!r}
import baichuan
from baichuan.kernels import ops
from baichuan.kernels.layout import pack
weight = pack(torch.ones(20, 40, dtype=torch.int8), torch.ones(20, 1), 8, 32)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y = [ops.linear(torch.ones(2, 40), weight) for _ in range(2)]
print(native.available(), float(y[1][0, 0]), len(caught), caught[0].category.__name__)
"""


def test_everything_runs_without_a_library(tmp_path):
    code = WITHOUT.format(missing=str(tmp_path / "native.py"))
    environment = {k: v for k, v in os.environ.items() if k != "BAICHUAN_KERNELS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "('torch',) 40.0 1 RuntimeWarning\n", done.stderr
