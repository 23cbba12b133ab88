"""The tables of the documents, but for evaluation's and the server's, from results/."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

from baichuan.kernels.layout import packed_shapes
from baichuan.quant.scheme import Scheme

RESULTS = Path(__file__).parent / "results"
#: Of the 13B and the 7B: hidden and inner columns, layers.
_SHAPES, _VOCABULARY = ((5120, 13696, 40), (4096, 11008, 32)), 64000


def read(name: str) -> dict[str, Any]:
    """Give a results file."""
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return content


def table_rows(*rows: tuple[object, ...]) -> str:
    """Write a table, the head first."""
    head, *body = ("| " + " | ".join(map(str, row)) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body]) + "\n"


def hardware(figures: dict[str, Any], chinese: bool) -> str:
    """Name the machine under a table."""
    where = _hardware(figures, chinese)
    return f"\n硬件：{where}。\n" if chinese else f"\n{where}.\n"


def hardware_of_rows(rows: list[dict[str, Any]], chinese: bool) -> str:
    """Name the machines under a table whose rows may be of several."""
    places: dict[str, list[int]] = {}
    for number, figures in enumerate(rows, 1):
        places.setdefault(_hardware(figures, chinese), []).append(number)
    if len(places) == 1:
        return hardware(rows[0], chinese)
    numbered = [(", ".join(map(str, numbers)), where) for where, numbers in places.items()]
    if chinese:
        return "\n" + "".join(f"第 {numbers} 行：{where}。\n" for numbers, where in numbered)
    return "\n" + "".join(
        f"Row{'s' if ',' in numbers else ''} {numbers}: {where}.\n" for numbers, where in numbered
    )


def _hardware(figures: dict[str, Any], chinese: bool) -> str:
    m = figures["machine"]
    memory = "核，{} GB 内存，" if chinese else "cores, {} GB, "
    about = memory.format(m["memory_gb"])
    return f"{m['cpu']}, {m['threads']} / {m['cores']} {about}torch {m['versions']['torch']}"


def full_size(chinese: bool) -> str:
    """Loading and speed of the network at full width in bfloat16."""
    some, whole = read("full_size_8"), read("full_size_40")
    speed = {n: some[f"prefill_{n}_tokens_per_second"]["median"] for n in (128, 512)}
    decode = some["decode_after_512_tokens_per_second"]["median"]
    words = (
        ("bfloat16，随机权重", "8 层（全宽）", "全部 40 层")
        if chinese
        else ("bfloat16, random weights", "8 layers, full width", "all 40 layers")
    )
    names = (
        ("载入", "自有内存", "文件", "prefill 128 / 512", "decode，512 之后")
        if chinese
        else ("loading", "memory of its own", "files", "prefill of 128 / 512", "decode after 512")
    )
    table = table_rows(
        words,
        (names[0], f"{some['load_seconds']:.1f} s", f"{whole['load_seconds']:.1f} s"),
        (names[1], f"{some['load_own_memory_gb']:.1f} GB", f"{whole['load_own_memory_gb']:.1f} GB"),
        (names[2], f"{some['file_gb']:.1f} GB", f"{whole['file_gb']:.1f} GB"),
        (names[3], f"{speed[128]:.0f} / {speed[512]:.0f} tokens/s", "—"),
        (names[4], f"{decode:.2f} tokens/s", "—"),
    )
    return table + hardware(some, chinese)


def attention(chinese: bool) -> str:
    """Memory and time of attention over long prompts, both ways."""
    figures = read("attention_memory")
    rows = {(row["way"], row["tokens"]): row for row in figures["rows"]}
    head = (
        ("一层的注意力，token 数", "本项目", "整个 [头, L, L]")
        if chinese
        else ("attention of one layer, tokens", "this package", "a whole [heads, L, L]")
    )
    body = []
    for length in sorted({row["tokens"] for row in figures["rows"]}):
        cells = [rows.get((way, length)) for way in ("ours", "whole_bias")]
        texts = [f"{c['added_peak_gb']:.2f} GB, {c['seconds']:.2f} s" if c else "—" for c in cells]
        body.append((f"{length:,}", *texts))
    return table_rows(head, *body) + hardware(figures, chinese)


def conversation(chinese: bool) -> str:
    """Time to the first token of some turns of a conversation, with and without its cache."""
    figures = read("conversation")
    head = (
        ("轮次", "提示 token", "其中新算", "首 token", "没有缓存")
        if chinese
        else ("turn", "prompt tokens", "of them computed", "first token", "without the cache")
    )
    body = [
        (
            row["turn"],
            row["prompt_tokens"],
            row["prompt_tokens"] - row["cached_tokens"],
            f"{row['first_token_seconds']:.2f} s",
            f"{row['first_token_seconds_without']:.2f} s",
        )
        for row in figures["rows"]
        if row["turn"] in (1, 2, 5, 10)
    ]
    return table_rows(head, *body) + hardware(figures, chinese)


def quality(chinese: bool, case_name: str) -> str:
    """What each format loses on one network and text, sorted by stored bits."""
    figures = read("quality")
    measured = [
        row
        for name in ("quality", "bits")
        for case in read(name)["cases"]
        if case["case"] == case_name
        for row in case["formats"]
    ]
    head = (
        ("格式", "存储位数", "KL", "KL 中位数", "KL 99 %", "首选一致", "困惑度", "KL，实际运行")
        if chinese
        else (
            "format",
            "stored bits",
            "KL",
            "median",
            "99 %",
            "same likeliest",
            "perplexity",
            "KL as run",
        )
    )
    body = []
    for row in sorted(measured, key=lambda row: row["stored_bits"]):
        loss, run = row["weights"], row["as_run"]
        body.append(
            (
                row["format"] if row["by"] == "ours" else f"*llama.cpp {row['format']}*",
                f"{row['stored_bits']:.2f}",
                f"{loss['kl']:.2g} ± {loss['kl_error']:.1g}",
                f"{loss['kl_median']:.2g}",
                f"{loss['kl_99']:.2g}",
                f"{loss['same_likeliest']:.2%}",
                f"{loss['perplexity_change']:+.2%}",
                f"{run['kl']:.2g}" if run else "—",
            )
        )
    return table_rows(head, *body) + hardware(figures, chinese)


def compare(chinese: bool) -> str:
    """Speed and memory at 13B's geometry beside llama.cpp and OpenVINO, measured in turns."""
    head = ("13B", "baichuan", "llama.cpp", "", "OpenVINO i4")
    names = (
        (
            "int4，512 个 token 的 prefill",
            "int4，512 个 token 之后 decode",
            "int8，512 个 token 之后 decode",
            "int4，内存峰值，缓存 2,048 个 token",
            "int8，内存峰值，缓存 2,048 个 token",
            "int4，从启动到首个 token",
            "int3 与 int4 混合（3.6 位），512 个 token 之后 decode",
        )
        if chinese
        else (
            "int4, prefill of 512",
            "int4, decode after 512",
            "int8, decode after 512",
            "int4, peak memory, 2,048 in the cache",
            "int8, peak memory, 2,048 in the cache",
            "int4, process start to first token",
            "int3 and int4 mixed (3.6 bits), decode after 512",
        )
    )
    prefill = read("compare_int4_prefill")
    linears = f"{prefill['tokens_per_second']['openvino']['median']:.0f} tokens/s"
    linears += "（仅线性层）" if chinese else " (linears alone)"
    body = [
        (names[0], *_speeds(prefill), linears),
        (names[1], *_speeds(read("compare_int4_decode")), "—"),
        (names[2], *_speeds(read("compare_int8_decode")), "—"),
        (names[6], *_speeds(read("compare_int3_decode")), "—"),
        (names[3], *_peaks(read("compare_int4_memory")), "—"),
        (names[4], *_peaks(read("compare_int8_memory")), "—"),
        (names[5], *_starts(read("compare_int4_cold")), "—"),
    ]
    return (
        table_rows(head, *body) + _together(chinese) + hardware(prefill, chinese) + _avx2(chinese)
    )


