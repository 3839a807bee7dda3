"""Compile the C kernels for this processor, once, and load them.

The sources are small and plain C, so the system's C compiler takes seconds; the result lies in the user's cache folder under
a name that is the hash of sources, flags, compiler and processor. Without a compiler everything works through PyTorch alone.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

SOURCES = Path(__file__).parent / "source"
FLAGS = (
    "-O3",
    "-march=native",
    "-mprefer-vector-width=512",
    "-std=gnu17",
    "-fopenmp",
    "-fPIC",
    "-shared",
    "-fno-math-errno",
    "-fno-trapping-math",
)
COMPILE_SECONDS = 120


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``OWNGPT_CACHE`` or the platform's cache folder."""
    chosen = os.environ.get("OWNGPT_CACHE")
    return (Path(chosen) if chosen else user_cache_path("owngpt")) / "kernels"


def compiler() -> str | None:
    """The C compiler, or None."""
    return next((found for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model name", "Features"))}))


def _fingerprint(command: str) -> str:
    digest = hashlib.sha256()
    for part in (*FLAGS, command, _version(command), _processor(), platform.machine()):
        digest.update(part.encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _version(command: str) -> str:
    result = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    return result.stdout


def _compile(command: str, target: Path) -> None:
    """Compile to a temporary name and rename, so that two processes cannot meet half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
        subprocess.run(
            [command, *FLAGS, *sources, "-o", str(built), "-lm"], check=True, capture_output=True, timeout=COMPILE_SECONDS
        )
        built.replace(target)


@cache
def load() -> tuple[ctypes.CDLL | None, str]:
    """The compiled library, or None, and the reason in words.

    torch must be imported first: both then share one OpenMP runtime.
    """
    if os.environ.get("OWNGPT_KERNELS", "").lower() in ("0", "off", "none"):
        return None, "switched off by OWNGPT_KERNELS"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None, f"no kernels for {platform.system()} on {platform.machine()}; PyTorch's own are used"
    command = compiler()
    if command is None:
        return None, "no C compiler found; install gcc or clang for faster training"
    try:
        target = cache_folder() / f"owngpt-{_fingerprint(command)}.so"
        if not target.exists():
            _compile(command, target)
        return ctypes.CDLL(str(target)), f"compiled with {command}"
    except subprocess.CalledProcessError as error:
        return None, f"{command} could not compile the kernels: {error.stderr.decode(errors='replace').strip()[:300]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"kernels could not be built: {error}"
