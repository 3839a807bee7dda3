"""What is wrong with a row, so that the person who wrote it can mend it."""

from __future__ import annotations


class Fault(Exception):
    """One row cannot be learned from.

    It never reaches a person by itself: :mod:`owngpt.finetune.examples.summary` collects faults with their places.
    """

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(reason)
        self.reason = reason
        """What is wrong, without the place; rows with the same kind of fault are counted together."""
        self.fix = fix
        """What to do, in the imperative."""


class BrokenFile(Fault):
    """Nothing after this place in the file can be read."""
