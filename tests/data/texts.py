"""Text for the tests: sentences drawn from a seeded generator, so that no two paragraphs are alike."""

from __future__ import annotations

import numpy as np

_WORDS = (
    "the a of to and in that was his her with for on not but had all there which when from out they we no were been "
    "ship sea whale captain night wind water hand eye man boat deck old great white long little never upon still"
)
WORDS = _WORDS.split()
CHARACTERS = "天下大势分久必合合久必分周末七国争并入于秦及灭之后楚汉又并高祖斩白蛇而起义一统来光武中兴传至献帝遂为三国"


def english(size: int, seed: int) -> str:
    """About `size` bytes of paragraphs of 60 to 160 words."""
    generator = np.random.Generator(np.random.PCG64(seed))
    paragraphs, length = [], 0
    while length < size:
        words = [WORDS[index] for index in generator.integers(0, len(WORDS), generator.integers(60, 160))]
        paragraphs.append(" ".join(words).capitalize() + ".")
        length += len(paragraphs[-1]) + 2
    return "\n\n".join(paragraphs) + "\n"


def chinese(size: int, seed: int) -> str:
    """About `size` bytes of Chinese paragraphs, one a line."""
    generator = np.random.Generator(np.random.PCG64(seed))
    lines, length = [], 0
    while length < size:
        count = int(generator.integers(60, 200))
        lines.append("".join(CHARACTERS[index] for index in generator.integers(0, len(CHARACTERS), count)) + "。")
        length += 3 * (count + 1) + 1
    return "\n".join(lines) + "\n"
