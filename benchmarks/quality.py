"""What our int8 and int4 lose on trained weights, beside llama.cpp's formats on the same tokens.

    python benchmarks/quality.py FILE.gguf --directory DIRECTORY [--text FILE ...]
    python benchmarks/quality.py --draw     only the picture, from the results

Two networks: SmolLM2-135M (FILE.gguf, see smollm.py; judged off its Q4_1 grid, and on it for
comparison) and the demo model. Each format twice: `weights`, its rounded weights in our float32
network, so that nothing but rounding differs; and `as_run`, with the kernels, which round
activations too (ours here, llama.cpp's in llama.cpp). Both leave embedding and norms as they are.
Stored bits count codes, scales and filling of all linear layers and the head.

Needs `gguf`, `llama-cpp-python` and `matplotlib`. Writes results/quality.json, docs/quality.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import machine
import torch
from judged_texts import IGNORED, LENGTH, Row, demo_rows, text_rows
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

from baichuan.checkpoint.load import DEMO
from baichuan.model.network import BaichuanForCausalLM
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.plan import Plan, quantize_modules
from baichuan.quant.scheme import Scheme

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "quality.png"
_PART = 128
_WEIGHTS = "model.safetensors"

_ROW = Scheme(8, None)
_ON_GRID = ("int8", "int4, groups of 128", "int4, groups of 64", "int4, groups of 32")
_DRAWN = ("SmolLM2-135M", "demo model, held-out questions")
_COLOURS = {"ours": "tab:red", "llama.cpp": "tab:blue"}
_LABELS = {
    "int8": "int8",
    **{f"int8, groups of {size}": f"int8 g{size}" for size in (128, 64, 32)},
    **{f"int4, groups of {size}": f"int4 g{size}" for size in (128, 64, 32)},
    "Q8_0": "Q8_0",
    "Q4_0": "Q4_0",
    "Q4_K_M": "Q4_K_M, short rows",
    "Q4_K_M, as for wide rows": "Q4_K_M",
}


@dataclass(frozen=True)
class Rounded:
    """A network with rounded weights, and how to run it as its own software does, if possible.

    Attributes:
        by: "ours" or "llama.cpp".
        formats: matrices per stored format, where a file mixes them.
        bits: stored per weight of linear layers and head; bits_whole, if no row needed filling.
    """

    name: str
    by: str
    bits: float
    bits_whole: float
    formats: dict[str, int]
    model: BaichuanForCausalLM
    as_run: Callable[[Row], Tensor] | None


@dataclass(frozen=True)
class Case:
    """A network and a text to judge by."""

    name: str
    directory: Path
    rows: list[Row]
    texts: dict[str, int]
    plans: dict[str, Plan]
    runs_in_llama_cpp: bool


def plans(directory: Path) -> dict[str, Plan]:
    """Name what of ours is measured: formats, and the head apart from the rest."""
    others = [name.removesuffix(".weight") for name in load_file(directory / _WEIGHTS)]
    others.remove("lm_head")
    formats = {"int8": Plan(_ROW)}
    for size in (128, 64, 32):
        formats[f"int8, groups of {size}"] = Plan(Scheme(8, size), {"lm_head": Scheme(8, size)})
    for size in (128, 64, 32):
        formats[f"int4, groups of {size}"] = Plan(Scheme(4, size), {"lm_head": _ROW})
    middle = Scheme(4, 64)
    formats["int4, groups of 64, head as it was"] = Plan(middle, {"lm_head": None})
    formats["int4, groups of 64, head too"] = Plan(middle, {"lm_head": middle})
    for name, scheme in (("int8", _ROW), ("int4, groups of 64", middle)):
        kept = dict.fromkeys(others)
        formats[f"head alone, {name}"] = Plan(scheme, {**kept, "lm_head": scheme})
    return formats


def rounded_by_us(case: Case) -> Iterator[Rounded]:
    """Quantize with each plan; the model changes from kernels to float32 between the two uses."""
    for name, plan in case.plans.items():
        model = _load(case)
        count = sum(m.weight.numel() for m in model.modules() if type(m) is nn.Linear)
        quantize_modules(model, plan)
        stored = whole = 0.0
        for module in model.modules():
            if isinstance(module, QuantizedLinear):
                stored += 8 * (module.codes.nbytes + module.scales.nbytes)
                group = module.scheme.group_size or module.in_features
                weights = module.in_features * module.out_features
                whole += weights * (module.scheme.bits + 16 / group)
            elif type(module) is nn.Linear:  # stays in bfloat16
                stored += 16 * module.weight.numel()
                whole += 16 * module.weight.numel()
        kernels = _load(case)
        quantize_modules(kernels, plan)
        dequantize_layers(model)
        run = partial(logits_of, kernels)
        yield Rounded(name, "ours", stored / count, whole / count, {}, model, run)


def dequantize_layers(model: nn.Module) -> None:
    """Put float32 layers in place of the quantized ones, of the weights that these stand for."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            plain = nn.Linear(module.in_features, module.out_features, False, device="meta")
            plain.weight = nn.Parameter(module.dequantize(), requires_grad=False)
            model.set_submodule(name, plain)


