"""The `baichuan` command. Heavy imports happen inside each command, so that `--help` is instant."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from baichuan.cli import convert as conversion
from baichuan.cli import eval as evaluation
from baichuan.cli import serve as serving
from baichuan.cli.options import (
    Adapter,
    Bits,
    Device,
    DraftModel,
    Dtype,
    Group,
    HugePages,
    Model,
    Seed,
    Speculate,
    System,
    guess_options,
    load_options,
    takes_model,
    takes_model_first,
)
from baichuan.cli.typer_app import ModelFirst, SortedGroup, TrainCommand, run_app
from baichuan.errors import BaichuanError
from baichuan.language import translate
from baichuan.version import __version__

app = typer.Typer(
    name="baichuan",
    help=translate("Baichuan-13B and Baichuan-7B on today's software."),
    epilog="\b\n"
    + translate(
        "Examples:\n"
        "  baichuan chat                            talk to the small demo model\n"
        "  baichuan generate -p 'Who are you?'      print one answer"
    ),
    no_args_is_help=True,
    cls=SortedGroup,
    rich_markup_mode=None,  # rich cuts help that has no spaces, as Chinese has none
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"baichuan {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help=translate("Show the version."), callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


@app.command(
    help=translate(
        "Talk to a model in the terminal (/help shows what can be typed).\n\n"
        "Piped input is taken line by line, as if it were typed; triple quotes enclose a message "
        "of several lines."
    )
)
@takes_model
def chat(
    model: Model = None,
    system: System = None,
    speculate: Speculate = None,
    draft: DraftModel = None,
    adapter: Adapter = None,
    bits: Bits = None,
    huge_pages: HugePages = False,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Run `baichuan chat`."""
    from baichuan.cli.chat import run_chat

    guesses = guess_options(speculate, draft)
    where = load_options(adapter, bits, huge_pages, dtype, device)
    run_chat(model, system=system, **guesses, **where)


@app.command(
    help=translate("Answer one prompt: the text goes to stdout, everything else to stderr.")
)
@takes_model
def generate(
    model: Model = None,
    prompt: Annotated[
        str | None,
        typer.Option("-p", "--prompt", help=translate("The question; - or nothing reads stdin.")),
    ] = None,
    system: System = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help=translate("Continue the text as it stands, without the chat format.")
        ),
    ] = False,
    max_tokens: Annotated[
        int | None, typer.Option(help=translate("Most tokens to generate."))
    ] = None,
    temperature: Annotated[float | None, typer.Option(help=translate("0 is greedy."))] = None,
    top_p: Annotated[
        float | None, typer.Option(help=translate("Sample from this share of probability."))
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help=translate("Sample from the k likeliest; 0: all."))
    ] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help=translate("1 is off."))] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help=translate("End before this text; may be given several times.")),
    ] = None,
    seed: Seed = None,
    speculate: Speculate = None,
    draft: DraftModel = None,
    adapter: Adapter = None,
    bits: Bits = None,
    huge_pages: HugePages = False,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Run `baichuan generate`."""
    from baichuan.cli.generate import run_generate

    given = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "repetition_penalty": repetition_penalty,
        "stop": tuple(stop) if stop else None,
        "seed": seed,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    where = load_options(adapter, bits, huge_pages, dtype, device)
    guesses = guess_options(speculate, draft)
    run_generate(model, prompt, system, raw, settings, **guesses, **where)


@app.command(
    cls=ModelFirst,
    help=translate(
        "Write a quantized copy of a checkpoint, tensor by tensor, in little memory.\n\n"
        "Stopped or killed, it goes on where it was when the same command is given again."
    ),
)
@takes_model_first
def quantize(
    source: Annotated[
        str, typer.Argument(help=translate("Directory or hub name of a checkpoint."))
    ],
    target: Annotated[Path, typer.Argument(help=translate("Directory to make."))],
    bits: Annotated[int | None, typer.Option(help=translate("8, 4 or 3; 4 by itself."))] = None,
    group_size: Group = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help=translate("Choose the codes by texts: loses less."))
    ] = False,
    text: Annotated[
        list[Path] | None,
        typer.Option(help=translate("Calibrate by this file; may be given several times.")),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help=translate("Mix 3, 4 and 8 bits to this size, such as 6GB; calibrates.")),
    ] = None,
) -> None:
    """Run `baichuan quantize`."""
    from baichuan.cli.quantize import run_quantize

    texts = text or ()
    run_quantize(source, target, bits, group_size, calibrate=calibrate, texts=texts, budget=budget)


@app.command(
    help=translate(
        "Write a copy of a checkpoint with a LoRA adapter merged into it, in little memory.\n\n"
        "A quantized checkpoint is rounded anew. Stopped or killed, it goes on where it was when "
        "the same command is given again."
    )
)
def merge(
    adapter: Annotated[Path, typer.Argument(help=translate("Directory of a LoRA adapter."))],
    target: Annotated[Path, typer.Argument(help=translate("Directory to make."))],
    model: Annotated[
        str | None,
        typer.Option(
            "-m",
            "--model",
            help=translate("Directory or hub name; by default what the adapter was trained on."),
        ),
    ] = None,
) -> None:
    """Run `baichuan merge`."""
    from baichuan.cli.merge import run_merge

    run_merge(adapter, target, model)


app.command(help=serving.HELP)(serving.serve)


@app.command(
    help=translate(
        "Measure speed and memory in fp32, bf16, int8 and int4, and ALiBi beside RoPE.\n\n"
        "A network of random weights is as fast and as large as a trained one: --random 13b needs "
        "no download. What does not fit into memory is not run."
    )
)
@takes_model
def bench(
    model: Model = None,
    random: Annotated[
        str | None,
        typer.Option(help=translate("13b or 7b: random weights in that geometry, no checkpoint.")),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(help=translate("With --random: so many layers of full width."))
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help=translate("Only these of fp32,bf16,int8,int4, parted by commas.")),
    ] = None,
    prompt: Annotated[int, typer.Option(help=translate("Tokens of the prompt."))] = 512,
    tokens: Annotated[int, typer.Option(help=translate("Tokens to generate behind it."))] = 2048,
    repeats: Annotated[int, typer.Option(help=translate("How often; the median counts."))] = 3,
    threads: Annotated[
        int | None, typer.Option(help=translate("Processors to use; torch's choice by default."))
    ] = None,
    rope: Annotated[
        bool, typer.Option("--rope/--no-rope", help=translate("Compare ALiBi with RoPE."))
    ] = True,
    json: Annotated[
        Path | None, typer.Option(help=translate("File to write all figures to, as JSON."))
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help=translate("File to draw to: .png, .svg or .pdf."))
    ] = None,
    huge_pages: HugePages = False,
    device: Device = None,
) -> None:
    """Run `baichuan bench`."""
    from baichuan.bench.job import Job
    from baichuan.cli.bench import run_bench

    job = Job(
        model=model,
        random=random,
        layers=layers,
        prompt=prompt,
        tokens=tokens,
        repeats=repeats,
        threads=threads,
        device=device,
        huge_pages=huge_pages,
        rope=rope,
    )
    run_bench(job, precision, json, plot)


@app.command(help=translate("Talk to a model, or to a server, in the browser."))
@takes_model
def web(
    model: Model = None,
    server: Annotated[
        str | None,
        typer.Option(
            help=translate("Address of an OpenAI-compatible server that answers instead.")
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help=translate("Address to listen on; 0.0.0.0 is every one."))
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help=translate("Port to listen on; if taken, the next one."), max=65535)
    ] = 8501,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help=translate("Open a browser."))
    ] = True,
    speculate: Speculate = None,
    draft: DraftModel = None,
    adapter: Adapter = None,
    bits: Bits = None,
    huge_pages: HugePages = False,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Run `baichuan web`."""
    from baichuan.cli.web import run_web

    where = load_options(adapter, bits, huge_pages, dtype, device)
    where.update(guess_options(speculate, draft))
    run_web(model, server, host, port, browser, where)


