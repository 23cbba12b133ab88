"""Builds the optional native kernels; everything else is in pyproject.toml.

No compiler, no kernels: the package installs all the same and `baichuan info` says so. No -march:
the code holds every instruction set and chooses at run time.
"""

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = ["-std=c++17", "-O3", "-fvisibility=hidden"]
# Products and sums stay apart, so that every instruction set rounds alike; fma is written out.
FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


class BuildKernels(build_ext):
    """Build with OpenMP where the compiler has it, and without elsewhere."""

    def build_extension(self, extension: Extension) -> None:
        """Try both, the parallel one first."""
        try:
            extension.extra_compile_args = [*FLAGS, "-fopenmp"]
            extension.extra_link_args = ["-fopenmp"]
            super().build_extension(extension)
        except Exception:
            extension.extra_compile_args, extension.extra_link_args = FLAGS, []
            try:
                super().build_extension(extension)
            except Exception:
                self.warn(
                    "the native kernels were not built, for want of a working C++ compiler. The "
                    "package works without them, but quantized models are slow. Install a "
                    "compiler (Debian: apt install g++), then install the package again."
                )
                raise  # setuptools goes on without an optional extension


setup(
    ext_modules=[
        Extension(
            "baichuan.kernels._native",
            sources=["csrc/kernels.cpp"],
            depends=sorted(str(path) for path in Path("csrc").glob("*.inc")),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels},
)
