"""Fine-tuning, side by side with transformers and PEFT: every part runs both sides in one go, in processes of their own.

    owngpt pull smollm2-135m-instruct
    pip install transformers peft
    python benchmarks/finetune.py all --json results.json

benchmarks/README.md says what each part measures.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from process import CommandFailedError, owngpt, run
from report import Report, console, print_table
from tuning.equality import equality
from tuning.faq import FaqSettings, chats, faq
from tuning.preference import preference
from tuning.resume import resume
from tuning.sameness import sameness
from tuning.side import Chats, TuneSpec
from tuning.speed import SpeedSettings, speed

from owngpt.errors import OwnGPTError
from owngpt.finetune.examples.dataset import open_examples
from owngpt.formats.folder import load_config

PARTS = ("speed", "equality", "preference", "sameness", "resume", "faq")
EXACT = ("equality", "preference", "sameness")
"""Parts in float32."""
EXAMPLES = Path(__file__).parents[1] / "docs" / "examples" / "faq.jsonl"


def main() -> None:
    """Run one part, or several, in the order of the list; what is measured is written after each."""
    options = _parser().parse_args()
    parts = PARTS if "all" in options.part else tuple(part for part in PARTS if part in options.part)
    report = Report(options.json)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            sides = Sides(options, Path(folder))
            for part in parts:
                try:
                    report.add(part, _runner(part, options, sides)())
                except (OwnGPTError, CommandFailedError) as error:  # the other parts are still worth their time
                    console.print(f"[bold]{part} failed:[/] {error}", highlight=False, markup=True)
                    report.add(part, {"error": str(error)})
                    failed.append(part)
        except (OwnGPTError, CommandFailedError) as error:
            raise SystemExit(str(error)) from error
        except KeyboardInterrupt:
            console.print("stopped")
            raise SystemExit(130) from None
    _summary(report.results)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


class Sides:
    """The model in the two types, as a folder that both sides open, and the sides over it."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.chats: Chats = chats(open_examples([str(options.data)]))

    def ours(self, dtype: str = "bfloat16", **settings: Any) -> TuneSpec:
        """OwnGPT."""
        return self._spec("owngpt", "owngpt", dtype, settings)

    def peer(self, dtype: str = "bfloat16", **settings: Any) -> TuneSpec:
        """transformers with PEFT."""
        return self._spec("transformers + PEFT", "peft", dtype, settings)

    def _spec(self, name: str, kind: str, dtype: str, settings: dict[str, Any]) -> TuneSpec:
        path = self._exported(dtype)
        return TuneSpec(name, kind, str(path), self.options.threads, load_config(path).vocab_size, dtype=dtype, **settings)

    def _exported(self, dtype: str) -> Path:
        path = self.folder / f"base-{dtype}"
        if not path.exists():
            run(owngpt("export", self.options.model, "--format", "hf", "--dtype", dtype, "-o", path), limit=600)
        return path


def _runner(part: str, options: argparse.Namespace, sides: Sides) -> Callable[[], dict[str, Any]]:
    if part == "speed":
        settings = SpeedSettings(options.rounds, options.steps, options.compile, options.tries)
        shape = {"batch_size": options.batch_size, "context_length": options.context_length}
        return lambda: speed(sides.ours(**shape), sides.peer(**shape), settings, options.data)
    if part == "equality":
        exact = {"dtype": "float32", "rank": 0, "batch_size": 2, "learning_rate": 1e-5, "weight_decay": 0.01}
        return lambda: equality(sides.ours(**exact), sides.peer(**exact), sides.chats, options.equal_steps)
    if part == "preference":
        exact = {"dtype": "float32", "rank": 0}
        return lambda: preference(sides.ours(**exact), sides.peer(**exact), sides.chats, 4)
    if part == "sameness":
        return lambda: sameness(sides.ours("float32"), sides.chats, 8)
    if part == "resume":
        return lambda: resume(sides.ours(), sides.chats[:40], steps=6, kills=2)
    settings_of_faq = FaqSettings(
        options.faq, options.minutes, options.seed, options.new_tokens, not options.no_peer, tuple(options.extra.split())
    )
    return lambda: faq(sides.ours(), sides.peer(), settings_of_faq)


def _summary(results: dict[str, Any]) -> None:
    """Which goals were reached."""
    rows = []
    for part in PARTS:
        result = results.get(part, {})
        met = result.get("met")
        goals = met if isinstance(met, dict) else {"": met}
        if result:
            rows += [(f"{part} {goal}".strip(), "failed" if value is None else "met" if value else "NOT met")
                     for goal, value in goals.items()]  # fmt: skip
    print_table("Against what is to be reached", ("part", ""), rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", nargs="+", choices=("all", *PARTS))
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as `owngpt pull` brought it (default: %(default)s)")
    parser.add_argument(
        "--data", type=Path, default=EXAMPLES, help="chats for all parts but faq (default: docs/examples/faq.jsonl)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each side (default: all)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file, after each part")
    race = parser.add_argument_group("speed")
    race.add_argument("--rounds", type=int, default=5, help="each in new processes (default: %(default)s)")
    race.add_argument("--steps", type=int, default=3, help="timed of each side in a round, in turn (default: %(default)s)")
    race.add_argument(
        "--tries", type=int, default=1, help="steps to find the peer's fastest settings with; 0: take PEFT's defaults"
    )
    race.add_argument("--batch-size", type=int, default=4, help="rows of a step (default: %(default)s)")
    race.add_argument("--context-length", type=int, default=512, help="tokens of a row (default: %(default)s)")
    race.add_argument("--compile", action="store_true", help="let the peer run under torch.compile, too")
    equal = parser.add_argument_group("equality")
    equal.add_argument("--equal-steps", type=int, default=20, help="steps that are compared (default: %(default)s)")
    tune = parser.add_argument_group("faq")
    tune.add_argument("--faq", default="faq-zaragoza", help="a named set or a file (default: %(default)s)")
    tune.add_argument("--minutes", type=float, default=5.0, help="of both sides (default: %(default)s)")
    tune.add_argument("--seed", type=int, default=0)
    tune.add_argument("--new-tokens", type=int, default=256, help="longest answer (default: %(default)s)")
    tune.add_argument("--no-peer", action="store_true", help="tune ours alone")
    tune.add_argument("--extra", default="", help='more options of `owngpt finetune`, as in --extra="--replay 0.1"')
    return parser


if __name__ == "__main__":
    main()