def rounded_by_llama_cpp(case: Case, work: Path) -> Iterator[Rounded]:
    """Quantize with llama.cpp: the network as it is if it can run there, and padded.

    K formats need rows of 256 weights; llama.cpp stores other rows in larger formats. Padding shows
    what it does to wide networks, at the bits that those have.
    """
    import gguf_models

    model = _load(case)
    state = load_file(case.directory / _WEIGHTS)
    kinds = [("Q4_K_M", True)]
    kinds += [(kind, not case.runs_in_llama_cpp) for kind in ("Q8_0", "Q4_0")]
    if case.runs_in_llama_cpp:
        kinds = [("Q4_K_M", False), *kinds]
    for kind, padded in kinds:
        source, target = work / "source.gguf", work / "rounded.gguf"
        gguf_models.write_gguf(source, state, model.config, padded=padded)
        gguf_models.quantize(source, target, kind)
        rounded, bits, counts = gguf_models.rounded_weights(target, model.config)
        model.load_state_dict(rounded)
        name = f"{kind}, as for wide rows" if padded and kind == "Q4_K_M" else kind
        if padded:
            yield Rounded(name, "llama.cpp", bits, bits, counts, model, None)
            continue
        with gguf_models.running(target, LENGTH) as runner:
            run = partial(_in_llama_cpp, runner)
            yield Rounded(name, "llama.cpp", bits, bits, counts, model, run)


def unrounded_in_llama_cpp(case: Case, work: Path) -> Iterator[Rounded]:
    """Give the float32 network in llama.cpp: what the other rows may be off by without rounding."""
    import gguf_models

    model = _load(case)
    path = work / "source.gguf"
    gguf_models.write_gguf(path, load_file(case.directory / _WEIGHTS), model.config, padded=False)
    with gguf_models.running(path, LENGTH) as runner:
        run = partial(_in_llama_cpp, runner)
        yield Rounded("F32", "llama.cpp", 32.0, 32.0, {}, model, run)


def _in_llama_cpp(runner: Any, row: Row) -> Tensor:
    logits: Tensor = runner.logits(row.ids.tolist())
    return logits


def _load(case: Case) -> BaichuanForCausalLM:
    model = BaichuanForCausalLM.from_pretrained(case.directory, dtype=torch.float32)
    return model.eval()


@torch.inference_mode()
def logits_of(model: BaichuanForCausalLM, row: Row) -> Tensor:
    """Give float32 [positions, vocabulary]."""
    mask = None if row.segments is None else row.segments[None]
    logits: Tensor = model(row.ids[None], attention_mask=mask, use_cache=False).logits[0]
    return logits


def compared(reference: Tensor, logits: Tensor, row: Row) -> Tensor:
    """Compare two predictions at each judged position.

    Returns:
        float64 [positions, 4]: KL(reference || other) in nats, 1 where the likeliest token is the
        same, and the loss of either on the target.
    """
    judged = row.targets != IGNORED
    parts = []
    for ours, other, target in zip(
        reference[judged].split(_PART),
        logits[judged].split(_PART),
        row.targets[judged].split(_PART),
        strict=True,
    ):
        log, other_log = ours.double().log_softmax(-1), other.double().log_softmax(-1)
        kl = (log.exp() * (log - other_log)).sum(-1)
        same = (ours.argmax(-1) == other.argmax(-1)).double()
        losses = [-x.gather(-1, target[:, None])[:, 0] for x in (log, other_log)]
        parts.append(torch.stack([kl, same, *losses], dim=-1))
    return torch.cat(parts)


def summary(positions: Tensor) -> dict[str, float]:
    """Reduce what `compared` gave; the error of the mean KL is its standard error."""
    kl, same, before, after = positions.unbind(-1)
    return {
        "kl": float(kl.mean()),
        "kl_error": float(kl.std() / len(kl) ** 0.5),
        "kl_median": float(kl.median()),
        "kl_99": float(kl.quantile(0.99)),
        "same_likeliest": float(same.mean()),
        "perplexity": float(after.mean().exp()),
        "perplexity_change": float((after.mean() - before.mean()).expm1()),
    }


def measure(case: Case, work: Path) -> dict[str, Any]:
    """Judge every format of one case."""
    original = _load(case)
    reference = [logits_of(original, row) for row in case.rows]
    pairs = zip(reference, case.rows, strict=True)
    base = summary(torch.cat([compared(known, known, row) for known, row in pairs]))
    del original
    makers = [rounded_by_us(case), rounded_by_llama_cpp(case, work)]
    if case.runs_in_llama_cpp:
        makers.insert(0, unrounded_in_llama_cpp(case, work))
    figures = []
    for rounded in tqdm((r for maker in makers for r in maker), desc=case.name, unit="format"):
        figures.append(_figures(rounded, case, reference))
        print(json.dumps(figures[-1]), flush=True)
    tokens = int(sum((row.targets != IGNORED).sum() for row in case.rows))
    return {
        "case": case.name,
        "texts": case.texts,
        "judged_tokens": tokens,
        "perplexity": base["perplexity"],
        "formats": figures,
    }


