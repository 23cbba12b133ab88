"""From seconds to the figures that are shown and saved."""

import json

import pytest

from baichuan.bench.job import Job
from baichuan.bench.measure import Positions
from baichuan.bench.memory import Need
from baichuan.bench.results import Figures, Report, Row, Spread, ratios, speed_in_turns

SENT = {
    "dtype": "bfloat16",
    "threads": 2,
    "load_seconds": 1.5,
    "prefill_seconds": [2.0, 4.0, 1.0],
    "decode_seconds": [10.0, 20.0, 5.0],
    "weight_bytes": 600,
    "cache_bytes": 100,
    "peak_bytes": 1000,
    "answering_peak_bytes": 900,
    "gpu_peak_bytes": None,
    "positions": {
        "prefill_seconds": {"alibi": [1.0, 1.0], "rope": [1.0, 2.0]},
        "turn_seconds": {"alibi": [2.0], "rope": [3.0]},
        "turn_tokens": 6,
    },
}


def report(*rows: Row) -> Report:
    return Report("a model", Job(prompt=100, tokens=41), (2, 4), None, {"cpu": "one"}, [*rows])


@pytest.mark.parametrize(
    ("values", "spread"),
    [([3.0], (3, 3, 3)), ([4.0, 2.0], (2.5, 3, 3.5)), ([1.0, 5.0, 2.0, 4.0, 3.0], (2, 3, 4))],
)
def test_spread(values, spread):
    assert Spread.of(values) == Spread(*spread)


def test_speeds():
    figures = Figures.from_dict(SENT)
    whole = report(Row("int4", Need(600, 100, 2), 10**12, figures=figures))
    assert whole.measured == [("int4", figures)]
    assert whole.prefill(figures) == Spread(37.5, 50.0, 75.0)
    assert whole.first_token(figures).median == 2.0
    assert whole.decode(figures) == Spread(3.0, 4.0, 6.0)  # 40 tokens: the prompt gives the first


def test_ratios_say_how_much_faster_alibi_was():
    positions = Figures.from_dict(SENT).positions
    assert isinstance(positions, Positions)
    assert ratios(positions) == {
        "prefill": Spread(1.25, 1.5, 1.75),
        "decode": Spread(1.5, 1.5, 1.5),
    }
    assert speed_in_turns(positions, "alibi").median == 3.0
    assert speed_in_turns(positions, "rope").median == 2.0


def test_memory_is_the_gpu_s_where_the_weights_are():
    assert Figures.from_dict(SENT).memory_bytes == 1000
    assert Figures.from_dict({**SENT, "gpu_peak_bytes": 700}).memory_bytes == 700


def test_saved(tmp_path):
    measured = Row("int8", Need(600, 100, 2), 10**12, 3.0, figures=Figures.from_dict(SENT))
    left_out = Row("fp32", Need(10**13, 100, 1), 10**12)
    report(left_out, measured).save(tmp_path / "figures.json")
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]
    saved = json.loads((tmp_path / "figures.json").read_text())
    assert saved["machine"] == {"cpu": "one"}
    workload = saved["workload"]
    assert (workload["model"], workload["layers"], workload["layers_of_the_whole"]) == (
        "a model",
        2,
        4,
    )
    assert workload["context_of_generated_tokens"] == [101, 141]
    first, second = saved["precisions"]
    assert (first["fits"], second["fits"]) == (False, True)
    assert first["computed_bytes"]["total"] > 10**13
    assert "measured" not in first
    assert second["measured"] == SENT
    assert second["busy_before_percent"] == 3.0
    assert second["decode_tokens_per_second"]["median"] == 4.0
    assert second["alibi_to_rope_decode"]["median"] == 1.5
