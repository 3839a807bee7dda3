"""``owngpt doctor``"""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict
from typing import Any

from owngpt.cli.options import Json
from owngpt.cli.output import human_bytes, print_pairs, say


def doctor(*, minutes: float = 10.0, json: Json = False) -> dict[str, Any] | None:
    """What this machine has, which kernels run, what it can do at most, and what fits in some minutes.

    Parameters
    ----------
    minutes
        The time to plan for.
    """
    from owngpt.config.checks import above

    above("minutes", minutes, 0, example=10)
    say("Looking at the machine, about ten seconds …")
    found = examine(minutes)
    if json:
        return found
    _show(found)
    return None


def examine(minutes: float) -> dict[str, Any]:
    """All that doctor tells, as plain values; rates a second, memory and disk in bytes."""
    import torch

    from owngpt.engine import quality, tuning
    from owngpt.kernels.ceiling import matmul_ceiling, read_bandwidth
    from owngpt.kernels.library import status
    from owngpt.kernels.machine import describe_machine
    from owngpt.train.planner import what_fits

    machine = describe_machine()
    device = "cuda" if machine.cuda else "mps" if machine.mps else "cpu"
    ceilings = {
        "device": device,
        "matmul_bf16_flops": matmul_ceiling(torch.bfloat16, 0.7, device=device),
        "matmul_fp32_flops": matmul_ceiling(torch.float32, 0.7, device=device),
        "memory_read_bytes": read_bandwidth(0.7),
    }
    return {
        "machine": machine.to_dict(),
        "kernels": status(),
        "quantization": [{**asdict(found), "reason": found.reason} for found in quality.remembered()],
        "tuning": [asdict(found) for found in tuning.remembered()],
        "ceilings": ceilings,
        "disk_free": shutil.disk_usage(".").free,
        "minutes": minutes,
        "fits": what_fits(minutes),
    }


def _show(found: dict[str, Any]) -> None:
    machine, ceilings = found["machine"], found["ceilings"]
    print_pairs(
        {
            "processor": f"{machine['processor']}, {machine['cores']} cores ({machine['architecture']})",
            "instructions": ", ".join(machine["features"]) or "none of those that matter here",
            "accelerator": ", ".join(machine["cuda"]) or ("Apple MPS" if machine["mps"] else "none"),
            "memory": f"{human_bytes(machine['memory_available'])} free of {human_bytes(machine['memory_total'])}",
            "disk": f"{human_bytes(found['disk_free'])} free here",
            "software": f"Python {machine['python']}, torch {machine['torch']}, {machine['operating_system']}",
            "C compiler": machine["compiler"] or "none, so the PyTorch fallbacks run (slower); install gcc or clang",
            "matrix products": f"{ceilings['matmul_bf16_flops'] / 1e9:,.0f} GFLOP/s in bf16, "
            f"{ceilings['matmul_fp32_flops'] / 1e9:,.0f} in fp32 ({ceilings['device']})",
            "memory reads": f"{ceilings['memory_read_bytes'] / 1e9:.1f} GB/s",
            "kernels": _kernels(found["kernels"]),
        }
    )
    for quality in found["quantization"]:
        print_pairs({"weights": f"{quality['chosen']} for the model of {quality['model']}: {quality['reason']}"})
    for tuned, models in Counter(_tuned(values) for values in found["tuning"]).items():
        print_pairs({"steps": f"{tuned} (as timed for {models} model{'s' if models > 1 else ''} so far)"})
    print(f"\nIn {found['minutes']:g} minutes:")
    print_pairs(found["fits"], indent="  ")


def _tuned(values: dict[str, Any]) -> str:
    """What was chosen by timing whole steps of a model."""
    from owngpt.kernels.packed import NEVER

    threads = f"{values['threads']} thread{'s' if values['threads'] > 1 else ''}"
    if values["tiles_from"] == 1:
        return f"matrix tiles, {threads}"
    if values["tiles_from"] == NEVER:
        return f"vector products for any number of rows, {threads}"
    return f"vector products below {values['tiles_from']} rows, matrix tiles from there on, {threads}"


def _kernels(status: dict[str, Any]) -> str:
    if not status["compiled"]:
        return f"plain PyTorch, which is slower: {status['reason']}"
    if status["unit"] == "none":
        return "compiled; training fused; attention from PyTorch; inference from PyTorch, since there is no AVX-512"
    if status["unit"] == "amx":
        return "compiled; training fused, attention on matrix tiles; inference packed weights on matrix tiles (AMX)"
    vectors = "matrix tiles made of vectors (AVX-512)"
    return f"compiled; training fused, attention on {vectors}; inference packed weights by vector products"
