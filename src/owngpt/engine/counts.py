"""What an engine counts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from owngpt.engine.scheduler import Scheduler


@dataclass
class Counts:
    """Since the engine was made."""

    requests: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of prompts that came from the cache."""
    written_tokens: int = 0
    steps: int = 0
    guessed_tokens: int = 0
    """Tokens that speculation guessed."""
    accepted_tokens: int = 0
    """Those of them that the texts went on with."""


@dataclass(frozen=True)
class EngineStats:
    """Counts since the engine was made, and its present load."""

    requests: int
    finished: int
    failed: int
    cancelled: int
    running: int
    waiting: int
    prompt_tokens: int
    cached_tokens: int
    """Tokens of prompts that came from the cache."""
    written_tokens: int
    steps: int
    preemptions: int
    blocks: int
    free_blocks: int
    cached_blocks: int
    """Free blocks whose content can still be found."""
    guessed_tokens: int
    """Tokens that speculation guessed."""
    accepted_tokens: int
    """Those of them that the texts went on with."""

    @classmethod
    def of(cls, counts: Counts, scheduler: Scheduler, arriving: int) -> EngineStats:
        """:param arriving: texts that the scheduler does not know yet."""
        pool = scheduler.pool
        return cls(
            **asdict(counts), running=len(scheduler.running), waiting=len(scheduler.waiting) + arriving,
            preemptions=scheduler.preemptions, blocks=pool.size, free_blocks=pool.available, cached_blocks=pool.cached,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)