def _avx2(chinese: bool) -> str:
    """Say what a processor of many people gives, which has neither AMX nor AVX512."""
    prefill, decode = (read(f"compare_int4_{what}_avx2") for what in ("prefill", "decode"))
    ratios = [_times(figures["ratio_to_llama"]) for figures in (prefill, decode)]
    openvino = f"{prefill['ratio_to_openvino']['median']:.2f}x"
    where, layers = hardware(decode, chinese).strip(), decode["layers"]
    if chinese:
        return (
            f"\n只有 AVX2 的处理器，40 层中的 {layers} 层，与 Q4_0 相比：prefill {ratios[0]}，"
            f"为 OpenVINO 仅线性层的 {openvino}；decode {ratios[1]}。{where}\n"
        )
    return (
        f"\nOn a processor with AVX2 alone, {layers} of the 40 layers, beside Q4_0: prefill "
        f"{ratios[0]}, and {openvino} of OpenVINO's linears alone; decode {ratios[1]}. {where}\n"
    )


def _speeds(figures: dict[str, Any]) -> tuple[str, str, str]:
    """Give ours, the better one of llama.cpp's two kinds of attention, and the ratio."""
    speeds = {n: s["median"] for n, s in figures["tokens_per_second"].items()}
    llama = max(speed for n, speed in speeds.items() if n.startswith("llama"))
    ours = f"{speeds['baichuan']:.3g} tokens/s"
    return ours, f"{llama:.3g} tokens/s", _times(figures["ratio_to_llama"])


