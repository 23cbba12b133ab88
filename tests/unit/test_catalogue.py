"""What the source says to people is in the catalogue, whole and translated.

The source is read as a syntax tree, so that also sentences which no test provokes are checked.
"""

import ast
import string
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po

import baichuan
from baichuan import errors
from baichuan.errors import BaichuanError

PACKAGE = Path(baichuan.__file__).parent
PO = PACKAGE / "locale" / "zh" / "LC_MESSAGES" / "baichuan.po"
ERRORS = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, BaichuanError)
}
#: Templates that are not written where they are used: each was marked with `phrase(...)`.
PHRASES = {
    ("cli/commands.py", "command.purpose"),
    ("cli/commands.py", "_KEYS"),
    ("cli/plan.py", "text"),
    ("cli/train.py", "_OTHERS"),
    ("cli/train.py", "_USAGE"),
    ("cli/train.py", "flag.metadata['help']"),
    ("cli/train.py", "title"),
    ("cli/typer_app.py", "template"),
    ("engine/sampling.py", "allowed"),
    ("kernels/native.py", "reason"),
    ("errors.py", "template"),
    ("json_fields.py", "self.allowed"),
    ("outputs.py", "_UNWRITABLE"),
    ("picture.py", "text"),
    ("train/checks.py", "reason"),
    ("train/resume.py", "_CHANGED[name]"),
    ("train/arguments.py", "kind"),
    ("web/sidebar.py", "label"),
}


class Said(NamedTuple):
    """One call that says something: where, what, and with which facts."""

    place: str
    function: str
    template: ast.expr | None
    facts: tuple[str | None, ...]

    @property
    def text(self) -> str:
        assert isinstance(self.template, ast.Constant)
        return self.template.value


def calls(function_names: set[str]) -> Iterator[Said]:
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            function = ast.unparse(node.func)  # whole: str has a method `translate`, too
            if function.removeprefix("errors.") in function_names:
                first = node.args[0] if node.args else None
                facts = tuple(keyword.arg for keyword in node.keywords)
                yield Said(f"{name}:{node.lineno}", function, first, facts)


def is_written_out(said: Said) -> bool:
    return isinstance(said.template, ast.Constant) and isinstance(said.template.value, str)


def placeholders(text: str) -> Counter[tuple[str, str | None, str | None]]:
    parsed = string.Formatter().parse(text)
    return Counter((name, form, how) for _, name, form, how in parsed if name is not None)


SAID = list(calls({*ERRORS, "translate", "phrase"}))
TEMPLATES = [said for said in SAID if is_written_out(said)]
CATALOGUE = read_po(BytesIO(PO.read_bytes()), locale="zh")


def test_the_scan_sees_the_errors():
    assert len({said.text for said in TEMPLATES if said.function in ERRORS}) > 70


def test_templates_are_written_out():
    """No f-string, no computed text: gettext could not find it."""
    computed = [said for said in SAID if not is_written_out(said)]
    unknown = [
        said
        for said in computed
        if said.function != "translate"
        or (said.place.partition(":")[0], ast.unparse(said.template)) not in PHRASES
    ]
    assert unknown == []


def test_facts_are_those_of_the_template():
    """One too few would raise KeyError in place of the error; none would show the braces."""
    for said in TEMPLATES:
        if said.function != "phrase":
            assert {name for name, _, _ in placeholders(said.text)} == set(said.facts), said.place


def test_the_catalogue_has_what_is_said_and_nothing_else():
    """`make messages` mends this."""
    assert {message.id for message in CATALOGUE if message.id} == {s.text for s in TEMPLATES}


def test_everything_is_translated():
    """Edit the .po file, then `make messages`."""
    assert not CATALOGUE.obsolete
    for message in CATALOGUE:
        if message.id:
            assert message.string, message.id
            assert not message.fuzzy, message.id


def test_translations_have_the_same_placeholders():
    with_facts = {said.text for said in TEMPLATES if said.facts}
    assert with_facts
    for text in with_facts:
        assert placeholders(text) == placeholders(CATALOGUE[text].string), text


def test_translations_are_chinese_sentences():
    for message in CATALOGUE:
        words = "".join(text for text, *_ in string.Formatter().parse(message.id))
        if any(map(str.isalpha, words)):
            assert any("\u4e00" <= character <= "\u9fff" for character in message.string)
            assert message.id.endswith(".") == message.string.endswith("。"), message.string


def test_the_compiled_catalogue_is_of_this_text():
    with PO.with_suffix(".mo").open("rb") as file:
        compiled = {message.id: message.string for message in read_mo(file) if message.id}
    assert compiled == {message.id: message.string for message in CATALOGUE if message.id}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_the_makefile_collects_every_error(name):
    makefile = (Path(__file__).parents[2] / "Makefile").read_text("utf-8")
    assert name in makefile
