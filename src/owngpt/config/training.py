"""What a person may decide about a training run; whatever is left open, the planner decides for this machine and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from owngpt.config.checks import above, at_least, one_of, within
from owngpt.errors import UsageError

DEFAULT_MINUTES = 10.0
PRESETS = ("native", "gpt", "gpt2", "gpt2-medium", "gpt3-small", "gpt-neo-125m")
DIALS = ("minutes", "steps", "tokens")
SIZES = ("layers", "hidden_size", "heads", "key_value_heads", "context_length", "batch_size", "accumulation")
OF_A_MODEL = ("preset", "tokenizer", "vocab_size", "layers", "hidden_size", "heads", "key_value_heads")
"""What a model that a run goes on from brings along."""
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class TrainConfig:
    """The settings of `owngpt train` and `owngpt.train`. None leaves the choice to the planner. Checked when it is made."""

    minutes: float | None = None
    """Wall-clock time of the whole run, everything included; 10 when no dial is given."""
    steps: int | None = None
    """Optimizer steps instead of a time."""
    tokens: int | None = None
    """Training tokens instead of a time."""
    preset: str | None = None
    """Architecture: native (any size), gpt, gpt2, gpt2-medium, gpt3-small or gpt-neo-125m."""
    from_model: str | None = field(default=None, metadata={"option": "--from"})
    """A model to go on from: a folder, a .gguf file or the name of a pulled one. Its tokenizer, shape and layout stay."""
    tokenizer: str | None = None
    """bpe, byte or char to train one on the text, or the folder of an existing one."""
    vocab_size: int | None = None
    """Tokens in the vocabulary of a tokenizer that is trained, reserved ones included."""
    layers: int | None = None
    """Number of blocks."""
    hidden_size: int | None = None
    """Width of the residual stream."""
    heads: int | None = None
    """Query heads."""
    key_value_heads: int | None = None
    """Key and value heads, a divisor of the query heads."""
    context_length: int | None = None
    """Longest sequence in tokens."""
    batch_size: int | None = None
    """Sequences in one forward pass (of each rank, where several train together)."""
    accumulation: int | None = None
    """Forward passes for one update."""
    learning_rate: float | None = None
    """Peak learning rate of the matrices."""
    weight_decay: float | None = None
    """Decoupled weight decay."""
    dropout: float | None = None
    """Probability of dropping a value while training."""
    optimizer: Literal["muon", "adamw"] | None = None
    """muon (for matrices, AdamW for the rest) or adamw alone; muon unless its own work would slow the steps too much."""
    document_mask: bool = False
    """A token attends only to its own document."""
    corpus: str | None = None
    """A named corpus to train on, beside or instead of files."""
    mask_personal_data: bool = False
    """Replace email addresses, phone, identity and card numbers, IP addresses and keys by a label."""
    validation_fraction: float | None = None
    """Share of the documents held out and never trained on."""
    seed: int = 0
    """Decides the initial weights, the order of the text and what is held out."""

    def __post_init__(self) -> None:
        given = [name for name in DIALS if getattr(self, name) is not None]
        if len(given) > 1:
            names = " and ".join(f"--{name}" for name in given)
            raise UsageError(f"{names} are given together, but a run ends in one way; keep one of them")
        brought = [name for name in OF_A_MODEL if getattr(self, name) is not None]
        if self.from_model is not None and brought:
            option = f"--{brought[0].replace('_', '-')}"
            raise UsageError(f"{option} and --from are given together, but {self.from_model} has its own; leave {option} out")
        if self.minutes is not None:
            above("minutes", self.minutes, 0, example=10)
        if self.learning_rate is not None:
            above("learning_rate", self.learning_rate, 0, example=0.001)
        for name in ("steps", "tokens", "vocab_size", *SIZES):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 2 if name == "context_length" else 1)
        if self.preset is not None:
            one_of("preset", self.preset, PRESETS)
        if self.optimizer is not None:
            one_of("optimizer", self.optimizer, ("muon", "adamw"))
        if self.weight_decay is not None:
            at_least("weight_decay", self.weight_decay, 0)
        if self.dropout is not None:
            within("dropout", self.dropout, 0, 1, high_open=True)
        if self.validation_fraction is not None:
            within("validation_fraction", self.validation_fraction, 0, 0.5, low_open=True)
        within("seed", self.seed, 0, MAX_SEED)


def merged(from_file: Mapping[str, Any], given: Mapping[str, Any], dials: Sequence[str] = DIALS) -> dict[str, Any]:
    """Settings of a file under those given directly; a dial that is given replaces whichever dial the file has."""
    dialled = any(given.get(name) is not None for name in dials)
    kept = {name: value for name, value in from_file.items() if not (dialled and name in dials)}
    return {**kept, **given}