def _times(ratio: dict[str, float]) -> str:
    spread = f"{ratio['lower_quartile']:.2f}–{ratio['upper_quartile']:.2f}"
    return f"{ratio['median']:.2f}x ({spread})"


def _peaks(figures: dict[str, Any]) -> tuple[str, str, str]:
    ours, llama = (figures[name]["peak_gb"] for name in ("baichuan", "llama"))
    return f"{ours:.1f} GB", f"{llama:.1f} GB", f"{ours / llama:.2f}x"


def _starts(figures: dict[str, Any]) -> tuple[str, str, str]:
    ours, llama = (figures["seconds"][name]["median"] for name in ("baichuan", "llama"))
    return f"{ours:.1f} s", f"{llama:.1f} s", _times(figures["ratio_to_llama"])


def _together(chinese: bool) -> str:
    """Say what several sequences at once give."""
    figures = read("compare_int4_batch")
    one, many = (figures["tokens_per_second"][name]["median"] for name in ("one", "many"))
    ratio = _times(figures["ratio_to_one"])
    if chinese:
        return (
            f"\nint4 同时生成 8 个序列（缓存各 512 个 token）：合计 {many:.3g} tokens/s，单个序列 "
            f"{one:.3g} tokens/s：{ratio}。llama.cpp 的格式：Q4_0 与 Q8_0；"
            "混合旁边是 Q4_0。\n"
        )
    return (
        f"\nEight sequences at once in int4, each behind 512 tokens: {many:.3g} tokens/s together, "
        f"{one:.3g} tokens/s for one alone: {ratio}. llama.cpp's formats are Q4_0 and "
        "Q8_0, beside the mix Q4_0.\n"
    )


def speculation(chinese: bool) -> str:
    """How much faster answers are where tokens are guessed."""
    figures = read("speculation")
    head = (
        ("13B int4，回答", "不猜", "猜", "")
        if chinese
        else ("13B int4, the answer is", "without guesses", "with them", "")
    )
    names = (
        ("原文加少量修改", "说明文档", "从未出现过的词元")
        if chinese
        else ("a text again, edited", "technical prose", "tokens never seen before")
    )
    body = []
    for name, shown in zip(("edit", "prose", "nothing"), names, strict=True):
        rows = figures["rows"][name]
        speeds = [1 / statistics.median(row[way] for row in rows) for way in ("without", "with")]
        times = f"{figures['times_as_fast'][name]['median']:.2f}x"
        body.append((shown, *(f"{speed:.3g} tokens/s" for speed in speeds), times))
    return table_rows(head, *body) + hardware(figures, chinese)


def speculation_losses(chinese: bool) -> str:
    """What guesses cost where they do not help."""
    figures = read("speculation_losses")
    head = (
        (f"int4，13B 的 {figures['layers']} 层，回答", "猜与不猜的速度比：中位数（最小–最大）")
        if chinese
        else (
            f"int4, {figures['layers']} of the 13B's layers, the answer is",
            "times as fast with guesses: median (least to most)",
        )
    )
    names = {
        "nothing": ("从未出现过的词元：没有可猜的", "tokens never seen before: nothing to guess"),
        "wrong": ("处处可猜，全部猜错", "a guess everywhere, all of them wrong"),
        "fifth": ("处处可猜，五个中对一个", "a guess everywhere, one in five right"),
    }
    ratios = figures["times_as_fast"]
    body = [(shown[not chinese], _range(ratios[name])) for name, shown in names.items()]
    return table_rows(head, *body) + hardware(figures, chinese)


