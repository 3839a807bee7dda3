"""Which of a few kinds of text this is, from its script, its commonest words and its punctuation. No model, no download."""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["en", "zh", "code", "other"]
LANGUAGES: tuple[Language, ...] = ("en", "zh", "code", "other")

SAMPLE_CHARACTERS = 20_000
"""Of a longer text, its start, middle and end are looked at, a third each."""

_IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_KANA = re.compile("[\u3041-\u30ff\u31f0-\u31ff]")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_CODE_MARK = re.compile(
    r"[;{}]\s*$|^\s*(?:[#@]\w|//|/\*|\*/)|^\s*(?:def|class|import|from|return|if|for|while|elif|else|try|except|with|function"
    r"|const|let|var|public|private|static|void|int|struct|enum|package|func|fn|use|include|end)\b.*[:;{()\[\]=,]"
    r"|^\s*[\w.\[\]]+\s*(?:[-+*/|&]?=|:=)\s*\S|\w\(.*\)\s*[:;,{]?\s*$|</?\w+[^>]*>\s*$",
    re.MULTILINE,
)
_ENGLISH = frozenset((
    "the", "of", "and", "to", "in", "a", "is", "that", "it", "was", "for", "on", "as", "with", "he", "his", "be", "at", "by",
    "i", "this", "had", "not", "are", "but", "from", "or", "have", "an", "they", "which", "you", "were", "her", "all", "she",
    "there", "would", "their", "we", "him", "been", "has", "when", "who", "will", "more", "no", "if", "out", "so", "said",
    "what", "up", "its", "about", "into", "than", "them", "can", "only", "other", "my", "me", "your", "do", "not", "then",
    "thou", "thy", "shall", "may",
))  # fmt: skip

CODE_SHARE = 0.25
"""Lines that look like code, of those that are not blank. Prose has under 0.1; code, comments included, mostly over 0.4."""
ENGLISH_SHARE = 0.2
"""Common words of all words. English prose has about 0.4, other languages in Latin script under 0.1."""
IDEOGRAPH_SHARE = 0.3


def detect_language(text: str) -> Language:
    """One of "en", "zh", "code" and "other" (which includes Japanese, and text with too few words to tell)."""
    sample = _sample(text)
    words = _WORD.findall(sample)
    ideographs = len(_IDEOGRAPH.findall(sample))
    letters = sum(map(len, words))
    if not letters:
        return "other"
    lines = [line for line in sample.splitlines() if line.strip()]
    if len(lines) >= 3 and _code_lines(lines) >= CODE_SHARE * len(lines):
        return "code"
    if ideographs >= IDEOGRAPH_SHARE * letters:
        return "other" if len(_KANA.findall(sample)) >= 0.05 * letters else "zh"
    common = sum(word.lower() in _ENGLISH for word in words)
    if common >= ENGLISH_SHARE * len(words):
        return "en"
    return "other"


def _code_lines(lines: list[str]) -> int:
    return sum(_CODE_MARK.search(line[:500]) is not None for line in lines)


def _sample(text: str) -> str:
    if len(text) <= SAMPLE_CHARACTERS:
        return text
    third = SAMPLE_CHARACTERS // 3
    middle = len(text) // 2
    return "\n".join((text[:third], text[middle : middle + third], text[-third:]))
