"""Compiles the C kernels when the package is installed, so that its very first start need not. All else is in pyproject.toml.

What is compiled fits the processor it was compiled on; on another one the program compiles anew, in the user's cache folder. For
a wheel that fits every machine, set OWNGPT_KERNELS=off when building it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

SOURCE = Path(__file__).parent / "src"
sys.path.insert(0, str(SOURCE))

from owngpt.kernels import build  # noqa: E402  it needs nothing that is not there yet

KERNELS = Path("owngpt", "kernels", "compiled")


class BuildWithKernels(build_py):
    """Copies the package, then compiles its kernels: into the copy, or into the source tree of an editable installation."""

    def run(self) -> None:
        super().run()
        root = SOURCE if self.editable_mode else Path(self.build_lib)
        try:
            done = build.install(root / KERNELS)
        except OSError as error:  # an installation without kernels is better than none
            print(f"kernels were not compiled: {error}; the first use tries again")
        else:
            print(f"kernels compiled: {', '.join(done) or 'none; the first use says why'}")


class DistributionWithKernels(Distribution):
    """A wheel with machine code in it belongs to one platform."""

    def has_ext_modules(self) -> bool:
        return build.hindrance() is None


setup(cmdclass={"build_py": BuildWithKernels}, distclass=DistributionWithKernels)
