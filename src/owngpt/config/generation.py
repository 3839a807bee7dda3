"""How the next token is chosen, and when writing stops."""

from __future__ import annotations

from dataclasses import dataclass

from owngpt.config.checks import at_least, within
from owngpt.errors import UsageError

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling settings, named as transformers names them. Every value is checked when the record is made."""

    max_new_tokens: int = 256
    """Most tokens to write."""
    temperature: float = 0.8
    """Divides the logits before sampling; lower is safer, 0 always takes the likeliest token."""
    top_k: int = 0
    """Sample among the k likeliest tokens only; 0 is no limit."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together reach this probability (nucleus sampling, arXiv 1904.09751)."""
    min_p: float = 0.0
    """Drop tokens below this share of the likeliest token's probability (arXiv 2407.01082)."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were already used become less likely (arXiv 1909.05858); 1 is off."""
    num_return_sequences: int = 1
    """How many texts to write."""
    num_beams: int = 1
    """Above 1, beam search of that width instead of sampling."""
    stop: tuple[str, ...] = ()
    """Stop before this text; may be given several times."""
    seed: int | None = None
    """Same seed, same text on the same machine; none draws a fresh one."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        at_least("max_new_tokens", self.max_new_tokens, 1)
        at_least("temperature", self.temperature, 0)
        at_least("top_k", self.top_k, 0)
        within("top_p", self.top_p, 0, 1, low_open=True)
        within("min_p", self.min_p, 0, 1)
        within("repetition_penalty", self.repetition_penalty, 0, 100, low_open=True)
        within("num_return_sequences", self.num_return_sequences, 1, 1024)
        within("num_beams", self.num_beams, 1, 256)
        if any(not text for text in stop):
            raise UsageError("--stop is an empty text, which would stop at once; leave it out or name the text to stop before")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise UsageError(
                f"--num-return-sequences {self.num_return_sequences} is more than --num-beams {self.num_beams}; "
                f"use --num-beams {self.num_return_sequences} or fewer sequences"
            )
        if self.seed is not None:
            within("seed", self.seed, 0, MAX_SEED)
