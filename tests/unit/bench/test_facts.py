"""The machine's name for a figure."""

import json
import os

import torch

from baichuan.bench.machine import facts


def test_facts_name_what_a_figure_depends_on():
    found = facts()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"].strip()
    assert found["cores"] == os.cpu_count()
    assert found["threads"] == torch.get_num_threads()
    assert found["memory_gb"] > 0
    assert found["versions"]["torch"] == torch.__version__
    assert "gpu" not in found
