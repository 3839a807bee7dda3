"""What the report reads of a run's plan and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RunFacts:
    """None or nothing where a run does not tell."""

    examples: int | None = None
    """That were learned from."""
    tokens: int = 0
    learned_tokens: int | None = None
    dropped: int = 0
    """Examples that were too long."""
    learning_rate: float | None = None
    lora: bool = False
    replay: float = 0.0
    """Share of general text."""

    @classmethod
    def of(cls, data: Mapping[str, Any], plan: Mapping[str, Any]) -> RunFacts:
        """
        :param data: ``train``: of the store of examples, ``examples``, ``tokens``, ``learned_tokens``, ``dropped``.
        :param plan: ``learning_rate``, ``lora``, ``replay``.
        """
        train = data.get("train") or {}
        return cls(
            train.get("examples"), train.get("tokens") or 0, train.get("learned_tokens"), train.get("dropped") or 0,
            plan.get("learning_rate"), bool(plan.get("lora")), float(plan.get("replay") or 0.0),
        )  # fmt: skip

    @property
    def rate_in_words(self) -> str:
        """The learning rate in brackets, where it is known."""
        return f" (learning rate {self.learning_rate:.2g})" if self.learning_rate else ""

    @property
    def lower_rate(self) -> str:
        """A third of the learning rate as an option, where it is known."""
        return f" (--learning-rate {self.learning_rate / 3:.1g})" if self.learning_rate else ""
