"""What the README of Baichuan-13B states, 5-shot: to stand beside what is measured here.

Order of the columns as there: `Benchmark.categories`, then the average.
"""

from __future__ import annotations

#: Benchmark to model to per cent.
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "ceval": {
        "Baichuan-13B-Base": (45.9, 63.5, 57.2, 49.3, 52.4),
        "Baichuan-13B-Chat": (43.7, 64.6, 56.2, 49.2, 51.5),
        "Baichuan-7B": (38.2, 52.0, 46.2, 39.3, 42.8),
    },
    "mmlu": {
        "Baichuan-13B-Base": (41.6, 60.9, 47.4, 58.5, 51.6),
        "Baichuan-13B-Chat": (40.9, 60.9, 48.8, 59.0, 52.1),
        "Baichuan-7B": (35.6, 48.9, 38.4, 48.1, 42.3),
    },
    "cmmlu": {
        "Baichuan-13B-Base": (41.7, 61.1, 59.8, 59.0, 56.4, 55.3),
        "Baichuan-13B-Chat": (42.8, 62.6, 59.7, 59.0, 56.1, 55.8),
        "Baichuan-7B": (34.4, 47.5, 47.6, 46.6, 44.3, 44.0),
    },
}