@app.command(
    help=translate("Fine-tune a model: LoRA, QLoRA, full; `baichuan train --help` lists flags."),
    # Hundreds of flags, which transformers' own parser reads.
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
    cls=TrainCommand,
)
def train(context: typer.Context) -> None:
    """Run `baichuan train`."""
    from baichuan.cli.train import run_train

    run_train(context.args)


@app.command(help=translate("Show versions, devices, and what a checkpoint is."))
@takes_model
def info(
    model: Model = None,
    json: Annotated[
        bool, typer.Option("--json", help=translate("Print JSON, for programs and bug reports."))
    ] = False,
) -> None:
    """Run `baichuan info`."""
    from baichuan.cli.info import run_info

    run_info(model, json)


@app.command("help", help=translate("Show help for a command, such as `baichuan help eval mmlu`."))
def show_help(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[COMMAND]...", help=translate("Names of a command."), show_default=False
        ),
    ] = None,
) -> None:
    """Run a command's own --help."""
    run_app(app, [*(words or ()), "--help"])


app.command(cls=ModelFirst, help=conversion.HELP)(takes_model_first(conversion.convert))
app.add_typer(evaluation.app, name="eval")


#: GNU OpenMP's threads wait for each other in a loop of 300,000 rounds, some 13 ms: beside another
#: busy process that costs more than the work. 10,000 rounds cover the pauses between kernels.
_ROUNDS_OF_WAITING = "10000"


def main() -> None:
    """Run the command line."""
    run(lambda: run_app(app))


def run(command: Callable[[], object]) -> None:
    """Run a command; an error that a user can mend is a sentence and exit code 2."""
    # Read when torch loads its OpenMP, which is later.
    os.environ.setdefault("GOMP_SPINCOUNT", _ROUNDS_OF_WAITING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An answer may hold characters that a legacy encoding lacks; that must not end it.
            stream.reconfigure(errors="replace")
    try:
        command()
    except BaichuanError as error:
        print(f"baichuan: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
