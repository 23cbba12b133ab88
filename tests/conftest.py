"""What all tests share: where reference data lies, and small models of our own."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import baichuan  # registers the classes with transformers

SHARED = Path(os.environ.get("BAICHUAN_SHARED", Path(__file__).parents[2] / "shared"))
COPIED = Path(__file__).parent / "data"

torch.set_num_threads(1)  # the suite runs in several processes
os.environ["BAICHUAN_LANG"] = "en"  # the sentences that tests look for, on any machine
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-cases", type=int, default=2_000, help="Cases of each fuzzer in tests/fuzz."
    )


@pytest.fixture(scope="session")
def fuzz_cases(pytestconfig: pytest.Config) -> int:
    return pytestconfig.getoption("--fuzz-cases")


@pytest.fixture(scope="session")
def reference() -> Path:
    """Goldens made by the original code: all of them where they lie, else those copied here."""
    return (SHARED if (SHARED / "reference").is_dir() else COPIED) / "reference"


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)
    torch.set_flush_denormal(False)  # a training in this process sets it; Hypothesis refuses it


def tiny_config(**changes):
    """A network of two layers whose head count is no power of two."""
    shape = {"vocab_size": 700, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    return baichuan.BaichuanConfig(**{**shape, "num_attention_heads": 6, **changes})


@pytest.fixture(params=["alibi", "rope"])
def model(request):
    """A tiny random network of either family, float32."""
    config = tiny_config(position_embedding=request.param, initializer_range=0.2)
    return baichuan.BaichuanForCausalLM(config).eval()


def change_a_byte(path: Path) -> None:
    """Change the content of a file, which keeps its size and its time."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory of a user to whom the modes of files apply: root may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with tempfile.TemporaryDirectory() as directory:
            yield Path(directory)
            for path in Path(directory).rglob("*"):
                path.chmod(0o700)
    finally:
        if root:
            os.seteuid(0)


class CreatesFile:
    """Malice: whoever unpickles it without care creates a file (opening is harmless, and shows)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
