"""What a recipe becomes on the machine at hand."""

import pytest
import torch

pytest.importorskip("datasets")

from baichuan.train.arguments import parse
from baichuan.train.run import for_this_machine

SLOW = "This processor is slow in bfloat16"

pytestmark = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="is about machines without a GPU"
)


@pytest.mark.parametrize(
    ("flags", "capability", "told"),
    [
        (["--fp16"], "AVX512", ["so --fp16 is read as --bf16."]),
        (["--fp16"], "AVX2", ["so --fp16 is read as --bf16.", SLOW]),
        (["--bf16"], "AVX512", []),
        (["--bf16"], "AVX2", [SLOW]),
        ([], "AVX2", []),
    ],
)
def test_sixteen_bits_without_a_gpu(flags, capability, told, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    recipe = parse(["--dataset", "x.json", "--output_dir", "out", *flags])
    machine = for_this_machine(recipe)
    assert (machine.training.fp16, machine.training.bf16) == (False, bool(flags))
    notices = machine.notices[len(recipe.notices) :]
    assert len(notices) == len(told)
    assert all(words in notice for words, notice in zip(told, notices, strict=True))
