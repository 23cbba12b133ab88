"""A training command as text: pasted, or in a .sh file, as the original README prints it.

There, some lines end in a backslash and a space. A shell ends the command at such a line; here the
lines are joined, so that the command runs as it stands (shell.py). No shell reads the text: it can
start nothing but a training, alone or by one of the launchers below.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baichuan.cli.shell import read_script
from baichuan.errors import UsageError

#: What starts several processes.
_LAUNCHERS = ("deepspeed", "torchrun", "accelerate")
_PYTHONS = ("python", "python3")
#: The last word of what names the program; flags follow.
_SCRIPTS = ("train_bash.py", "train.py", "baichuan.cli.train")
_COMMANDS = (["baichuan", "train"], ["llamafactory-cli", "train"])


@dataclass(frozen=True)
class Pasted:
    """What a command says.

    Attributes:
        environment: variables that it sets.
        launcher: a program and its options; empty for one process.
        arguments: of the training.
    """

    environment: dict[str, str]
    launcher: tuple[str, ...]
    arguments: tuple[str, ...]


def read_command(text: str) -> Pasted:
    """Read a command.

    Raises:
        UsageError: it starts no training, or not only one, or it needs a shell.
    """
    environment, words = read_script(text)
    launcher, arguments = _parted(words)
    return Pasted(environment, launcher, arguments)


def _parted(words: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tell the launcher from the training's arguments."""
    if words[:2] in _COMMANDS:
        return (), tuple(words[2:])
    ends = [n for n, word in enumerate(words) if Path(word).name in _SCRIPTS]
    if not ends or not words or words[0] not in (*_LAUNCHERS, *_PYTHONS):
        raise UsageError(
            "This is no training command: {start!r}. It must begin with one of {allowed}, and name "
            "src/train_bash.py, or be `baichuan train ...`.",
            start=" ".join(words[:4]),
            allowed=", ".join((*_PYTHONS, *_LAUNCHERS)),
        )
    head, arguments = words[: ends[0]], tuple(words[ends[0] + 1 :])
    if head[0] in _PYTHONS:
        return (), arguments
    module = [word for word in head[1:] if word not in ("-m", "--module")]
    return (head[0], *module, "--module", "baichuan.cli.train"), arguments


def start(launcher: Sequence[str], arguments: Sequence[str]) -> None:
    """Become the launcher; it starts `baichuan.cli.train` once for each process.

    Raises:
        UsageError: it is not installed.
    """
    beside = str(Path(sys.executable).parent)
    program = shutil.which(launcher[0], path=os.pathsep.join([beside, os.environ.get("PATH", "")]))
    if program is None:
        raise UsageError(
            "{program} is not installed: pip install 'baichuan-lm[train]' {program}.",
            program=launcher[0],
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, [program, *launcher[1:], *arguments])