def _figures(rounded: Rounded, case: Case, reference: list[Tensor]) -> dict[str, Any]:
    weights = judged(partial(logits_of, rounded.model), case.rows, reference)
    as_run = None if rounded.as_run is None else judged(rounded.as_run, case.rows, reference)
    return {
        "format": rounded.name,
        "by": rounded.by,
        "stored_bits": round(rounded.bits, 4),
        "stored_bits_whole_rows": round(rounded.bits_whole, 4),
        "matrices": rounded.formats,
        "weights": weights,
        "as_run": as_run,
    }


def judged(
    run: Callable[[Row], Tensor], rows: Sequence[Row], reference: list[Tensor]
) -> dict[str, float]:
    """Compare a network with the reference logits of all rows."""
    pairs = zip(reference, rows, strict=True)
    return summary(torch.cat([compared(known, run(row), row) for known, row in pairs]))


def cases(path: Path, work: Path, texts: Sequence[Path], count: int) -> Iterator[Case]:
    """Give each network with each kind of text."""
    import smollm

    rows, tokens = text_rows(path, texts, count)
    for name, off_grid in (("SmolLM2-135M", True), ("SmolLM2-135M on its Q4_1 grid", False)):
        directory = work / ("smollm_off_grid" if off_grid else "smollm")
        smollm.convert(path, directory, off_grid=off_grid)
        wanted = plans(directory)
        if not off_grid:
            wanted = {name: wanted[name] for name in wanted if name in _ON_GRID}
        yield Case(name, directory, rows, tokens, wanted, True)
    for name, rows in demo_rows().items():
        tokens = {name: sum(len(row.ids) for row in rows)}
        yield Case(f"demo model, {name}", DEMO, rows, tokens, plans(DEMO), False)


def draw(figures: dict[str, Any]) -> None:
    """Draw mean KL over stored bits, 4 and 8 bits apart: weights alone filled, as run hollow."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [case for case in figures["cases"] if case["case"] in _DRAWN]
    chart, grid = pyplot.subplots(len(cases), 2, figsize=(11, 9), layout="constrained")
    for panels, case in zip(grid, cases, strict=True):
        for panel, (low, high) in zip(panels, ((4, 7), (7, 10)), strict=True):
            shown = [f for f in case["formats"] if f["format"] in _LABELS]
            for point in (f for f in shown if low < f["stored_bits"] < high):
                _draw_point(panel, point)
            panel.set(yscale="log", title=case["case"], xlabel="stored bits per weight")
            panel.margins(0.25, 0.2)
            panel.grid(alpha=0.3, which="both")
            panel.set_ylabel("mean KL from float32, nats per token")
    for by, colour in _COLOURS.items():
        for fill, words in ((colour, "rounded weights alone"), ("none", "as run")):
            grid[0][1].plot([], [], "o", color=colour, mfc=fill, label=f"{by}, {words}")
    grid[0][1].legend()
    chart.savefig(PICTURE, dpi=100)


def _draw_point(panel: Any, point: dict[str, Any]) -> None:
    bits, colour = point["stored_bits"], _COLOURS[point["by"]]
    panel.plot(bits, point["weights"]["kl"], "o", color=colour)
    if point["as_run"]:
        panel.plot(bits, point["as_run"]["kl"], "o", color=colour, mfc="none")
    ours = point["by"] == "ours"
    panel.annotate(
        _LABELS[point["format"]],
        (bits, point["weights"]["kl"]),
        (0, 10) if ours else (0, -18),
        textcoords="offset points",
        color=colour,
        ha="center",
    )


def parse(description: str) -> argparse.Namespace:
    """Read what networks and texts to judge by, from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("gguf", type=Path, nargs="?", help="SmolLM2-135M's")
    parser.add_argument("--directory", type=Path, help="for networks and files in between, 3 GB")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="more English texts")
    parser.add_argument("--rows", type=int, default=12, help="of 512 tokens, over all texts")
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    arguments = parser.parse_args()
    if not arguments.draw and (arguments.gguf is None or arguments.directory is None):
        parser.error("the GGUF and --directory are needed")
    return arguments


def main() -> None:
    """Measure all cases and write results and picture."""
    arguments = parse(__doc__.splitlines()[0])
    if arguments.draw:
        draw(json.loads((machine.RESULTS / "quality.json").read_text("utf-8")))
        return
    work = arguments.directory
    work.mkdir(parents=True, exist_ok=True)
    judged = cases(arguments.gguf, work, arguments.text, arguments.rows)
    figures = {
        "llama_cpp": f"llama-cpp-python {version('llama-cpp-python')}",
        "cases": [measure(case, work) for case in judged],
    }
    machine.save("quality", figures)
    draw(figures)


if __name__ == "__main__":
    main()
