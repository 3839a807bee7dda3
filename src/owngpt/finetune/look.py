"""A few examples as a run would learn them, for a person to look at before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from owngpt.config.checks import at_least
from owngpt.config.finetuning import FinetuneConfig, Method, as_options
from owngpt.finetune.material import open_rows
from owngpt.finetune.rendering.show import ShownExample, shown
from owngpt.formats.base import BaseModel


@dataclass(frozen=True)
class Looked:
    """Examples, and what they are."""

    examples: list[ShownExample]
    method: Method
    sentence: str
    """Of all of them."""
    notes: list[str]
    """What was chosen without being asked."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        examples = [example.to_dict() for example in self.examples]
        return {"method": self.method, "sentence": self.sentence, "notes": self.notes, "examples": examples}


def look(
    model: str | Path, data: Sequence[str | Path], count: int, *, say: Callable[[str], None] = lambda line: None, **options: Any
) -> Looked:
    """The first examples as :func:`owngpt.finetune.start.finetune` would learn them with the same arguments.

    :param count: how many.
    """
    at_least("show", count, 1)
    settings = FinetuneConfig(**as_options(options))  # type: ignore[arg-type]
    opened = open_rows([str(path) for path in data], settings, BaseModel.of(str(model)).tokenizer(), say=say)
    examples = [shown(example, opened.renderer) for example in islice(opened.examples, count)]
    for note in opened.renderer.notes:
        say(note)
    return Looked(examples, opened.method, opened.examples.sentence(), opened.renderer.notes)
