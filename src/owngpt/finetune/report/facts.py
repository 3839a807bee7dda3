"""What the report reads of a run's plan and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from owngpt.config.finetuning import PREFERENCE_METHODS


@dataclass(frozen=True)
class RunFacts:
    """None or nothing where a run does not tell."""

    examples: int | None = None
    """Examples that were learned from: sequences, or pairs of a preference."""
    tokens: int = 0
    learned: int | None = None
    """Tokens that are targets."""
    labelled: int = 0
    """Sequences with a label: nothing in them is a target."""
    dropped: int = 0
    """Sequences that were too long and left out."""
    masked: int = 0
    """Sequences left out because nothing in them would have been learned."""
    shared: int = 0
    """Held-out examples that ask what is learned."""
    learning_rate: float | None = None
    lora: bool = False
    replay: float = 0.0
    """Share of general text."""

    @classmethod
    def of(cls, data: Mapping[str, Any], plan: Mapping[str, Any]) -> RunFacts:
        """
        :param data: ``method``; ``train``: what :class:`owngpt.finetune.sequences.overflow.StoreStats` says of what is learned.
        :param plan: what :class:`owngpt.finetune.plan.FinetunePlan` says; a plain ``learning_rate`` does, too.
        """
        train = data.get("train") or {}
        course = plan.get("course") or {}
        examples = train.get("examples")
        if examples is not None and data.get("method") in PREFERENCE_METHODS:
            examples //= 2  # a pair is two sequences
        return cls(
            examples, train.get("tokens") or 0, train.get("learned", train.get("learned_tokens")),
            train.get("labelled") or 0,
            _count(train.get("dropped")), _count(train.get("masked")), int(data.get("shared_prompts") or 0),
            plan.get("learning_rate") or course.get("learning_rate"),
            bool(plan.get("lora")), float(plan.get("replay") or 0.0),
        )  # fmt: skip

    @property
    def rate_in_words(self) -> str:
        """The learning rate in brackets, where it is known."""
        return f" (learning rate {self.learning_rate:.2g})" if self.learning_rate else ""

    @property
    def lower_rate(self) -> str:
        """A third of the learning rate as an option, where it is known."""
        return f" (--learning-rate {self.learning_rate / 3:.1g})" if self.learning_rate else ""


def _count(tally: Any) -> int:
    """Of a tally, or a plain number."""
    return int(tally.get("count", 0)) if isinstance(tally, Mapping) else int(tally or 0)
