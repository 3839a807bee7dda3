"""Held-out bits per byte after the same wall-clock time: the textbook recipe against `owngpt train`, through its command line.

OwnGPT's clock is all-in and runs outside of it: from the start of the process to its end, with reading, tokenizing, planning,
validation, the final score and saving. The textbook's runs while it trains only; reading and scoring are free for it.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from process import CommandFailedError, owngpt, run
from report import print_table, spread, spread_dict
from texts import Texts

SLACK = 600.0
"""Seconds on top of its time after which a run is given up."""
TOLERANCE = 0.05


@dataclass(frozen=True)
class Settings:
    """What applies to every race of a series."""

    texts: Texts
    seconds: float
    repeats: int
    cold: bool
    """Every owngpt run starts with an empty cache, so that it compiles its kernels within its time."""
    extra: tuple[str, ...] = ()
    """More options of `owngpt train`."""


@dataclass(frozen=True)
class Outcome:
    """One run of one side."""

    bits_per_byte: float
    bytes: int
    seconds: float
    peak_bytes: int
    details: dict[str, Any]


def textbook(settings: Settings, seed: int, seconds: float) -> Outcome:
    """Train and score the baseline."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).with_name("textbook.py")), "--seconds", str(seconds), "--seed", str(seed)]
        command += ["--train", *map(str, settings.texts.train), "--held", *map(str, settings.texts.held), "--json", str(result)]
        finished = run(command, limit=seconds + SLACK)
        values = json.loads(result.read_text(encoding="utf-8"))
    return Outcome(values["bits_per_byte"], values["bytes"], values["seconds"], finished.peak_bytes, {"steps": values["steps"]})


def ours(settings: Settings, seed: int, seconds: float) -> Outcome:
    """`owngpt train --minutes`, then `owngpt eval` on the held-out files."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "model"
        environment = {"OWNGPT_CACHE": str(Path(folder) / "cache")} if settings.cold else None
        dial = ("--minutes", repr(seconds / 60), "--seed", str(seed), "--json")
        trained = run(
            owngpt("train", *settings.texts.train, "-o", output, *dial, *settings.extra),
            limit=seconds + SLACK,
            environment=environment,
        )
        held = [argument for path in settings.texts.held for argument in ("--data", str(path))]
        score = json.loads(run(owngpt("eval", output, *held, "--json"), limit=SLACK).output)
    result = json.loads(trained.output)
    details = {name: result[name] for name in ("plan", "training", "score")} | {"eval": score}
    return Outcome(score["bits_per_byte"], score["bytes"], trained.seconds, trained.peak_bytes, details)


def quality(settings: Settings) -> dict[str, Any]:
    """Both sides in turn, as often as asked, then the ratio."""
    sides: dict[str, list[Outcome]] = {"textbook": [], "owngpt": []}
    for seed in range(settings.repeats):
        sides["textbook"].append(textbook(settings, seed, settings.seconds))
        sides["owngpt"].append(ours(settings, seed, settings.seconds))
    if len({outcome.bytes for outcomes in sides.values() for outcome in outcomes}) != 1:
        raise SystemExit("the two sides did not score the same bytes: the comparison is void")
    ratios = [mine.bits_per_byte / theirs.bits_per_byte for mine, theirs in zip(sides["owngpt"], sides["textbook"], strict=True)]
    dial = [outcome.seconds / settings.seconds for outcome in sides["owngpt"]]
    on_time = all(abs(share - 1) <= TOLERANCE for share in dial)
    _print_quality(settings, sides, ratios, dial, on_time)
    return {
        "texts": settings.texts.to_dict(), "seconds": settings.seconds, "cold": settings.cold, "extra": settings.extra,
        "bits_per_byte": {name: spread_dict([outcome.bits_per_byte for outcome in outcomes]) for name, outcomes in sides.items()},
        "ratio": spread_dict(ratios), "dial": spread_dict(dial), "on_time": on_time,
        "runs": {name: [asdict(outcome) for outcome in outcomes] for name, outcomes in sides.items()},
    }  # fmt: skip


def _print_quality(
    settings: Settings, sides: dict[str, list[Outcome]], ratios: Sequence[float], dial: Sequence[float], on_time: bool
) -> None:
    names = {"textbook": "textbook recipe (training time only)", "owngpt": "owngpt train (everything included)"}
    rows = [
        (
            names[name], spread([outcome.bits_per_byte for outcome in outcomes], ".3f"),
            spread([outcome.seconds for outcome in outcomes], ".1f"),
            spread([outcome.peak_bytes / 2**30 for outcome in outcomes]),
        )
        for name, outcomes in sides.items()
    ]  # fmt: skip
    size = sides["owngpt"][0].bytes
    notes = (
        f"ratio {spread(ratios, '.3f')}; held out: {size:,} bytes in {len(settings.texts.held)} files, the same for both sides",
        f"--minutes: ended after {spread([100 * share for share in dial], '.1f')} % of it "
        f"({'within' if on_time else 'NOT within'} ±{TOLERANCE:.0%})",
        f"owngpt started with {'an empty cache: compiling its kernels is included' if settings.cold else 'its kernels compiled'}",
    )
    title = f"Held-out bits per byte after {settings.seconds:g} s on {settings.texts.name}"
    print_table(title, ("side", "bits per byte", "seconds", "peak GiB"), rows, notes)


def reach(settings: Settings, targets: Sequence[float], tries: Sequence[float]) -> dict[str, Any]:
    """The shortest all-in time in which we are at or below the textbook recipe's score.

    ``targets``: scores of the textbook recipe after its time, measured here when empty. ``tries``: seconds, each a run of its
    own with that budget and ``repeats`` seeds, all of which must get there; the first time that does ends the search.
    """
    targets = targets or [textbook(settings, seed, settings.seconds).bits_per_byte for seed in range(settings.repeats)]
    target = statistics.median(targets)
    rows: list[tuple[str, ...]] = []
    runs: list[dict[str, Any]] = []
    found = None
    for seconds in sorted(tries):
        try:
            outcomes = [ours(settings, seed, seconds) for seed in range(settings.repeats)]
        except CommandFailedError as error:  # so little time that it is refused
            rows.append((f"{seconds:g} s", "–", "–", "failed"))
            runs.append({"asked": seconds, "error": str(error), "reached": False})
            continue
        scores, times = [outcome.bits_per_byte for outcome in outcomes], [outcome.seconds for outcome in outcomes]
        there = max(scores) <= target
        rows.append((f"{seconds:g} s", spread(times, ".1f"), spread(scores, ".3f"), "yes" if there else "no"))
        runs.append({"asked": seconds, "seconds": times, "bits_per_byte": scores, "reached": there})
        if there:
            found = max(times)
            break
    shortest = f"reached in {found:.1f} s all-in" if found else "not reached in any of these times"
    notes = (
        f"target: {spread(targets, '.3f')} bits per byte, the textbook recipe's after {settings.seconds:g} s of training",
        shortest,
    )
    print_table(
        f"Time to the textbook's score on {settings.texts.name}",
        ("--minutes", "all-in seconds", "bits per byte", "reached"),
        rows,
        notes,
    )
    return {
        "texts": settings.texts.to_dict(),
        "target": spread_dict(targets),
        "target_seconds": settings.seconds,
        "reached_in": found,
        "runs": runs,
    }
