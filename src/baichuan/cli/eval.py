"""`baichuan eval ...`: what can be typed. Heavy imports happen inside each command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from baichuan.cli.options import (
    Adapter,
    Bits,
    Device,
    Dtype,
    Model,
    one_model,
    takes_model,
    takes_model_first,
)
from baichuan.cli.typer_app import ModelFirst, SortedGroup
from baichuan.language import translate

app = typer.Typer(
    help=translate("Evaluate models: C-Eval, MMLU, CMMLU, perplexity, distance from an original."),
    no_args_is_help=True,
    rich_markup_mode=None,
    cls=SortedGroup,
)

_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help=translate("Directory or hub name of a checkpoint; the small demo model if not given."),
    ),
]
_Files = Annotated[
    list[Path],
    typer.Argument(
        help=translate("Text files in UTF-8; a model may stand before them."), show_default=False
    ),
]
_Window = Annotated[
    int | None,
    typer.Option(help=translate("Tokens seen at once; the model's context by default.")),
]
_Stride = Annotated[
    int | None,
    typer.Option(help=translate("Tokens that count in each window; half the window by default.")),
]
_Json = Annotated[
    Path | None, typer.Option("--json", help=translate("File to write all figures to, as JSON."))
]
_Plot = Annotated[Path | None, typer.Option(help=translate("File to draw to: .png, .svg or .pdf."))]


def _benchmark(name: str) -> Callable[..., None]:
    """Make the command of one benchmark."""

    def command(
        model: Model = None,
        data: Annotated[
            str | None,
            typer.Option(
                help=translate(
                    "Folder, .zip or .tar of the data, or its name on the hub; the benchmark's own "
                    "on the hub by default."
                )
            ),
        ] = None,
        scheme: Annotated[
            str,
            typer.Option(help=translate("Whose prompts and averages: official or baichuan.")),
        ] = "official",
        shots: Annotated[int, typer.Option(min=0, max=5, help=translate("Examples."))] = 5,
        split: Annotated[
            str | None, typer.Option(help=translate("val or test; the usual one by default."))
        ] = None,
        subjects: Annotated[
            str | None, typer.Option(help=translate("Only these, parted by commas."))
        ] = None,
        limit: Annotated[
            int | None, typer.Option(help=translate("Only so many questions of each subject."))
        ] = None,
        chat: Annotated[
            bool,
            typer.Option("--chat", help=translate("Ask in the chat format, for Chat models.")),
        ] = False,
        letter: Annotated[
            str | None,
            typer.Option(
                help=translate(
                    "Which token stands for a letter: first, last, piece or spaced; the scheme's "
                    "own by default."
                )
            ),
        ] = None,
        bos: Annotated[
            bool | None,
            typer.Option(
                "--bos/--no-bos",
                help=translate("Put <s> before the prompt; the scheme's own way by default."),
            ),
        ] = None,
        max_length: Annotated[
            int, typer.Option(help=translate("Tokens beyond which examples are left out."))
        ] = 2048,
        seed: Annotated[
            int, typer.Option(help=translate("Of the examples' order, where the scheme shuffles."))
        ] = 0,
        batch_tokens: Annotated[
            int, typer.Option(min=1, help=translate("Tokens computed side by side."))
        ] = 1024,
        transformers: Annotated[
            bool,
            typer.Option(
                "--transformers", help=translate("Load any causal model by transformers' classes.")
            ),
        ] = False,
        server: Annotated[
            str | None,
            typer.Option(
                help=translate("Address of an OpenAI-compatible server that scores instead.")
            ),
        ] = None,
        api_key: Annotated[
            str | None,
            typer.Option(envvar="BAICHUAN_API_KEY", help=translate("Key for the server.")),
        ] = None,
        out: Annotated[
            Path | None,
            typer.Option(
                help=translate("Result file; named after benchmark and model if not given.")
            ),
        ] = None,
        plot: _Plot = None,
        adapter: Adapter = None,
        bits: Bits = None,
        dtype: Dtype = None,
        device: Device = None,
    ) -> None:
        from baichuan.cli.evaluation import Asked, run_benchmark

        asked = Asked(
            benchmark=name,
            model=model,
            data=data,
            scheme=scheme,
            shots=shots,
            split=split,
            subjects=() if subjects is None else tuple(s.strip() for s in subjects.split(",")),
            limit=limit,
            chat=chat,
            letter=letter,
            bos=bos,
            max_length=max_length,
            seed=seed,
            batch_tokens=batch_tokens,
            transformers=transformers,
            server=server,
            api_key=api_key,
            bits=bits,
            dtype=dtype,
            device=device,
            adapter=adapter,
        )
        run_benchmark(asked, out, plot)

    return command


for _name, _help in (
    ("ceval", translate("C-Eval: 52 subjects in Chinese.")),
    ("mmlu", translate("MMLU: 57 subjects in English.")),
    ("cmmlu", translate("CMMLU: 67 subjects in Chinese.")),
):
    app.command(_name, help=_help)(takes_model(_benchmark(_name)))


@app.command(
    help=translate(
        "Show results side by side, with paired differences from the first of each benchmark."
    )
)
def compare(
    results: Annotated[
        list[Path],
        typer.Argument(help=translate("JSON files that the benchmarks wrote."), show_default=False),
    ],
    json: _Json = None,
    plot: _Plot = None,
) -> None:
    """Run `baichuan eval compare`."""
    from baichuan.cli.comparison import run_compare

    run_compare(results, json, plot)


@app.command(help=translate("How well a model predicts text files, in sliding windows."))
def perplexity(
    files: _Files,
    model: _Model = None,
    window: _Window = None,
    stride: _Stride = None,
    json: _Json = None,
    adapter: Adapter = None,
    bits: Bits = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Run `baichuan eval perplexity`."""
    from baichuan.cli.texts import run_perplexity

    where = {"adapter": adapter, "bits": bits, "dtype": dtype, "device": device}
    if len(files) > 1 and not files[0].is_file():
        model, files = one_model(str(files[0]), model), files[1:]
    run_perplexity(files, one_model(None, model), window, stride, json, where)


@app.command(
    cls=ModelFirst,
    help=translate(
        "How far a model's predictions are from its original's: mean KL divergence over text files."
    ),
)
@takes_model_first
def kl(
    model: Annotated[str, typer.Argument(help=translate("Directory or hub name of a checkpoint."))],
    original: Annotated[str, typer.Argument(help=translate("The same of what it was made from."))],
    files: _Files,
    window: _Window = None,
    stride: _Stride = None,
    json: _Json = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            help=translate("Directory of a LoRA adapter of the model."), show_default=False
        ),
    ] = None,
    bits: Bits = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Run `baichuan eval kl`."""
    from baichuan.cli.texts import run_kl

    where = {"adapter": adapter, "bits": bits, "dtype": dtype, "device": device}
    run_kl(model, original, files, window, stride, json, where)
