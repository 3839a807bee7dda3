"""Tokens a second and peak memory of a LoRA step: ours against transformers with PEFT, in processes that are new each round."""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from process import owngpt, run
from report import console, print_table, spread, spread_dict

from owngpt.bench.process import SideFailedError, SideProcess
from tuning.side import TuneSpec, opened

PEER_SETTINGS: tuple[dict[str, Any], ...] = (
    {"attention": "sdpa", "adapters": "float32"},
    {"attention": "eager", "adapters": "float32"},
    {"attention": "sdpa", "adapters": "bfloat16"},
    {"attention": "sdpa", "adapters": "float32", "autocast": True},
)
"""Ways to run the peer that are in use; the fastest of them races. float32 adapters are PEFT's default."""
RATIO, PEAK = 2.0, 1.5e9
"""What is to be reached: times the peer's tokens a second, and bytes at most."""
LIMIT = 1200.0


@dataclass(frozen=True)
class SpeedSettings:
    """Of the whole race."""

    rounds: int
    """Each with new processes."""
    steps: int
    """Timed of each side in a round, one of each in turn, after one to warm up."""
    compiled: bool
    """Whether the compiled peer races, too."""
    peer_tries: int = 1
    """Steps, after one to warm up, for each of :data:`PEER_SETTINGS`; 0 takes the first."""


def speed(ours: TuneSpec, peer: TuneSpec, settings: SpeedSettings, whole: Path | None) -> dict[str, Any]:
    """
    :param whole: jsonl to measure the peak of all of `owngpt finetune` with, or None.
    """
    tries: list[dict[str, Any]] = []
    if settings.peer_tries:
        peer, tries = _fastest(peer, settings.peer_tries)
    specs = [ours, peer]
    if settings.compiled:
        specs.append(replace(peer, name=f"{peer.name}, compiled", options={**peer.options, "compiled": True}))
    sides: dict[str, dict[str, Any]] = {}
    ratios: list[float] = []
    for turn in range(settings.rounds):
        _say(f"speed: round {turn + 1} of {settings.rounds}")
        found = _round(specs, settings.steps, turn)
        for name, values in found.items():
            side = sides.setdefault(name, {"info": values["info"], "rates": [], "peaks": [], "steps": []})
            side["rates"].append(values["rate"])
            side["steps"].append(values["seconds"])
            side["peaks"].append(values["peak"])
        best = max((values["rate"] for name, values in found.items() if name != ours.name), default=0.0)
        if ours.name in found and best:
            ratios.append(found[ours.name]["rate"] / best)
    if not ratios:
        raise SideFailedError("no round had both sides; what failed is said above")
    command = _whole_run(ours, whole) if whole else None
    _print(ours, sides, ratios, command)
    return {
        "tokens_per_step": ours.tokens, "steps": settings.steps, "peer_tries": tries,
        "sides": {name: {**side, "tokens_per_second": spread_dict(side["rates"]), "peak_bytes": spread_dict(side["peaks"])}
                  for name, side in sides.items()},
        "ratio": spread_dict(ratios), "whole_run_peak_bytes": command,
        "met": {"ratio": statistics.median(ratios) >= RATIO, "peak": max(sides[ours.name]["peaks"]) <= PEAK},
    }  # fmt: skip


def _fastest(peer: TuneSpec, steps: int) -> tuple[TuneSpec, list[dict[str, Any]]]:
    """The peer in its fastest settings, and what each took."""
    tries: list[dict[str, Any]] = []
    for options in PEER_SETTINGS:
        _say(f"{peer.name}: trying {', '.join(f'{name} {value}' for name, value in options.items())}")
        try:
            with opened(replace(peer, options=options)) as side:
                side.ask("step", seed=0)
                seconds = min(side.ask("step", seed=1 + index)["seconds"] for index in range(steps))
        except SideFailedError as error:
            _say(str(error))
            continue
        tries.append({"options": options, "seconds": seconds})
    if not tries:
        raise SideFailedError(f"{peer.name} runs in none of its settings")
    return replace(peer, options=min(tries, key=lambda entry: entry["seconds"])["options"]), tries


def _round(specs: list[TuneSpec], steps: int, turn: int) -> dict[str, dict[str, Any]]:
    """All sides opened anew, a step of each in turn, beginning with another one each round."""
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        rivals: list[tuple[TuneSpec, SideProcess]] = []
        for spec in specs:
            try:
                rival = stack.enter_context(opened(spec))
                rival.ask("step", seed=0)
                found[spec.name] = {"info": rival.ask("info"), "seconds": [], "losses": []}
                rivals.append((spec, rival))
            except SideFailedError as error:
                _say(str(error))
        start = turn % max(1, len(rivals))
        for index in range(steps):
            for spec, rival in (*rivals[start:], *rivals[:start]):
                measured = rival.ask("step", seed=1 + index)
                found[spec.name]["seconds"].append(measured["seconds"])
                found[spec.name]["losses"].append(measured["loss"])
        for spec, rival in rivals:
            values = found[spec.name]
            values["peak"] = rival.ask("memory")["peak"]
            values["rate"] = spec.tokens / statistics.median(values["seconds"])
    return found


def _whole_run(spec: TuneSpec, data: Path) -> int:
    """Peak resident bytes of `owngpt finetune` from its start to its end, its report included."""
    _say("memory: all of `owngpt finetune`, three steps")
    with tempfile.TemporaryDirectory() as folder:
        shape = ("--batch-size", str(spec.batch_size), "--context-length", str(spec.context_length), "--rank", str(spec.rank))
        command = owngpt("finetune", spec.path, data, "-o", Path(folder) / "out", "--steps", "3", *shape, "--json")
        return run(command, limit=LIMIT).peak_bytes


def _print(ours: TuneSpec, sides: dict[str, dict[str, Any]], ratios: list[float], command: int | None) -> None:
    rows = [
        (name, spread(side["rates"], ",.0f"), f"{max(side['peaks']) / 1e9:.2f}", f"{side['info']['trainable']:,}",
         f"{side['info']['version']}: {side['info']['settings']}")
        for name, side in sides.items()
    ]  # fmt: skip
    notes = [
        f"ratio of a round to its fastest peer: {spread(ratios)} ({_met(statistics.median(ratios) >= RATIO)}: at least {RATIO:g})"
    ]
    peak = max(sides[ours.name]["peaks"])
    notes.append(f"peak of our process, Python included: {peak / 1e9:.2f} GB ({_met(peak <= PEAK)}: at most {PEAK / 1e9:.1f})")
    if command:
        notes.append(f"peak of all of `owngpt finetune`, report included: {command / 1e9:.2f} GB")
    title = f"LoRA, rank {ours.rank} on all projections, {ours.batch_size} × {ours.context_length} tokens a step"
    print_table(title, ("side", "tokens/s", "peak GB", "trained", "settings"), rows, notes)


def _met(condition: bool) -> str:
    return "met" if condition else "NOT met"


def _say(message: str) -> None:
    console.print(f"[dim]{message}[/]", highlight=False)
