"""What a fine-tuning came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FinetunedModel:
    """What :func:`owngpt.finetune.start.finetune` made."""

    output: Path
    method: str
    data: dict[str, Any]
    """What the examples are: ``sentence``, counts, what was refused."""
    plan: dict[str, Any]
    sentence: str = ""
    """What changed."""
    warnings: tuple[str, ...] = ()
    """What is off, and what to change."""
    report: dict[str, Any] = field(default_factory=dict)
    """The content of report.json; empty after a dry run."""
    training: dict[str, Any] = field(default_factory=dict)
    """Steps, tokens, epochs, seconds and losses of the run itself."""
    seconds: float = 0.0
    """Wall-clock time of everything."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "output": str(self.output)}
