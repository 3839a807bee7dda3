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
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from platformdirs import user_cache_path

from owngpt.config.files import TEMPORARY_SUFFIX

SOURCES = Path(__file__).parent / "source"
FLAGS = (
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


@dataclass(frozen=True)
class Library:
    """One shared library."""

    sources: tuple[str, ...]
    flags: tuple[str, ...]


TRAINING = (
    "activation", "attention", "frozen", "loss", "low_rank", "norm", "orthogonal", "permission", "product", "rotary", "update",
)  # fmt: skip
LIBRARIES = {
    "training": Library(TRAINING, ("-O3",)),
    "inference": Library(("packed", "paged", "permission", "quantize", "rows", "sample", "steps"), ("-O1", "-ftree-vectorize")),
}
"""Apart, and inference compiled with less effort (its loops are written out), so that who only wants an answer waits less."""
_started: dict[str, subprocess.Popen[str]] = {}


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


def fingerprint(name: str, command: str) -> str:
    """Of all that a library's machine code depends on."""
    library = LIBRARIES[name]
    digest = hashlib.sha256()
    for part in (*FLAGS, *library.flags, command, _version(command), _processor(), platform.machine()):
        digest.update(part.encode())
    for source in sorted(SOURCES.iterdir()):
        if source.suffix == ".h" or source.stem in library.sources:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _version(command: str) -> str:
    result = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    return result.stdout


def _hindrance() -> str | None:
    """Why there are no kernels here whatever the compiler, or None."""
    if os.environ.get("OWNGPT_KERNELS", "").lower() in ("0", "off", "none"):
        return "switched off by OWNGPT_KERNELS"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"no kernels for {platform.system()} on {platform.machine()}; PyTorch's own are used"
    if compiler() is None:
        return "no C compiler found; install gcc or clang: training and inference are several times faster with it"
    return None


def _target(name: str, command: str) -> Path:
    return cache_folder() / f"owngpt-{name}-{fingerprint(name, command)}.so"


def _compilation(name: str, command: str, built: Path) -> subprocess.Popen[str]:
    """Start compiling; all sources as one, which spares reading the same headers again and again."""
    library = LIBRARIES[name]
    process = subprocess.Popen(
        [command, *FLAGS, *library.flags, "-x", "c", "-", "-o", str(built), "-lm"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write("".join(f'#include "{SOURCES / source}.c"\n' for source in library.sources))
    process.stdin.close()
    process.stdin = None  # communicate() would flush it again
    return process


def start(name: str) -> None:
    """Begin to compile a library in the background, if it has to be: :func:`load` then waits for what is left.

    Whoever calls this before importing torch has both done at the same time.
    """
    command = compiler()
    if name in _started or _hindrance() is not None or command is None:
        return
    with suppress(OSError):
        target = _target(name, command)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            _started[name] = _compilation(name, command, _temporary(target))


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.stem}.{os.getpid()}{TEMPORARY_SUFFIX}")


def _compile(name: str, command: str, target: Path) -> None:
    """Compile to a temporary name and rename, so that two processes cannot meet half a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    built = _temporary(target)
    process = _started.pop(name, None) or _compilation(name, command, built)
    try:
        _, complaint = process.communicate(timeout=COMPILE_SECONDS)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, stderr=complaint)
        built.replace(target)
    finally:
        process.kill()
        built.unlink(missing_ok=True)


@cache
def load(name: str) -> tuple[ctypes.CDLL | None, str]:
    """A compiled library, or None, and the reason in words.

    torch must be imported first: both then share one OpenMP runtime.
    """
    hindrance, command = _hindrance(), compiler()
    if hindrance is not None or command is None:
        return None, hindrance or ""
    try:
        target = _target(name, command)
        if not target.exists():
            _compile(name, command, target)
        return ctypes.CDLL(str(target)), f"compiled with {command}"
    except subprocess.CalledProcessError as error:
        return None, f"{command} could not compile the kernels: {error.stderr.strip()[:300]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"kernels could not be built: {error}"
