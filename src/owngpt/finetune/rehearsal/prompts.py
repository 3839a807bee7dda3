"""What a model is asked to write about when it rehearses: openings of texts of many kinds, and questions about anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from owngpt.finetune.report.forgetting import GeneralLanguage

Kind = Literal["openings", "questions"]


def prompts(kind: Kind, languages: Sequence[GeneralLanguage]) -> list[str]:
    """One a line of the files beside, languages in turn."""
    lists = [_lines(f"{kind}_{language.lower()}.txt") for language in languages]
    longest = max(map(len, lists), default=0)
    return [lines[place] for place in range(longest) for lines in lists if place < len(lines)]


def _lines(name: str) -> list[str]:
    return (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
