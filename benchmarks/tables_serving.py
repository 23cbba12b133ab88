"""The tables of the server's documents, from results/."""

from __future__ import annotations

import statistics

from tables import hardware, read, table_rows


def serving_load(chinese: bool) -> str:
    """Requests at our server, side by side and one after another."""
    head = (
        ("请求", "同时 16 个", "逐个", "", "首词元 p50 / p95", "与逐个时相同的回答")
        if chinese
        else (
            "200 requests",
            "16 at a time",
            "one after another",
            "",
            "first token p50 / p95",
            "answers as alone",
        )
    )
    body = []
    for name in ("demo", "wide"):
        figures = read(f"serving_{name}")
        together, alone = figures["together"], figures["one_after_another"]
        same = together["requests"] - len(figures["answers_that_differ"])
        body.append(
            (
                figures["what"],
                f"{together['tokens_per_second']:.0f} tokens/s",
                f"{alone['tokens_per_second']:.0f} tokens/s",
                f"{together['tokens_per_second'] / alone['tokens_per_second']:.1f}x",
                _firsts(together),
                f"{same} / {together['requests']}",
            )
        )
    return table_rows(head, *body) + hardware(figures, chinese)


def serving_llama(chinese: bool) -> str:
    """Our server and llama.cpp's under the same requests, medians of the rounds."""
    head = (
        ("同时 8 个请求", "提示词元数", "tokens/s", "首词元 p50 / p95")
        if chinese
        else ("8 requests at a time", "tokens of prompts", "tokens/s", "first token p50 / p95")
    )
    rows = []
    for figure, lengths in (("serving_llama", "8-128"), ("serving_llama_long", "16-1,024")):
        figures = read(figure)
        for name, shown in _SERVERS.items():
            rounds = figures["rounds"][name]
            middle = {field: statistics.median(run[field] for run in rounds) for field in rounds[0]}
            rows.append((shown, lengths, f"{middle['tokens_per_second']:.1f}", _firsts(middle)))
        speed, first = (statistics.median(figures[f"ratio_of_{n}"]) for n in _RATIOS)
        ratio = "相比" if chinese else "ratio"
        rows.append((ratio, lengths, f"{speed:.2f}x", f"p95 {first:.2f}x"))
    return table_rows(head, *rows) + hardware(figures, chinese)


_SERVERS = {"baichuan": "baichuan serve, int4", "llama": "llama-server -np 8, Q4_0"}
_RATIOS = ("tokens_per_second", "first_token_p95")


def serving_prefix(chinese: bool) -> str:
    """Time to the first token where a beginning was computed before."""
    figures = read("serving_prefix")
    first, second = (figures["first_token_seconds"][name] for name in ("first", "second"))
    head = (
        ("1,000 个相同词元 + 24 个不同", "首词元", "")
        if chinese
        else ("1,000 shared tokens, 24 others", "first token", "")
    )
    words = ("第一个请求", "其后的请求") if chinese else ("the first request", "the next one")
    return table_rows(
        head,
        (words[0], f"{first:.2f} s", ""),
        (words[1], f"{second:.2f} s", f"{figures['bars'][0]['measured']:.2f} of it"),
    ) + hardware(figures, chinese)


def serving_soak(chinese: bool) -> str:
    """What came of misuse."""
    figures = read("serving_soak")
    sums: dict[str, int] = {}
    for statuses in figures["statuses"].values():
        for status, count in statuses.items():
            sums[status] = sums.get(status, 0) + count
    head = ("请求", "分钟", *sums) if chinese else ("requests", "minutes", *sums)
    counts = tuple(f"{count:,}" for count in sums.values())
    row = (f"{figures['requests']:,}", f"{figures['minutes']:.0f}", *counts)
    return table_rows(head, row) + hardware(figures, chinese)


def _firsts(run: dict[str, float]) -> str:
    return f"{run['first_token_p50']:.2f} / {run['first_token_p95']:.2f} s"
