"""A fine-tuning, fully resolved: what run.yaml keeps, so that a resumed run takes the same way."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from owngpt.config.finetuning import Method
from owngpt.finetune.adapter.lora import LoraSettings
from owngpt.train.course import Course
from owngpt.train.optimizer import OptimizerSettings


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how it learns from one batch: everything but how long."""

    method: Method
    lora: LoraSettings | None
    """None trains the model's own weights."""
    optimizer: OptimizerSettings
    dtype: str
    """"bfloat16" or "float32": what is computed in."""
    seed: int
    labels: tuple[str, ...] = ()
    """Of a classification, in the order of their ids."""
    clip: float = 1.0
    beta: float = 0.1
    """Of a preference method."""
    label_smoothing: float = 0.0
    checkpointing: bool = False
    int8_base: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of dataclasses.asdict."""
        values = dict(values)
        lora, optimizer = values["lora"], values["optimizer"]
        values["lora"] = None if lora is None else LoraSettings(**{**lora, "targets": tuple(lora["targets"])})
        values["optimizer"] = OptimizerSettings(**{**optimizer, "betas": tuple(optimizer["betas"])})
        values["labels"] = tuple(values["labels"])
        return cls(**values)


@dataclass(frozen=True)
class Shape:
    """How a step looks."""

    context_length: int
    """Longest row in tokens."""
    batch_size: int
    """Rows (pairs of a preference method, texts of a classification) in one forward pass."""
    accumulation: int
    """Passes a step."""
    pack: bool
    """Several examples in one row."""


@dataclass(frozen=True)
class FinetunePlan:
    """A run."""

    recipe: Recipe
    shape: Shape
    course: Course
    examples: int
    """To learn from."""
    tokens: int
    """In one pass over them."""
    epochs: float
    """Expected passes."""
    tokens_per_second: float
    """Measured, or NaN."""
    trained_parameters: int
    replay: float
    """Share of the rows that is general text."""
    reasons: tuple[str, ...]
    """Why, a line each."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> FinetunePlan:
        """The inverse of :meth:`to_dict`."""
        values = dict(values)
        values["recipe"] = Recipe.from_dict(values["recipe"])
        values["shape"], values["course"] = Shape(**values["shape"]), Course(**values["course"])
        values["reasons"] = tuple(values["reasons"])
        return cls(**values)
