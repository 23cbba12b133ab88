"""The kernels as a program of their own under AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
FLAGS += ["-Wno-unknown-pragmas"]  # OpenMP's: one thread suffices here
SANITIZERS = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


@pytest.fixture
def compiler(tmp_path):
    """A C++ compiler that has the sanitizers' libraries."""
    names = [os.environ.get("CXX"), "g++", "clang++"]
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no C++ compiler is here (CXX, g++ or clang++)")
    source = tmp_path / "empty.cpp"
    source.write_text("int main() {}\n")
    done = subprocess.run([found, *SANITIZERS, source, "-o", tmp_path / "empty"])
    if done.returncode:
        pytest.skip(f"{found} has no AddressSanitizer")
    return found


def test_no_byte_too_many_and_one_result(compiler, tmp_path):
    source, program = Path(__file__).with_name("kernels_main.cpp"), tmp_path / "kernels"
    subprocess.run([compiler, *FLAGS, *SANITIZERS, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("comparisons\n")
