"""What is off about a run, in plain words, and what to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from owngpt.finetune.report.comparison import Comparison
from owngpt.finetune.report.facts import RunFacts
from owngpt.finetune.report.measure import Measurement

MOST_RISE = 0.05
"""Of the perplexity on general text, before it is called forgetting."""
LEAST_STOPS = 0.95
MOST_LOOPS = 0.05
FEW_EXAMPLES = 50
FEW_HELD_OUT = 20
LEAST_LEARNED = 0.02
"""Share of the tokens that are learned, below which most of the work is spent on reading prompts."""
OVERFIT_RISE = 0.03
"""Of the held-out loss from its best to its last, before it is called overfitting."""
MOST_LOST = 0.05
"""Share of the examples that were too long."""
FEW_STEPS = 10
LEAST_QUARTER = 3
"""Steps of a quarter of a run, below which its mean says nothing of a trend."""


@dataclass(frozen=True)
class Concern:
    """Something to look at."""

    name: str
    what: str
    """What was seen, with its numbers."""
    change: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.what} {self.change}"

    def to_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        return asdict(self)


def concerns(
    before: Measurement, after: Measurement, comparison: Comparison, facts: RunFacts, records: Sequence[Mapping[str, Any]]
) -> list[Concern]:
    """Everything that is off, the gravest first.

    :param records: the lines of the run's metrics.jsonl.
    """
    training = [record for record in records if record.get("split") == "train" and record.get("loss") is not None]
    held_out = [record for record in records if record.get("split") == "validation" and record.get("loss") is not None]
    return [
        *(_masked(facts) if before.kind != "label" else ()),
        *_diverging(records, training, facts),
        *_unfinished(training, held_out),
        *_not_gained(comparison, facts),
        *_overfitted(training, held_out, facts),
        *_endless(comparison, after),
        *_repeating(comparison, after),
        *_forgotten(comparison, facts),
        *_one_class(comparison, facts),
        *_wrong_preference(comparison),
        *_shared(facts),
        *_lost(facts),
        *_few(before, facts),
        *_cut_short(before, after),
    ]


def _masked(facts: RunFacts) -> Iterator[Concern]:
    if facts.learned is None or not facts.tokens or facts.labelled:
        return
    share, examples = facts.learned / facts.tokens, facts.examples or 0
    look = "Look at the examples with --show 3, and name the columns with --columns if answers were taken for prompts."
    if facts.learned == 0:
        yield Concern("all masked", "Not one token of the examples was learned: all were masked.", look)
    elif facts.masked > MOST_LOST * (examples + facts.masked):
        what = f"In {facts.masked:,} of {examples + facts.masked:,} examples nothing would have been learned; they were left out."
        yield Concern("masked", what, look)
    elif share < LEAST_LEARNED:
        yield Concern(
            "nearly all masked", f"Only {share:.1%} of the tokens were learned; the others are prompts.",
            "Shorten the prompts, or look with --show 3 whether the answers are where they should be.",
        )  # fmt: skip


def _diverging(records: Sequence[Mapping[str, Any]], training: Sequence[Mapping[str, Any]], facts: RunFacts) -> Iterator[Concern]:
    rate, lower = facts.rate_in_words, facts.lower_rate
    bad = [record for record in records if record.get("event") in ("skipped", "rolled_back")]
    losses = [record["loss"] for record in training]
    quarter = len(losses) // 4
    if bad:
        yield Concern(
            "learning rate too high", f"{len(bad)} steps were not taken because the loss or the gradient jumped{rate}.",
            f"Use a lower learning rate{lower}.",
        )  # fmt: skip
    elif quarter >= LEAST_QUARTER and fmean(losses[-quarter:]) > 1.02 * fmean(losses[:quarter]):
        yield Concern(
            "learning rate too high",
            f"The training loss rose from {fmean(losses[:quarter]):.3f} to {fmean(losses[-quarter:]):.3f}{rate}.",
            f"Use a lower learning rate{lower}.",
        )  # fmt: skip


def _not_gained(comparison: Comparison, facts: RunFacts) -> Iterator[Concern]:
    line = comparison.line("loss")
    if line is None or line.after < line.before * 0.995:
        return
    yield Concern(
        "nothing gained", f"The loss on held-out examples did not fall: {line.before:.3f} before, {line.after:.3f} after.",
        f"Train for longer, or with another learning rate{facts.rate_in_words}; more examples of the same task help most.",
    )  # fmt: skip


def _overfitted(
    training: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]], facts: RunFacts
) -> Iterator[Concern]:
    if len(held_out) < 2 or not training:
        return
    losses = [record["loss"] for record in held_out]
    best = min(range(len(losses)), key=losses.__getitem__)
    if losses[-1] <= (1 + OVERFIT_RISE) * losses[best]:
        return
    at = held_out[best]
    passes = f", after {at['epoch']:.1f} passes" if at.get("epoch") else ""
    yield Concern(
        "overfit",
        f"From step {at['step']}{passes} on, the loss on held-out examples rose again, from {losses[best]:.3f} to "
        f"{losses[-1]:.3f}, while the training loss went on to {training[-1]['loss']:.3f}: the rest was learning by heart. "
        "The weights of that step, or a mean that did about as well, were kept.",
        f"Take fewer passes{_epochs_like(at, facts)}, a lower learning rate{facts.lower_rate}, or more examples.",
    )  # fmt: skip


def _epochs_like(record: Mapping[str, Any], facts: RunFacts) -> str:
    """As many as had been taken then, to a tenth; and as much general text, which is the default only where the time is given."""
    epoch = round(record.get("epoch") or 0.0, 1)
    replay = f" --replay {facts.replay:g}" if facts.replay else ""
    return f" (--epochs {epoch:g}{replay})" if epoch else ""


def _endless(comparison: Comparison, after: Measurement) -> Iterator[Concern]:
    line = comparison.line("stop rate")
    if line is None or after.kind == "text" or line.after >= LEAST_STOPS:
        return
    yield Concern(
        "never stops" if line.after < 0.5 else "does not always stop",
        f"Only {line.after:.0%} of the answers ended by themselves within {after.answer_limit} tokens"
        f" ({line.before:.0%} before).",
        "Train for longer; look with --show 3 whether the end of each answer is learned (it must not be masked); "
        "and see that the examples themselves are whole, not cut off.",
    )  # fmt: skip


def _repeating(comparison: Comparison, after: Measurement) -> Iterator[Concern]:
    line = comparison.line("loops")
    if line is None or line.after <= MOST_LOOPS:
        return
    change = "Take fewer passes or a lower learning rate, and remove repeated examples."
    if line.after < line.before:
        more = f"--repetition-penalty {after.penalty + 0.1:.3g}"
        change = f"Train for longer or on more examples; until then, {more} helps when it writes."
    yield Concern(
        "repeats itself", f"{line.after:.0%} of the answers end by saying the same again and again ({line.before:.0%} before).",
        change,
    )  # fmt: skip


def _forgotten(comparison: Comparison, facts: RunFacts) -> Iterator[Concern]:
    line = comparison.forgetting
    if line is None or line.change <= MOST_RISE:
        return
    languages = " and ".join(comparison.knows)
    replay = (
        "mix general text in with --replay 0.1"
        if not facts.replay
        else f"mix more general text in (--replay {2 * facts.replay:g})"
    )
    yield Concern(
        "forgetting",
        f"Perplexity on general text ({languages}) rose by {line.change:.1%}, from {line.before:.2f} to {line.after:.2f}.",
        f"To keep more of what the model knew, {replay}, lower the learning rate{facts.lower_rate}, or train fewer passes"
        + ("." if facts.lora else "; --lora forgets less than --full."),
    )  # fmt: skip


def _one_class(comparison: Comparison, facts: RunFacts) -> Iterator[Concern]:
    if comparison.confusion is None:
        return
    after = comparison.confusion[1]
    missed = [label for label, score in after.f1.items() if score == 0]
    if len(after.labels) > 1 and after.share_of_commonest == 1:
        yield Concern(
            "one class for all", "Every held-out text was given the same class.",
            f"Train for longer or with another learning rate{facts.rate_in_words}; give the classes similar numbers of texts.",
        )  # fmt: skip
    elif missed:
        named = ", ".join(missed[:5]) + (" …" if len(missed) > 5 else "")
        yield Concern(
            "classes never found", f"No held-out text was rightly given: {named}.", "Give more texts of these classes.",
        )  # fmt: skip


def _wrong_preference(comparison: Comparison) -> Iterator[Concern]:
    line = comparison.line("win rate against the network of before")
    if line is None or line.after > 0.5:
        return
    yield Concern(
        "preference not learned", f"Only {line.after:.0%} of the held-out pairs moved towards the chosen answer.",
        "Look with --show 3 whether chosen and rejected are the right way round; else train for longer or with more pairs.",
    )  # fmt: skip


def _unfinished(training: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]) -> Iterator[Concern]:
    if training and training[-1].get("step", FEW_STEPS) < FEW_STEPS:
        yield Concern(
            "very short", f"The run took only {training[-1]['step']} steps.",
            "Give it more time (--minutes) or more passes (--epochs).",
        )  # fmt: skip
        return
    losses = [record["loss"] for record in held_out]
    if len(losses) >= 4 and losses[-1] == min(losses) and losses[-1] < 0.97 * losses[-2]:
        yield Concern(
            "stopped early",
            f"The loss on held-out examples was still falling at the end ({losses[-2]:.3f}, then {losses[-1]:.3f}).",
            "More time (--minutes) or more passes (--epochs) would make it better.",
        )  # fmt: skip


def _shared(facts: RunFacts) -> Iterator[Concern]:
    if facts.shared:
        yield Concern(
            "learned by heart", f"{facts.shared:,} held-out examples ask what the model was taught, so the scores flatter.",
            "Leave them out of one side, or let rows be held out (--held-out 0.1 instead of --validation).",
        )  # fmt: skip


def _lost(facts: RunFacts) -> Iterator[Concern]:
    if not facts.examples or not facts.dropped:
        return
    share = facts.dropped / (facts.examples + facts.dropped)
    if share > MOST_LOST:
        yield Concern(
            "too long", f"{facts.dropped:,} examples ({share:.0%}) were longer than the context and left out.",
            "Use a longer --context-length, or --overflow split.",
        )  # fmt: skip


def _few(before: Measurement, facts: RunFacts) -> Iterator[Concern]:
    if facts.examples is not None and facts.examples < FEW_EXAMPLES:
        yield Concern(
            "few examples", f"There were only {facts.examples} examples to learn from.",
            "A hundred or more, as different from each other as the task allows, teach a tone; a thousand teach a task.",
        )  # fmt: skip
    if 0 < before.examples < FEW_HELD_OUT:
        yield Concern(
            "few held-out examples", f"The scores are of only {before.examples} held-out examples and may be off by a lot.",
            "Hold more out (--held-out 0.2) or give a file of its own (--validation).",
        )  # fmt: skip
    elif not before.examples:
        yield Concern("nothing held out", "No examples were held out, so there are no scores.", "Give at least five examples.")


def _cut_short(before: Measurement, after: Measurement) -> Iterator[Concern]:
    if not after.examples or before.kind == "label":
        return
    if not any(answer.counts for answer in before.answers) or not any(answer.counts for answer in after.answers):
        yield Concern(
            "little time to measure", "The time was up before ten answers were written, so there are no scores of answers.",
            "Give more --minutes.",
        )  # fmt: skip
