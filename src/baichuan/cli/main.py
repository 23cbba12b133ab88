"""The `baichuan` command. Heavy imports happen inside each command, so that `--help` is instant."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from baichuan.errors import BaichuanError

app = typer.Typer(
    name="baichuan",
    help="Baichuan-13B and Baichuan-7B on today's software.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = Annotated[
    str | None,
    typer.Argument(help="Directory or hub name of a checkpoint; the demo model if not given."),
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; the checkpoint's own by default.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, auto, ...; chosen if not given.")]
System = Annotated[str | None, typer.Option(help="System text put before the conversation.")]


@app.command()
def chat(
    model: Model = None,
    system: System = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Talk to a model in the terminal (/help shows what can be typed)."""
    from baichuan.cli.chat import run_chat

    run_chat(model, system=system, dtype=dtype, device=device)


@app.command()
def generate(
    model: Model = None,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="The question; - or nothing reads stdin.")
    ] = None,
    system: System = None,
    raw: Annotated[
        bool, typer.Option(help="Continue the text as it stands, without the chat format.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Answer one prompt: the text goes to stdout, everything else to stderr."""
    from baichuan.cli.generate import run_generate

    given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    settings = {name: value for name, value in given.items() if value is not None}
    run_generate(model, prompt, system, raw, settings, dtype=dtype, device=device)


@app.command()
def info(model: Model = None) -> None:
    """Show versions, devices, and what a checkpoint is."""
    from baichuan.cli.info import run_info

    run_info(model)


def main() -> None:
    """Run the command line; an error that a user can mend is a sentence and exit code 2."""
    try:
        app()
    except BaichuanError as error:
        print(f"baichuan: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
