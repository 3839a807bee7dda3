"""Compiles the C kernels when the package is installed, so that its very first start need not. All else is in pyproject.toml.

What is compiled fits the processor it was compiled on; on another one the program compiles anew, in the user's cache folder. For
a wheel that fits every machine, set OWNGPT_KERNELS=off when building it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

SOURCE = Path(__file__).parent / "src"
KERNELS = Path("owngpt", "kernels", "compiled")


def wanted() -> bool:
    """Whether kernels are to be compiled: where they run, unless the person said no."""
    return sys.platform == "linux" and os.environ.get("OWNGPT_KERNELS", "").lower() not in ("0", "off", "none")


class BuildWithKernels(build_py):
    """Copies the package, then compiles its kernels: into the copy, or into the source tree of an editable installation."""

    def run(self) -> None:
        super().run()
        if not wanted():
            return
        sys.path.insert(0, str(SOURCE))
        try:
            from owngpt.kernels import build

            root = SOURCE if self.editable_mode else Path(self.build_lib)
            done = build.install(root / KERNELS)
            print(f"kernels compiled: {', '.join(done) or 'none; the first use says why'}")
        except (ImportError, OSError) as error:  # an installation without kernels is better than none
            print(f"kernels were not compiled: {error}; the first use tries again")
        finally:
            sys.path.remove(str(SOURCE))


class DistributionWithKernels(Distribution):
    """A wheel with machine code in it belongs to one platform."""

    def has_ext_modules(self) -> bool:
        return wanted()


setup(cmdclass={"build_py": BuildWithKernels}, distclass=DistributionWithKernels)