def speculation_draft(chinese: bool) -> str:
    """What a draft model gives, by how often it is right."""
    figures = read("speculation_draft")
    head = (
        (f"int4，13B 的 {figures['layers']} 层，草稿模型猜对", "不猜", "猜", "中位数（最小–最大）")
        if chinese
        else (
            f"int4, {figures['layers']} of the 13B's layers, the draft is right in",
            "without",
            "with it",
            "times as fast: median (least to most)",
        )
    )
    body = []
    for share, rows in figures["rows"].items():
        speeds = [1 / statistics.median(row[way] for row in rows) for way in ("without", "with")]
        shown = [f"{speed:.3g} tokens/s" for speed in speeds]
        body.append((f"{share} %", *shown, _range(figures["times_as_fast"][share])))
    return table_rows(head, *body) + hardware(figures, chinese)


def _range(ratio: dict[str, Any]) -> str:
    least, *_, most = ratio["all"]
    return f"{ratio['median']:.3f} ({least:.3f}–{most:.3f})"


def formats(chinese: bool) -> str:
    """Bytes of each format: of 16 rows of 256 columns, and of whole networks."""
    head = (
        ("格式", "16 × 256 权重：编码", "缩放系数", "每权重位数", "13B", "7B")
        if chinese
        else ("format", "16 x 256 weights: codes", "scales", "bits per weight", "13B", "7B")
    )
    body = []
    four, three = (Scheme(4, n) for n in (256, 128, 64, 32)), (Scheme(3, n) for n in (64, 32))
    for scheme in (Scheme(8, None), Scheme(8, 32), *four, *three):
        codes, scales = _bytes(16, 256, scheme)
        size = f", groups of {scheme.group_size}" if scheme.group_size else ""
        bits = f"{scheme.stored_bits(5120):.4g}"
        totals = [f"{_network_bytes(*shape, scheme) / 1e9:.2f} GB" for shape in _SHAPES]
        body.append((f"int{scheme.bits}{size}", f"{codes:,}", scales, bits, *totals))
    plain = [f"{_network_bytes(*shape, None) / 1e9:.2f} GB" for shape in _SHAPES]
    return table_rows(head, *body, ("bfloat16", f"{16 * 256 * 2:,}", "—", "16", *plain))


def _bytes(rows: int, columns: int, scheme: Scheme | None) -> tuple[int, int]:
    """Bytes of a matrix: codes (or weights) and scales."""
    if scheme is None:
        return 2 * rows * columns, 0
    codes, scales = packed_shapes(
        rows, columns, scheme.bits, scheme.columns_per_group, scheme.per_row
    )
    return math.prod(codes), 2 * math.prod(scales)


def _network_bytes(hidden: int, inner: int, layers: int, scheme: Scheme | None) -> int:
    """Bytes of a network with an int8 head, and embedding and norms in bfloat16."""
    shapes = ((3 * hidden, hidden), (hidden, hidden), *[(inner, hidden)] * 2, (hidden, inner))
    layer = sum(sum(_bytes(*shape, scheme)) for shape in shapes) + 4 * hidden
    head = sum(_bytes(_VOCABULARY, hidden, Scheme(8, None) if scheme else None))
    return layers * layer + head + 2 * _VOCABULARY * hidden + 2 * hidden


def finetuning(chinese: bool) -> str:
    """Fine-tuning beside the network as it was published, and the 13B in int4."""
    head = (
        ("微调，每行 2,048 词元", "本项目", "2023 年发布的写法", "速度", "内存")
        if chinese
        else (
            "fine-tuning, rows of 2,048",
            "this package",
            "as published in 2023",
            "speed",
            "memory",
        )
    )
    body: list[tuple[str, ...]] = []
    rows = [read(f"finetuning_{name}") for name in ("small", "wide", "qlora")]
    *pairs, whole = rows
    for figures in pairs:
        cells = [_training(figures["runs"][way]) for way in ("ours", "published")]
        ratios = (f"{figures['speed_ratio']:.2f}x", f"{figures['memory_ratio']:.2f}x")
        body.append((figures["what"], *cells, *ratios))
    seconds = f"{whole['seconds_per_step']:.0f} s a step, {whole['peak_memory_gb']:.1f} GB"
    body.append((whole["what"], seconds, "—", "", ""))
    return table_rows(head, *body) + hardware_of_rows(rows, chinese)


def _training(runs: list[dict[str, float]]) -> str:
    names = ("tokens_per_second", "peak_memory_gb")
    speed, memory = (statistics.median(run[name] for run in runs) for name in names)
    return f"{speed:.0f} tokens/s, {memory:.1f} GB"
