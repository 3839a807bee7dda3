"""What this machine is: processor, memory, accelerator, compiler."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from owngpt.kernels import build

FEATURES = ("amx_bf16", "amx_int8", "amx_tile", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "asimd", "bf16", "sve")
"""The vector and matrix extensions that matter here, as Linux names them."""


@dataclass(frozen=True)
class Machine:
    """A description for people and for result files; memory in bytes."""

    processor: str
    architecture: str
    cores: int
    """Cores this process may use, not those of the whole machine."""
    features: tuple[str, ...]
    memory_total: int
    """The container's limit where there is one."""
    memory_available: int
    operating_system: str
    python: str
    torch: str
    threads: int
    compiler: str | None
    """First line of the C compiler's own description, None without one."""
    cuda: tuple[str, ...]
    mps: bool

    @property
    def native_bf16(self) -> bool:
        """Whether the processor or accelerator multiplies bfloat16 faster than float32."""
        return bool({"amx_bf16", "avx512_bf16"} & set(self.features)) or bool(self.cuda) or self.mps

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "native_bf16": self.native_bf16}


def describe_machine() -> Machine:
    """Look at the machine this process runs on; takes some milliseconds."""
    total, available = _memory()
    name, features = _processor()
    return Machine(
        processor=name,
        architecture=platform.machine(),
        cores=usable_cores(),
        features=features,
        memory_total=total,
        memory_available=available,
        operating_system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        compiler=_compiler(),
        cuda=tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
        mps=torch.backends.mps.is_available(),
    )


def usable_cores() -> int:
    """Cores this process may be scheduled on, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def _processor() -> tuple[str, tuple[str, ...]]:
    """Name and known features, from /proc/cpuinfo where it exists."""
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, tuple(feature for feature in FEATURES if feature in flags)


def available_memory() -> int:
    """Bytes that this process may still take."""
    return _memory()[1]


def _memory() -> tuple[int, int]:
    """(total, available) bytes; a control group's limit counts when it is lower than the machine's memory."""
    values: dict[str, int] = {}
    for line in _read("/proc/meminfo").splitlines():
        key, _, rest = line.partition(":")
        number = rest.split()[0] if rest.split() else ""
        if number.isdigit():
            values[key] = int(number) * 1024
    total = values.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = values.get("MemAvailable", total)
    limit = _read("/sys/fs/cgroup/memory.max").strip() or _read("/sys/fs/cgroup/memory/memory.limit_in_bytes").strip()
    if limit.isdigit() and int(limit) < total:
        used = _read("/sys/fs/cgroup/memory.current").strip() or _read("/sys/fs/cgroup/memory/memory.usage_in_bytes").strip()
        total = int(limit)
        available = min(available, total - int(used) if used.isdigit() else total)
    return total, max(0, available)


def _compiler() -> str | None:
    """First line of what the C compiler says of itself."""
    found = build.compiler()
    if found is None:
        return None
    try:
        result = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.partition("\n")[0].strip() or found


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
