"""What fewer bits lose: calibrated, 3-bit and mixed formats of ours over stored bits.

    python benchmarks/bits.py FILE.gguf --directory DIRECTORY [--text FILE ...]
    python benchmarks/bits.py --draw     only the picture, from the results

Networks, texts and measure are those of quality.py, whose results must be there: llama.cpp's
formats on the same tokens stand beside ours. Calibrated by the package's own texts, half of them
Chinese, which are none of the judged ones; figures are of the rounded weights in the float32
network, and of our kernels as run.

A format that was measured before is not measured again, if results/bits.json has it.
Writes results/bits.json and docs/bits.png.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import torch
from judged_texts import Row
from quality import PICTURE, ROOT, Case, cases, dequantize_layers, judged, logits_of, parse
from torch import Tensor
from tqdm import tqdm

from baichuan.checkpoint.calibrate import calibration_rows
from baichuan.checkpoint.load import DEMO
from baichuan.checkpoint.quantize import quantize_checkpoint
from baichuan.checkpoint.sensitivity import Mixer
from baichuan.model.network import BaichuanForCausalLM
from baichuan.quant.linear import QuantizedLinear
from baichuan.quant.plan import Plan
from baichuan.quant.scheme import Scheme
from baichuan.weights import WeightFiles

RESULTS = machine.RESULTS / "bits.json"
CHART = PICTURE.with_name("bits.png")
#: Stored bits that mixes aim at, head included: the first is Q4_K_M's.
_MIXES = (5.1, 3.6, 4.5, 4.0, 3.4)
#: Rows of 512 tokens to calibrate SmolLM2 by, evenly from all.
_ROWS = 64
_HEAD = {"lm_head": Scheme(8, None)}
_FIXED = {
    "int4, groups of 64, calibrated": (Plan(Scheme(4, 64), _HEAD), True),
    "int3, groups of 64, calibrated": (Plan(Scheme(3, 64), _HEAD), True),
    "int3, groups of 64": (Plan(Scheme(3, 64), _HEAD), False),
    "int8, calibrated": (Plan(Scheme(8, None)), True),
    "int4, groups of 128, calibrated": (Plan(Scheme(4, 128), _HEAD), True),
}
_NEAREST = ("int3, groups of 64", "int4, groups of 64", "int8")
_COLOURS = ("tab:orange", "tab:purple", "tab:red", "tab:blue")
_LLAMA_CPP = ("Q4_0", "Q4_K_M, as for wide rows", "Q8_0")
_CASES = ("SmolLM2-135M", "demo model, held-out questions")


def smollm_rows(path: Path) -> Tensor:
    """Give the package's calibration texts in SmolLM2's tokens."""
    import gguf_models

    own = ROOT / "src" / "baichuan" / "quant" / "calibration.txt"
    ids: list[int] = []
    for passage in own.read_text("utf-8").split("\n%%\n"):
        ids += gguf_models.tokenize(path, passage + "\n")
    rows = torch.tensor(ids[: len(ids) // 512 * 512]).view(-1, 512)
    return rows[:: -(-len(rows) // _ROWS)]


def formats(case: Case, ids: Tensor, known: set[str]) -> Iterator[tuple[str, Plan, bool]]:
    """Give name, plan and whether it is calibrated."""
    wanted = {f"mix, {bits} bits": bits for bits in _MIXES}
    headers = WeightFiles(case.directory).headers
    kept = [h for n, h in headers.items() if "norm" in n or "embed" in n or "inv_freq" in n]
    rest = sum(header.nbytes for header in kept)
    quantized = sum(h.numel() for h in headers.values()) - sum(h.numel() for h in kept)
    mixer = Mixer(case.directory)
    losses = {} if wanted.keys() <= known else mixer.losses(ids)
    for name, bits in wanted.items():
        if name not in known:
            yield name, mixer.plan(losses, rest + quantized * bits / 8), True
    for name, (plan, calibrated) in _FIXED.items():
        if name not in known:
            yield name, plan, calibrated


def measure(case: Case, ids: Tensor, work: Path, known: list[dict[str, Any]]) -> Iterator[Any]:
    """Judge each format that is not known."""
    model = BaichuanForCausalLM.from_pretrained(case.directory, dtype=torch.float32).eval()
    reference = [logits_of(model, row) for row in case.rows]
    done = {figure["format"] for figure in known}
    for name, plan, calibrated in tqdm(formats(case, ids, done), desc=case.name, unit="format"):
        target = work / "bits"
        for earlier in (target, target.with_name("bits.partial")):
            shutil.rmtree(earlier, ignore_errors=True)
        quantize_checkpoint(case.directory, target, plan, ids=ids if calibrated else None)
        model = BaichuanForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
        counts: dict[str, int] = {}
        stored = weights = 0
        for module in model.modules():
            if isinstance(module, QuantizedLinear):
                kind = f"{module.scheme.bits} bits"
                counts[kind] = counts.get(kind, 0) + 1
                stored += 8 * (module.codes.nbytes + module.scales.nbytes)
                weights += module.in_features * module.out_features

        def as_run(row: Row, model: BaichuanForCausalLM = model) -> Tensor:
            return logits_of(model, row)

        run = judged(as_run, case.rows, reference)
        dequantize_layers(model)
        yield {
            "format": name,
            "by": "ours",
            "stored_bits": round(stored / weights, 4),
            "matrices": counts,
            "weights": judged(as_run, case.rows, reference),
            "as_run": run,
        }


def draw(figures: dict[str, Any]) -> None:
    """Draw mean KL over stored bits, ours and llama.cpp's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    earlier = json.loads((machine.RESULTS / "quality.json").read_text("utf-8"))
    chart, panels = pyplot.subplots(1, len(_CASES), figsize=(11, 5), layout="constrained")
    for panel, case in zip(panels, figures["cases"], strict=True):
        before = next(c for c in earlier["cases"] if c["case"] == case["case"])["formats"]
        lines = {
            "to the nearest code": [
                f
                for f in [*before, *case["formats"]]
                if f["by"] == "ours" and f["format"] in _NEAREST
            ],
            "calibrated": [f for f in case["formats"] if "calibrated" in f["format"]],
            "calibrated, mixed to a budget": [f for f in case["formats"] if "mix" in f["format"]],
            "llama.cpp": [f for f in before if f["format"] in _LLAMA_CPP],
        }
        for (label, points), mark, colour in zip(lines.items(), "os^D", _COLOURS, strict=True):
            points.sort(key=lambda f: f["stored_bits"])
            places = [(f["stored_bits"], f["weights"]["kl"]) for f in points]
            style = "" if label == "llama.cpp" else "-"
            if places:
                panel.plot(*zip(*places, strict=True), mark + style, color=colour, label=label)
        for f in lines["llama.cpp"]:
            short = f["format"].split(",")[0]
            panel.annotate(
                short, (f["stored_bits"], f["weights"]["kl"]), (6, 4), textcoords="offset points"
            )
        panel.set(yscale="log", title=case["case"], xlabel="stored bits per weight, head included")
        panel.set_ylabel("mean KL from float32, nats per token")
        panel.grid(alpha=0.3, which="both")
    panels[0].legend()
    chart.savefig(CHART, dpi=100)


def main() -> None:
    """Measure what is not measured yet; write results and picture."""
    arguments = parse(__doc__.splitlines()[0])
    figures = {"cases": [{"case": name, "formats": []} for name in _CASES]}
    if RESULTS.exists():
        figures = json.loads(RESULTS.read_text("utf-8"))
    if not arguments.draw:
        for case in cases(arguments.gguf, arguments.directory, arguments.text, arguments.rows):
            kept = next((c for c in figures["cases"] if c["case"] == case.name), None)
            if kept is None:
                continue
            small = case.directory == DEMO
            ids = calibration_rows(DEMO) if small else smollm_rows(arguments.gguf)
            for figure in measure(case, ids, arguments.directory, kept["formats"]):
                kept["formats"].append(figure)
                print(json.dumps(figure), flush=True)
                machine.save("bits", {"cases": figures["cases"]})
    draw(figures)


if __name__ == "__main__":
    main()
