"""How much of what was learned an adapter keeps: a little less forgets far less, and answers as well.

On the way from the base to the end of a run, the loss of held-out examples is flat near the end, while general text is lost with
the square of the distance; the best model lies before the end (WiSE-FT, arXiv 2109.01903). So nothing (which mostly was measured
before), a part and all of it are measured, and the best share is read off the parabolas through them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from owngpt.evaluate.windows import IGNORED
from owngpt.finetune.adapter.lora import Lora
from owngpt.finetune.report.forgetting import GeneralLanguage, perplexity, some_general, some_of
from owngpt.finetune.report.losses import window_nats, window_of
from owngpt.finetune.report.measure import Measurement
from owngpt.finetune.sequences.store import ExampleStore
from owngpt.text.tokenizer import Tokenizer

PART = 0.8
"""Strength that is measured beside all and nothing; between them losses follow a parabola."""
WEAKEST = 0.5
FORGIVEN = 0.01
"""Rise of the perplexity of general text that calls for no weaker adapter."""
GIVEN_UP = 0.1
"""Most of what held-out examples gained that is given up for it."""
MOST_TOKENS = 4_000
"""Of held-out examples that are read for each strength."""


@dataclass(frozen=True)
class Losses:
    """Of a model at one strength."""

    held_out: float
    """Mean loss of a held-out token, in nats."""
    general: float
    """Perplexity of general text."""


@dataclass(frozen=True)
class Parabola:
    """Through nothing at strength 0, and two values more."""

    slope: float
    bend: float

    @classmethod
    def through(cls, part: float, full: float) -> Parabola:
        """:param part: value at :data:`PART`, ``full`` at 1."""
        bend = (full - part / PART) / (1.0 - PART)
        return cls(full - bend, bend)

    def __call__(self, strength: float) -> float:
        return strength * (self.slope + strength * self.bend)


@dataclass(frozen=True)
class Strength:
    """What was chosen, and why."""

    chosen: float
    reason: str


AS_LEARNED = Strength(1.0, "all of what was learned")


def choose(
    lora: Lora, held_out: ExampleStore, tokenizer: Tokenizer, languages: Sequence[GeneralLanguage], *,
    before: Measurement | None = None,
) -> Strength:  # fmt: skip
    """The strength that suits held-out examples and general text best; the adapter stays as it is.

    :param languages: that the base knows. Without held-out examples there is nothing to choose by.
    :param before: what was measured of the base; what it has of the same texts is not measured again.
    """
    places = _some(held_out)
    windows = [window_of(held_out.example(index)) for index in places]
    if not windows:
        return AS_LEARNED
    learned, was_training = lora.state(), lora.model.training

    def losses() -> Losses:
        nats = sum(nats for _, nats in window_nats(lora.model, windows, None))
        targets = sum(target != IGNORED for window in windows for target in window.targets)
        return Losses(nats / max(1, targets), perplexity(some_general(lora.model, tokenizer, languages)))

    lora.model.eval()
    try:
        base = None if before is None else _known(before, places, languages)
        if base is None:
            with lora.off():
                base = losses()
        full = losses()
        lora.weaken(PART)
        return chosen(base, losses(), full)
    finally:
        lora.load_state(learned)
        lora.model.train(was_training)


def chosen(base: Losses, part: Losses, full: Losses) -> Strength:
    """The least held-out loss where general text is kept; no less, however, than held-out examples need.

    :param base: the model without its adapter, with a part of it, and with all.
    """
    changed = Parabola.through(*(each.held_out - base.held_out for each in (part, full)))
    forgotten = Parabola.through(*(_forgotten(each, base) for each in (part, full)))
    if not all(map(math.isfinite, (changed(1.0), forgotten(1.0)))):
        return AS_LEARNED  # the report has the words for a model that came to nothing
    strengths = [share / 100 for share in range(100, int(100 * WEAKEST) - 1, -1)]
    enough = [each for each in strengths if changed(each) <= (1.0 - GIVEN_UP) * changed(1.0)] or strengths[:1]
    kept = [each for each in enough if forgotten(each) <= math.log1p(FORGIVEN)]
    best = min(kept, key=changed) if kept else enough[-1]
    if best == 1.0:
        return Strength(1.0, f"all of what was learned: general text {math.expm1(forgotten(1.0)):+.1%} in perplexity")
    return Strength(
        best,
        f"{best:.0%} of what was learned: general text about {math.expm1(forgotten(best)):+.1%} in perplexity instead of "
        f"{math.expm1(forgotten(1.0)):+.1%}, held-out loss {base.held_out + changed(best):.3f} instead of {full.held_out:.3f}",
    )


def _known(before: Measurement, places: Sequence[int], languages: Sequence[GeneralLanguage]) -> Losses | None:
    """The same texts' losses, as they were measured; None where the time was too short for all of them."""
    general = some_of(before.general, languages)
    by_place = {loss.index: loss for loss in before.losses}
    if general is None or not by_place.keys() >= set(places):
        return None
    found = [by_place[place] for place in places]
    return Losses(sum(loss.nats for loss in found) / max(1, sum(loss.targets for loss in found)), perplexity(general))


def _forgotten(now: Losses, base: Losses) -> float:
    """Nats a token of general text costs more; not-a-number where the model says nothing any more."""
    return math.log(now.general / base.general) if math.isfinite(now.general) else math.nan


def _some(store: ExampleStore) -> list[int]:
    """Examples of :data:`MOST_TOKENS` in all, at least one of them, evenly from the whole of the store."""
    if not len(store):
        return []
    count = min(len(store), max(1, round(MOST_TOKENS / store.lengths.mean())))
    return [index * len(store) // count for index in range(count)]
