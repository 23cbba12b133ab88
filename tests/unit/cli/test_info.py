"""Facts about the machine."""

from pathlib import Path

import pytest

from baichuan.cli.info import instruction_sets, size


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flags\t\t: fpu avx2 fma amx_int8\n", ["avx2", "fma", "amx_int8"]),
        ("Features\t: fp asimd i8mm\n", ["asimd", "i8mm"]),
        ("model name: x\n", []),
    ],
)
def test_instruction_sets(tmp_path, text, found):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert instruction_sets(file) == found


def test_instruction_sets_elsewhere():
    assert instruction_sets(Path("/no/such/file")) is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(12, "12 B"), (18_900_000, "18.9 MB"), (26_529_802_240, "26.5 GB")],
)
def test_sizes(count, text):
    assert size(count) == text
