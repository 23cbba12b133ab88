"""Makes the demo model from its text, in four steps: vocabulary, train, export, report.

    python demo/build.py            all four; half an hour on two cores
    python demo/build.py export     one of them

A training that was stopped goes on where it was. `--fresh` forgets it and begins anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from texts import HERE

RUN = HERE / "run"
VOCABULARY = RUN / "tokenizer.model"
CHECKPOINT = RUN / "checkpoint.pt"
RECORD = HERE / "training.json"
HELD_OUT = HERE / "heldout.jsonl"
MODEL = HERE.parent / "src" / "baichuan" / "demo"
DOCS = HERE.parent / "docs"


def main() -> None:
    """Run the steps that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--fresh", action="store_true", help="forget an unfinished training")
    parser.add_argument("--epochs", type=int, help="train for this many epochs instead")
    arguments = parser.parse_args()
    unknown = set(arguments.steps) - set(STEPS)
    if unknown:
        parser.error(f"no step is called {', '.join(unknown)}; there are {', '.join(STEPS)}")
    if arguments.fresh:
        CHECKPOINT.unlink(missing_ok=True)
    for step in arguments.steps or STEPS:
        print(f"== {step}", flush=True)
        STEPS[step](arguments)


def vocabulary(_: argparse.Namespace) -> None:
    """Learn the pieces. Weights that were trained on others would be worthless: see `--fresh`."""
    import vocabulary

    if CHECKPOINT.exists():
        print(f"{CHECKPOINT.name} is there, so its vocabulary stays; --fresh makes a new one.")
        return
    vocabulary.build(VOCABULARY)


def train(arguments: argparse.Namespace) -> None:
    """Train, or go on training."""
    from training import Plan, Trainer, write_record

    plan = Plan(epochs=arguments.epochs) if arguments.epochs else Plan()
    Trainer(plan, VOCABULARY, CHECKPOINT).run()
    write_record(CHECKPOINT, RECORD)


def export(_: argparse.Namespace) -> None:
    """Write the package's model directory."""
    from export import export

    export(CHECKPOINT, VOCABULARY, MODEL)


def report(_: argparse.Namespace) -> None:
    """Examine the exported model and write the report."""
    from report import report

    report(MODEL, RECORD, HELD_OUT, DOCS)


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "vocabulary": vocabulary,
    "train": train,
    "export": export,
    "report": report,
}


if __name__ == "__main__":
    main()
