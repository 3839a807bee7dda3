"""How much of what was learned an adapter keeps: a little less forgets far less, and answers as well.

On the way from the base to the end of a run, the loss of held-out examples is flat near the end, while general text is lost with
the square of the distance; the best model lies before the end (WiSE-FT, arXiv 2109.01903). So a few strengths are tried.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from owngpt.evaluate.windows import IGNORED
from owngpt.finetune.adapter.lora import Lora
from owngpt.finetune.report.forgetting import general_part, perplexity
from owngpt.finetune.report.losses import window_nats, window_of
from owngpt.finetune.sequences.store import ExampleStore
from owngpt.text.tokenizer import Tokenizer

STRENGTHS = (1.0, 0.9, 0.8, 0.7, 0.6)
FORGIVEN = 0.03
"""Rise of the perplexity of general text that calls for no weaker adapter."""
GIVEN_UP = 0.1
"""Most of what held-out examples gained that is given up for it."""
MOST_TOKENS = 4_000
"""Of held-out examples that are read for each strength."""


@dataclass(frozen=True)
class Tried:
    """A model at one strength."""

    strength: float
    held_out: float
    """Mean loss of a held-out token, in nats."""
    general: float
    """Perplexity of general text."""


@dataclass(frozen=True)
class Strength:
    """What was chosen, and why."""

    chosen: float
    reason: str


AS_LEARNED = Strength(1.0, "all of what was learned")


def choose(lora: Lora, held_out: ExampleStore, tokenizer: Tokenizer, deadline: float | None) -> Strength:
    """The strength that suits held-out examples and general text best; the adapter stays as it is.

    :param deadline: of ``time.monotonic()``: then no more are tried. Without held-out examples there is nothing to choose by.
    """
    windows = [window_of(held_out.example(index)) for index in _some(held_out)]
    if not windows:
        return AS_LEARNED
    learned, was_training = lora.state(), lora.model.training

    def tried(strength: float) -> Tried:
        nats = sum(nats for _, nats in window_nats(lora.model, windows, None))
        targets = sum(target != IGNORED for window in windows for target in window.targets)
        return Tried(strength, nats / max(1, targets), perplexity(general_part(lora.model, tokenizer)))

    def at(strength: float) -> Tried:
        lora.load_state(learned)
        lora.weaken(strength)
        return tried(strength)

    lora.model.eval()
    try:
        with lora.off():
            base = tried(0.0)
        return chosen(base, at, deadline)
    finally:
        lora.load_state(learned)
        lora.model.train(was_training)


def chosen(base: Tried, at: Callable[[float], Tried], deadline: float | None = None) -> Strength:
    """From full strength down: until general text is kept, no further than held-out examples allow, and on while they gain.

    :param base: the model without its adapter.
    :param at: measures a strength.
    """
    full = best = at(STRENGTHS[0])
    for strength in STRENGTHS[1:]:
        if deadline is not None and time.monotonic() >= deadline:
            break
        weaker = at(strength)
        gives_up = base.held_out - weaker.held_out < (1.0 - GIVEN_UP) * (base.held_out - full.held_out)
        if gives_up or (_rise(best, base) <= FORGIVEN and weaker.held_out >= best.held_out):
            break
        best = weaker
    if best is full:
        return Strength(1.0, f"all of what was learned: general text {_rise(full, base):+.1%} in perplexity")
    return Strength(
        best.strength,
        f"{best.strength:.0%} of what was learned: general text {_rise(best, base):+.1%} in perplexity instead of "
        f"{_rise(full, base):+.1%}, held-out loss {best.held_out:.3f} instead of {full.held_out:.3f}",
    )


def _rise(now: Tried, base: Tried) -> float:
    """Of the perplexity of general text; infinite where that is not a number any more."""
    rise = now.general / base.general - 1.0
    return rise if math.isfinite(rise) else math.inf


def _some(store: ExampleStore) -> list[int]:
    """Examples of :data:`MOST_TOKENS` in all, at least one of them, evenly from the whole of the store."""
    mean = max(1.0, sum(map(int, islice(store.lengths, 1_000))) / max(1, min(len(store), 1_000)))
    count = min(len(store), max(1, round(MOST_TOKENS / mean)))
    return [index * len(store) // count for index in range(count)] if len(store) else []
