"""Before and after, on the examples that both measurements have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, TypeVar

from owngpt.finetune.report.answers import Answer
from owngpt.finetune.report.forgetting import FILES, GeneralLanguage, GeneralLoss, bits_per_byte, known_languages, perplexity
from owngpt.finetune.report.labels import Confusion
from owngpt.finetune.report.losses import SequenceLoss
from owngpt.finetune.report.measure import Measurement
from owngpt.finetune.report.text_scores import TEXT_SCORES, tokens

Record = TypeVar("Record")

SHORT_REFERENCE = 12
"""Tokens of the owner's answers, in the middle, up to which an exact match can be hoped for."""


@dataclass(frozen=True)
class Line:
    """One number, before and after."""

    name: str
    before: float
    after: float
    better: str
    """lower or higher; empty where neither is."""
    count: int
    """Examples, answers or texts that both numbers are of."""
    style: str = "number"
    """number or percent."""
    wins: int | None = None
    """How many of them became better, where each has a number of its own."""

    @property
    def change(self) -> float:
        """Of the number, as a fraction of what it was; not-a-number where it was nothing."""
        return self.after / self.before - 1 if self.before and math.isfinite(self.before) else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "change": self.change}


@dataclass(frozen=True)
class Comparison:
    """What changed."""

    gained: tuple[Line, ...]
    """Scores on held-out examples."""
    writing: tuple[Line, ...]
    """Whether answers stop and repeat."""
    forgotten: tuple[Line, ...]
    """On general text."""
    confusion: tuple[Confusion | None, Confusion] | None
    """Before, where the network had a head over classes already, and after."""
    knows: tuple[GeneralLanguage, ...]
    """Languages of the general text that the network knew before."""

    def line(self, name: str) -> Line | None:
        """One of the lines, if it was measured."""
        lines = (*self.gained, *self.writing, *self.forgotten)
        return next((line for line in lines if line.name == name), None)

    @property
    def forgetting(self) -> Line | None:
        """Perplexity on general text in the languages that the network knew."""
        return self.line("perplexity")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        lists = {name: [line.to_dict() for line in getattr(self, name)] for name in ("gained", "writing", "forgotten")}
        confusion = None if self.confusion is None else [each and each.to_dict() for each in self.confusion]
        return {**lists, "confusion": confusion, "knows": list(self.knows)}


def compare(before: Measurement, after: Measurement) -> Comparison:
    """Both must be of the same held-out examples and seed."""
    losses = _common(before.losses, after.losses, lambda loss: loss.index)
    general = _common(before.general, after.general, lambda loss: (loss.language, loss.index))
    answers = _common(before.answers, after.answers, lambda answer: answer.index)
    guesses = _common(before.guesses, after.guesses, lambda guess: guess.index) if before.guesses else ([], [*after.guesses])
    knows = known_languages(general[0])
    gained = [*_loss_lines(*losses, before.kind), *_preference_lines(*losses, before.kind)]
    confusion = (Confusion.of(guesses[0]) if guesses[0] else None, Confusion.of(guesses[1])) if guesses[1] else None
    if confusion is not None:
        gained += _class_lines(confusion, len(guesses[1]))
    if before.kind != "text":
        gained += _text_lines(*answers)
    return Comparison(tuple(gained), tuple(_writing_lines(*answers)), tuple(_general_lines(*general, knows)), confusion, knows)


def _common(before: Sequence[Record], after: Sequence[Record], key: Callable[[Record], Any]) -> tuple[list[Record], list[Record]]:
    """The records of what both have, in the order of the first."""
    later = {key(record): record for record in after}
    both = [record for record in before if key(record) in later]
    return both, [later[key(record)] for record in both]


def _loss_lines(before: Sequence[SequenceLoss], after: Sequence[SequenceLoss], kind: str) -> list[Line]:
    if kind == "preference":  # what is chosen is the answer to give
        before, after = _chosen(before), _chosen(after)
    if not sum(loss.targets for loss in before):
        return []
    name = "loss of the chosen answers" if kind == "preference" else "loss"
    wins = sum(now.nats < then.nats for then, now in zip(before, after, strict=True))
    return [Line(name, _mean_loss(before), _mean_loss(after), "lower", len(before), wins=wins)]


