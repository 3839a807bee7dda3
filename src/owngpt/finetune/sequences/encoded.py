"""An example as the model reads it: token ids, and which of them are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from owngpt.finetune.examples.example import Origin


@dataclass(frozen=True)
class Encoded:
    """One sequence. Of a preference there are two: chosen, then rejected."""

    token_ids: np.ndarray
    """(T,) int64"""
    learned: np.ndarray
    """(T,) bool: this token is a target, predicted from those before it. The first token never is."""
    origin: Origin
    label: int = -1
    """Index of the class, for classification."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def targets(self) -> int:
        """Tokens that are learned."""
        return int(self.learned.sum())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        learned = [int(value) for value in self.learned]
        return {"token_ids": [int(value) for value in self.token_ids], "learned": learned, "origin": str(self.origin)}
