"""A text that trains in a second or two, and the options of the smallest model."""

from __future__ import annotations

from pathlib import Path

import pytest

TINY = {"layers": 1, "hidden_size": 32, "context_length": 32, "batch_size": 4, "vocab_size": 300, "seed": 3}


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty documents of different words."""
    folder = tmp_path_factory.mktemp("text") / "books"
    folder.mkdir()
    for chapter in range(20):
        lines = [f"In chapter {chapter} of the book, sentence {line} tells of {line * chapter + 7} ships." for line in range(40)]
        (folder / f"chapter-{chapter}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def tiny() -> dict[str, int]:
    """Options of the smallest model."""
    return dict(TINY)