def _mean_loss(losses: Sequence[SequenceLoss]) -> float:
    return sum(loss.nats for loss in losses) / sum(loss.targets for loss in losses)


def _chosen(losses: Sequence[SequenceLoss]) -> list[SequenceLoss]:
    return [loss for loss in losses if loss.index % 2 == 0]


def _preference_lines(before: Sequence[SequenceLoss], after: Sequence[SequenceLoss], kind: str) -> list[Line]:
    """How often the chosen answer is the likelier one, and how often learning moved it up against the rejected one."""
    if kind != "preference":
        return []
    then, now = {loss.index: loss.nats for loss in before}, {loss.index: loss.nats for loss in after}
    pairs = [index for index in then if index % 2 == 0 and index + 1 in then]
    if not pairs:
        return []
    targets = {loss.index: loss.targets for loss in before}
    likelier = [
        fmean(nats[index] / targets[index] < nats[index + 1] / targets[index + 1] for index in pairs) for nats in (then, now)
    ]
    moved = fmean(then[index] - now[index] > then[index + 1] - now[index + 1] for index in pairs)
    return [
        Line("win rate", likelier[0], likelier[1], "higher", len(pairs), "percent"),
        # Against itself the network of before has moved nothing: a coin decides.
        Line("win rate against the network of before", 0.5, moved, "higher", len(pairs), "percent"),
    ]


def _class_lines(confusion: tuple[Confusion | None, Confusion], count: int) -> list[Line]:
    before, after = confusion
    return [
        Line("accuracy", before.accuracy if before else math.nan, after.accuracy, "higher", count, "percent"),
        Line("macro F1", before.macro_f1 if before else math.nan, after.macro_f1, "higher", count, "percent"),
    ]


def _text_lines(before: Sequence[Answer], after: Sequence[Answer]) -> list[Line]:
    """Answers against the owner's own."""
    pairs = [(then, now) for then, now in zip(before, after, strict=True) if then.counts and now.counts]
    if not pairs:
        return []
    then, now = ([(answer.text, answer.reference) for answer in side] for side in zip(*pairs, strict=True))
    lengths = sorted(len(tokens(reference)) for _, reference in then)
    lines = [Line(name, score(then), score(now), "higher", len(pairs), "percent") for name, score in TEXT_SCORES.items()]
    is_short = lengths[len(lengths) // 2] <= SHORT_REFERENCE
    return [line for line in lines if is_short or line.name != "exact match" or line.after or line.before]


def _writing_lines(before: Sequence[Answer], after: Sequence[Answer]) -> list[Line]:
    whole = [(then, now) for then, now in zip(before, after, strict=True) if then.counts and now.counts]
    if not whole:
        return []
    sides = list(zip(*whole, strict=True))
    rates: dict[str, tuple[Callable[[Answer], float], str, str]] = {
        "stop rate": (lambda answer: float(answer.ended == "end"), "higher", "percent"),
        "repetition rate": (lambda answer: 1 - answer.distinct, "lower", "percent"),
        "loops": (lambda answer: float(answer.loops), "lower", "percent"),
        "tokens of an answer": (lambda answer: float(answer.tokens), "", "number"),
    }
    return [
        Line(name, fmean(map(rate, sides[0])), fmean(map(rate, sides[1])), better, len(whole), style)
        for name, (rate, better, style) in rates.items()
    ]


def _general_lines(before: Sequence[GeneralLoss], after: Sequence[GeneralLoss], knows: Sequence[str]) -> list[Line]:
    lines = []
    chosen = [[loss for loss in side if loss.language in knows] for side in (before, after)]
    if chosen[0]:
        lines.append(Line("perplexity", perplexity(chosen[0]), perplexity(chosen[1]), "lower", len(chosen[0])))
    for language in FILES:
        sides = [[loss for loss in side if loss.language == language] for side in (before, after)]
        if sides[0]:
            name = f"bits per byte, {language}"
            lines.append(Line(name, bits_per_byte(sides[0]), bits_per_byte(sides[1]), "lower", len(sides[0])))
    return lines
