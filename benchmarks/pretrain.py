"""Pre-training, side by side with the plain ways of doing it. Every part runs both sides in one go and prints their ratio.

    python benchmarks/pretrain.py all --corpus shakespeare --json results.json

benchmarks/README.md says what each part measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from memory import memory
from process import CommandFailedError
from race import Settings, quality, reach
from report import Report, console
from startup import startup
from steps import ceiling, speed
from texts import Texts, texts

from owngpt.errors import OwnGPTError

PARTS = ("startup", "memory", "quality", "reach", "speed", "ceiling")
"""In this order, because memory is measured truly only while this process is small (see process.py)."""
READING = ("quality", "reach")


def main() -> None:
    """Run one part, or all of them."""
    options = _parser().parse_args()
    parts = PARTS if options.part == "all" else (options.part,)
    try:
        given = bool(options.corpus or options.train or options.held)
        corpus = texts(options.corpus, options.train, options.held) if given or set(parts) & set(READING) else None
        report = Report(options.json)
        for part in parts:
            report.add(part, _runner(part, options, corpus, report.results)())
    except (OwnGPTError, CommandFailedError) as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        console.print("stopped")
        raise SystemExit(130) from None


def _runner(
    part: str, options: argparse.Namespace, corpus: Texts | None, results: dict[str, Any]
) -> Callable[[], dict[str, Any]]:
    if part in READING:
        assert corpus is not None
        settings = Settings(corpus, options.seconds, options.repeats, options.cold, tuple(options.extra.split()))
        return lambda: quality(settings) if part == "quality" else reach(settings, _targets(options, results), options.tries)
    if part == "startup":
        return lambda: startup(options.rounds)
    if part == "memory":
        return lambda: memory(options.steps, corpus)
    return lambda: (speed if part == "speed" else ceiling)(options.rounds, compiled=options.compile)


def _targets(options: argparse.Namespace, results: dict[str, Any]) -> list[float]:
    """The textbook's scores where they are known already: named, or measured by `quality` just before."""
    if options.target:
        return [options.target]
    return results["quality"]["bits_per_byte"]["textbook"]["values"] if "quality" in results else []


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=("all", *PARTS))
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    parser.add_argument("--rounds", type=int, default=10, help="of startup, speed and ceiling (default: %(default)s)")
    text = parser.add_argument_group("quality, reach, and the whole-run row of memory")
    text.add_argument("--corpus", help="a named corpus; shakespeare holds out Hamlet and Twelfth Night, others every 20th file")
    text.add_argument("--train", nargs="+", type=Path, default=[], help="files and folders to train on")
    text.add_argument("--held", nargs="+", type=Path, default=[], help="files and folders held out")
    text.add_argument("--seconds", type=float, default=145.0, help="of both sides (default: %(default)s)")
    text.add_argument(
        "--repeats", type=int, default=1, help="runs of each side, in turn, each with its own seed (default: %(default)s)"
    )
    text.add_argument("--cold", action="store_true", help="empty cache for owngpt: kernels are compiled within the time")
    text.add_argument("--extra", default="", help='more options of `owngpt train`, as in --extra="--vocab-size 2048"')
    text.add_argument(
        "--tries", nargs="+", type=float, default=[15, 20, 25, 30, 45, 60], help="seconds that reach tries, shortest first"
    )
    text.add_argument("--target", type=float, help="the textbook's bits per byte, when known, for reach")
    step = parser.add_argument_group("speed, ceiling, memory")
    step.add_argument("--compile", action="store_true", help="torch.compile'd plain PyTorch too, where there is a C compiler")
    step.add_argument("--steps", type=int, default=3, help="training steps of memory (default: %(default)s)")
    return parser


if __name__ == "__main__":
    main()
