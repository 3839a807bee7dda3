"""Compile the C kernels for this processor, once, and load them.

The sources are small and plain C, so the system's C compiler takes seconds. Installing the package compiles them into it
(setup.py); where that did not happen, or for another processor, the first use compiles them into the user's cache folder. Both
places name a library by the hash of sources, flags and processor. Without a compiler everything works through PyTorch alone.
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

from owngpt.config.files import TEMPORARY_SUFFIX

SOURCES = Path(__file__).parent / "source"
INSTALLED = Path(__file__).parent / "compiled"
"""Where installing the package puts what it compiles."""
FLAGS = (
    "-march=native",
    "-mprefer-vector-width=512",
    "-std=gnu17",
    "-fopenmp",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
)
WITHOUT_TILE_REGISTERS = ("-mno-amx-bf16", "-mno-amx-int8", "-mno-amx-tile")
COMPILE_SECONDS = 120


@dataclass(frozen=True)
class Library:
    """One shared library."""

    parts: tuple[tuple[str, ...], ...]
    """Sources that are compiled as one, which spares reading the same headers again and again; the parts side by side."""
    flags: tuple[str, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Of all parts."""
        return tuple(source for part in self.parts for source in part)


TRAINING = (
    ("attention", "permission"),
    ("activation", "frozen", "loss", "low_rank", "norm", "orthogonal", "product", "rotary", "update"),
)
INFERENCE = (("plain", "small", "tiled"), ("packed", "paged", "permission", "quantize", "rows", "sample", "steps"))
LIBRARIES = {"training": Library(TRAINING, ("-O3",)), "inference": Library(INFERENCE, ("-O1", "-ftree-vectorize"))}
"""Apart, and inference compiled with less effort (its loops are written out), so that who only wants an answer waits less. Two
parts of each take about as long as each other, for two cores."""


def cache_folder() -> Path:
    """Where kernels compiled later are kept: ``OWNGPT_CACHE`` or the platform's cache folder."""
    from platformdirs import user_cache_path  # not there yet when the package is being installed

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


@cache
def _common_flags() -> tuple[str, ...]:
    """For every library. Where a processor has AMX but the operating system does not grant it, tiles are made of vectors."""
    if " amx_tile" in _processor() and not _grants_tile_registers():
        return (*FLAGS, *WITHOUT_TILE_REGISTERS)
    return FLAGS


def _grants_tile_registers() -> bool:
    """Ask Linux for them as source/permission.c does; old kernels and some containers refuse."""
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def fingerprint(name: str) -> str:
    """Of all that a library's machine code depends on, but for the compiler: what one made serves where there is none."""
    library = LIBRARIES[name]
    digest = hashlib.sha256()
    for part in (*_common_flags(), *library.flags, _processor(), platform.machine()):
        digest.update(part.encode())
    for source in sorted(SOURCES.iterdir()):
        if source.suffix == ".h" or source.stem in library.sources:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def hindrance() -> str | None:
    """Why there are no kernels here whatever the compiler, or None."""
    if os.environ.get("OWNGPT_KERNELS", "").lower() in ("0", "off", "none"):
        return "switched off by OWNGPT_KERNELS"
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"no kernels for {platform.system()} on {platform.machine()}; PyTorch's own are used"
    return None


def _file(name: str) -> str:
    return f"owngpt-{name}-{fingerprint(name)}.so"


def _target(name: str) -> Path:
    """Where a library is, or is to be."""
    installed = INSTALLED / _file(name)
    return installed if installed.exists() else cache_folder() / installed.name


def install(folder: Path) -> list[str]:
    """Compile every library into ``folder``, all at once, when the package is installed; those of other versions leave.

    Returns the names of the libraries that are there. A library that cannot be compiled is left to the first use, which says why.
    """
    command = compiler()
    if hindrance() is not None or command is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    targets = {name: folder / _file(name) for name in LIBRARIES}
    for file in set(folder.iterdir()) - set(targets.values()):
        file.unlink()
    compilations = [_Compilation(name, command, target) for name, target in targets.items() if not target.exists()]
    for compilation in compilations:
        with suppress(OSError, subprocess.SubprocessError):
            compilation.finish()
    return [name for name, target in targets.items() if target.exists()]


class _Compilation:
    """The compilation of a library, under way. Its file gets its name at the end: two processes cannot meet half of one."""

    def __init__(self, name: str, command: str, target: Path) -> None:
        self._target, self._built = target, target.with_name(f".{target.stem}.{os.getpid()}{TEMPORARY_SUFFIX}")
        self._command = [command, *_common_flags(), *LIBRARIES[name].flags]
        target.parent.mkdir(parents=True, exist_ok=True)
        self._objects: dict[Path, subprocess.Popen[str]] = {}
        try:
            for number, sources in enumerate(LIBRARIES[name].parts):
                place = self._built.with_name(f"{self._built.name}.{number}")
                self._objects[place] = _begin([*self._command, "-c", "-x", "c", "-", "-o", str(place)], sources)
        except BaseException:
            self._clean()
            raise

    def finish(self) -> None:
        """Wait for what is left.

        :raises subprocess.SubprocessError: the compiler complains, or takes longer than :data:`COMPILE_SECONDS`.
        """
        try:
            for process in self._objects.values():
                _, complaint = process.communicate(timeout=COMPILE_SECONDS)
                if process.returncode:
                    raise subprocess.CalledProcessError(process.returncode, self._command, stderr=complaint)
            link = [*self._command, "-shared", *map(str, self._objects), "-o", str(self._built), "-lm"]
            subprocess.run(link, check=True, timeout=COMPILE_SECONDS, capture_output=True, text=True)
            self._built.replace(self._target)
        finally:
            self._clean()

    def _clean(self) -> None:
        for place, process in self._objects.items():
            process.kill()
            place.unlink(missing_ok=True)
        self._built.unlink(missing_ok=True)


def _begin(command: list[str], sources: tuple[str, ...]) -> subprocess.Popen[str]:
    """Start compiling sources as one."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write("".join(f'#include "{SOURCES / source}.c"\n' for source in sources))
    process.stdin.close()
    process.stdin = None  # communicate() would flush it again
    return process


_started: dict[str, _Compilation] = {}


def start(name: str) -> None:
    """Begin to compile a library in the background, if it has to be: :func:`load` then waits for what is left.

    Whoever calls this before importing torch has both done at the same time.
    """
    command = compiler()
    if name in _started or hindrance() is not None or command is None:
        return
    with suppress(OSError):
        target = _target(name)
        if not target.exists():
            _started[name] = _Compilation(name, command, target)


@cache
def load(name: str) -> tuple[ctypes.CDLL | None, str]:
    """A compiled library, or None, and the reason in words.

    torch must be imported first: both then share one OpenMP runtime.
    """
    if (why := hindrance()) is not None:
        return None, why
    try:
        target, command = _target(name), compiler()
        if not target.exists():
            if command is None:
                return None, "no C compiler found; install gcc or clang: training and inference are several times faster with it"
            (_started.pop(name, None) or _Compilation(name, command, target)).finish()
        return ctypes.CDLL(str(target)), f"compiled into {target.parent}"
    except subprocess.CalledProcessError as error:
        return None, f"the C compiler could not compile the kernels: {error.stderr.strip()[:300]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"kernels could not be built: {error}"
