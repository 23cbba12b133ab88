"""typer's help and errors: in the user's language, commands by name.

typer has its own sentences in English alone. They are recognized by the templates below; a sentence
of another version of typer that is not among them stays as it is.
"""

from __future__ import annotations

import io
import re
import string
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

from baichuan.language import phrase, translate

#: click's ClickException, which newer versions of typer hold under a private name.
_CommandLineError = cast(type[Exception], typer.BadParameter.__mro__[2])

#: A longer one stands before one that is its beginning. `{reason}` is a sentence of its own.
_TEMPLATES = (
    phrase("Usage: "),
    phrase("Arguments"),
    phrase("Options"),
    phrase("Commands"),
    phrase("Show this message and exit."),
    phrase("Install completion for the current shell."),
    phrase("Show completion for the current shell, to copy it or customize the installation."),
    phrase("default: {value}"),
    phrase("env var: {name}"),
    phrase("required"),
    phrase("Try '{command}' for help."),
    phrase("Error: {reason}"),
    phrase("Invalid value for {name}: {reason}"),
    phrase("No such option: {name} (Possible options: {names})"),
    phrase("No such option: {name}"),
    phrase("No such command {name}. Did you mean {names}?"),
    phrase("No such command {name}."),
    phrase("Missing command."),
    phrase("Missing argument {name}."),
    phrase("Missing option {name}."),
    phrase("Option {name} requires an argument."),
    phrase("Option {name} does not take a value."),
    phrase("Got unexpected extra argument(s) ({words})"),
    phrase("Input should be a valid number, unable to parse string as a number"),
    phrase("Input should be a valid integer, unable to parse string as an integer"),
    phrase("Input should be greater than or equal to {least}"),
    phrase("Input should be less than or equal to {most}"),
)
_EXTRAS = re.compile(r"\[([^\[\]]*)\]$")


def _pattern(template: str) -> re.Pattern[str]:
    parts = string.Formatter().parse(template)
    return re.compile(
        "".join(
            re.escape(text) + (f"(?P<{name}>.+?)" if name else "") for text, name, _, _ in parts
        )
    )


_PATTERNS = [(_pattern(template), template) for template in _TEMPLATES]


def localized(sentence: str) -> str:
    """Return a sentence of typer's in the user's language, and any other as it is."""
    for pattern, template in _PATTERNS:
        if match := pattern.fullmatch(sentence):
            facts = match.groupdict()
            if "reason" in facts:
                facts["reason"] = localized(facts["reason"])
            return translate(template, **facts)
    return sentence


def _localized_help(text: str) -> str:
    """Return the help of an option, which ends in `[default: 8; required]`, say."""
    extras = _EXTRAS.search(text)
    if extras is None:
        return localized(text)
    inside = "; ".join(map(localized, extras.group(1).split("; ")))
    return f"{text[: extras.start()]}[{inside}]"


_Formatter: Any = typer.Context.formatter_class


class _HelpFormatter(_Formatter):  # type: ignore[misc]  # its module is private to typer
    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, prefix or localized("Usage: "))

    def write_heading(self, heading: str) -> None:
        super().write_heading(localized(heading))

    def write_dl(self, rows: Sequence[tuple[str, str]], *sizes: Any, **named: Any) -> None:
        super().write_dl([(name, _localized_help(text)) for name, text in rows], *sizes, **named)


class _Context(typer.Context):
    formatter_class = _HelpFormatter


class SortedGroup(TyperGroup):
    """Commands by name, as a reader looks for them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return sorted(super().list_commands(ctx))


class TrainCommand(TyperCommand):
    """`baichuan train`, whose flags typer does not know."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the flags that begin so."""
        from typer.core import CompletionItem  # type: ignore[attr-defined]

        from baichuan.cli.train import flag_names

        return [CompletionItem(name) for name in flag_names() if name.startswith(incomplete)]


class ModelFirst(TyperCommand):
    """A command of `takes_model_first`."""

    _NAMES = ("-m", "--model")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move what -m names to where the argument stands; the parser reads the rest."""
        for index, word in enumerate(args):
            name, equals, value = word.partition("=")
            if word in self._NAMES and index + 1 < len(args):
                args = [args[index + 1], *args[:index], *args[index + 2 :]]
                break
            if name == "--model" and equals:
                args = [value, *args[:index], *args[index + 1 :]]
                break
        return super().parse_args(ctx, args)


def _localize_help(command: Any) -> None:
    """Make a command and its subcommands show their help in the user's language."""
    command.context_class = _Context
    for subcommand in getattr(command, "commands", {}).values():
        _localize_help(subcommand)


def run_app(app: typer.Typer, arguments: list[str] | None = None) -> NoReturn:
    """Run a typer application with these arguments, or those of the process, and exit."""
    command = typer.main.get_command(app)
    _localize_help(command)
    try:
        code = command.main(arguments, standalone_mode=False)
    except _CommandLineError as error:
        _show_error(error)
        code = 2
    raise SystemExit(code or 0)


def _show_error(error: Any) -> None:
    shown = io.StringIO()
    error.show(shown)
    for line in shown.getvalue().splitlines():
        print(localized(line), file=sys.stderr)
