"""How long a run is, what happens when, and what it came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from owngpt.errors import UsageError


@dataclass(frozen=True)
class Course:
    """How long a run is and what happens when."""

    steps: int
    """To take; under a time budget an estimate."""
    budget_seconds: float | None = None
    """All that :meth:`~owngpt.train.trainer.Trainer.run` does ends with it. None: exactly ``steps`` steps, whatever they take."""
    step_limit: int | None = None
    """Under a time budget: the steps after which the run ends even if there is time left."""
    patience: int | None = None
    """Validations in a row without a lower loss after which the run ends; None: it is run whatever they say."""
    accumulation: int = 1
    """Micro-batches a step."""
    warmup: float = 0.02
    """Share of the run over which the learning rate rises."""
    decay: float = 0.5
    """Share of the run over which it falls."""
    floor: float = 0.0
    """Share of the peak learning rate that it falls to."""
    learning_rate: float = 1.0
    """Peak, as shown in the metrics; the optimizer has its own."""
    evaluation_interval: int = 250
    """Steps between validations of a run with a fixed number of steps."""
    validation_share: float = 0.04
    """Of a time budget that validation may take."""
    averages_from: float | None = None
    """Share of the run from which on the weights at each validation are averaged; the mean is what is kept, unless one of them is
    clearly better. None: they are not."""
    checkpoint_seconds: float = 60.0
    """Between checkpoints, at least; more where saving takes long."""

    def __post_init__(self) -> None:
        for name in ("steps", "accumulation", "evaluation_interval"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("step_limit", "patience"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        if self.budget_seconds is not None and not self.budget_seconds > 0:
            raise UsageError(f"there are {self.budget_seconds:.1f} seconds left to train in; give more minutes")
        if self.checkpoint_seconds < 0:
            raise UsageError(f"checkpoint_seconds is {self.checkpoint_seconds}; it must be 0 (after every step) or more")


@dataclass(frozen=True)
class TrainResult:
    """What a finished run came to. Losses are mean negative log-likelihoods per token, in nats."""

    step: int
    tokens: int
    epoch: float
    elapsed_seconds: float
    """Over all sessions."""
    training_loss: float
    """Of the last step that was taken."""
    best_step: int
    """That did best of all; the model has its weights, or a mean."""
    validation_loss: float | None
    """Of the weights that it has on the validation batches; None without held-out text."""
    bits_per_byte: float | None
    """The same, per byte of text."""
    averaged: int = 0
    """States whose mean these weights are; 0 where they are those of ``best_step``."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
