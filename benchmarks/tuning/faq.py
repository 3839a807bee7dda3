"""Five minutes on a customer FAQ: `owngpt finetune` and transformers with PEFT, both scored by transformers with PEFT.

Our clock runs outside of the process, from its start to its end, report included. The peer's runs while it trains only.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from process import owngpt, run
from report import console, print_table

from owngpt.finetune.examples.dataset import open_examples
from owngpt.finetune.examples.example import Chat, Completion, Example
from owngpt.finetune.report.forgetting import general_texts
from tuning.side import Chats, TuneSpec, opened

HELD_OUT = 10
"""One prompt of so many, by its hash, is held out."""
SLACK = 900.0
LOWER, FORGOTTEN, STOPS, TOLERANCE = 0.30, 0.05, 0.95, 0.05
"""To be reached: held-out loss lower by, general perplexity higher by at most, answers that stop, time kept to within."""


@dataclass(frozen=True)
class FaqSettings:
    """What is tuned on, and for how long."""

    source: str
    """A named set, or a file."""
    minutes: float
    seed: int
    new_tokens: int
    """Longest answer; one that is not over by then has not stopped."""
    peer: bool
    """Whether transformers with PEFT is trained, too."""
    extra: tuple[str, ...] = ()
    """More options of `owngpt finetune`."""


def faq(ours: TuneSpec, peer: TuneSpec, settings: FaqSettings) -> dict[str, Any]:
    """Tune, score the folders that were written, and compare with the base."""
    train, held = split(chats(open_examples([settings.source])))
    console.print(f"[dim]faq: {len(train)} chats to learn from, {len(held)} held out[/]", highlight=False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "train.jsonl").write_text(_lines(train), encoding="utf-8")
        (folder / "held.json").write_text(json.dumps(held, ensure_ascii=False), encoding="utf-8")
        (folder / "general.json").write_text(json.dumps(general_texts("English"), ensure_ascii=False), encoding="utf-8")
        seconds, report = _ours(ours, settings, folder)
        adapters: dict[str, Path | None] = {"base": None, ours.name: folder / ours.name}
        if settings.peer:
            _peer(peer, settings, folder)
            adapters[peer.name] = folder / peer.name
        scores = {}
        for name, adapter in adapters.items():
            console.print(f"[dim]faq: scoring {name}[/]", highlight=False)
            with opened(replace(peer, rank=0)) as scorer:
                scores[name] = scorer.ask(
                    "score", adapter=adapter and str(adapter), held=str(folder / "held.json"),
                    general=str(folder / "general.json"), new=settings.new_tokens,
                )  # fmt: skip
    return _result(ours, settings, scores, seconds, report, (len(train), len(held)))


def chats(examples: Iterable[Example]) -> Chats:
    """Each example as a person's message and the answer; others than these have no place in a FAQ."""
    found: Chats = []
    for example in examples:
        if isinstance(example, Completion):
            found.append([{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}])
        elif isinstance(example, Chat):
            found.append([{"role": str(message["role"]), "content": str(message["content"])} for message in example.messages])
    return found


def split(found: Chats) -> tuple[Chats, Chats]:
    """(to learn from, held out), by the prompt's hash, so that the same question is never on both sides."""
    held = [chat for chat in found if _place(chat) == 0]
    return [chat for chat in found if _place(chat)], held


def _place(chat: Sequence[dict[str, str]]) -> int:
    prompt = json.dumps(chat[:-1], ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big") % HELD_OUT


def _ours(spec: TuneSpec, settings: FaqSettings, folder: Path) -> tuple[float, dict[str, Any]]:
    """(wall-clock seconds of the command, its own report.json)."""
    console.print(f"[dim]faq: `owngpt finetune --minutes {settings.minutes:g}`[/]", highlight=False)
    output = folder / spec.name
    dial = ("--minutes", repr(settings.minutes), "--seed", str(settings.seed), "--json", *settings.extra)
    command = owngpt("finetune", spec.path, folder / "train.jsonl", "-o", output, *dial)
    finished = run(command, limit=60 * settings.minutes + SLACK)
    return finished.seconds, json.loads((output / "report.json").read_text(encoding="utf-8"))


def _peer(spec: TuneSpec, settings: FaqSettings, folder: Path) -> None:
    console.print(f"[dim]faq: {spec.name}, {settings.minutes:g} minutes of training[/]", highlight=False)
    with opened(spec) as side:
        side.ask(
            "tune", train=str(folder / "train.jsonl"), seconds=60 * settings.minutes, seed=settings.seed,
            output=str(folder / spec.name),
        )  # fmt: skip


def _result(
    ours: TuneSpec, settings: FaqSettings, scores: dict[str, Any], seconds: float, report: dict[str, Any], sizes: tuple[int, int]
) -> dict[str, Any]:
    base, tuned = scores["base"], scores[ours.name]
    share = seconds / (60 * settings.minutes)
    figures = {
        "loss_lower_by": 1 - tuned["loss"] / base["loss"],
        "perplexity_rise": math.exp(tuned["general_loss"] - base["general_loss"]) - 1,
        "stop_rate": tuned["stop_rate"],
        "plain_stop_rate": tuned["plain_stop_rate"],
        "penalty": tuned["penalty"],
        "share_of_minutes": share,
    }
    met = {
        "loss": figures["loss_lower_by"] >= LOWER,
        "forgetting": figures["perplexity_rise"] <= FORGOTTEN,
        "stops": figures["stop_rate"] >= STOPS,
        "time": share <= 1 + TOLERANCE,
    }
    rows = [
        (
            name, f"{score['loss']:.3f}", f"{1 - score['loss'] / base['loss']:.1%}", f"{math.exp(score['general_loss']):.2f}",
            f"{math.exp(score['general_loss'] - base['general_loss']) - 1:+.1%}", f"{score['stop_rate']:.0%}",
            f"{score['plain_stop_rate']:.0%}",
        )
        for name, score in scores.items()
    ]  # fmt: skip
    limits = (("loss", f"≥ {LOWER:.0%} lower"), ("forgetting", f"≤ {FORGOTTEN:.0%} more perplexity"),
              ("stops", f"≥ {STOPS:.0%} stop"), ("time", f"within {TOLERANCE:.0%} of the time"))  # fmt: skip
    notes = (
        "ours: " + ", ".join(f"{text}: {'met' if met[name] else 'NOT met'}" for name, text in limits),
        f"`owngpt finetune --minutes {settings.minutes:g}` took {seconds:.0f} s from start to end ({share:.1%}); "
        f"{sizes[0]} chats learned from, {sizes[1]} held out, all scored by transformers with PEFT",
        f"answers that stop: the likeliest, with the penalty on repetition that the run recommends ({tuned['penalty']:g} in its "
        "generation_config.json); plain: without any",
    )
    columns = ("side", "held-out loss", "lower by", "general perplexity", "rise", "answers that stop", "plain")
    print_table(f"{settings.minutes:g} minutes of LoRA on {settings.source}", columns, rows, notes)
    answers = {name: score.pop("answers") for name, score in scores.items()}
    return {
        "source": settings.source, "minutes": settings.minutes, "seconds": seconds, "extra": settings.extra, **figures,
        "met": met, "scores": scores, "answers": answers, "report": report,
    }  # fmt: skip


def _lines(found: Chats) -> str:
    return "".join(json.dumps({"messages": chat}, ensure_ascii=False) + "\n" for chat in found)
