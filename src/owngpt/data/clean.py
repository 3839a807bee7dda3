"""Cleaning that changes nothing a reader would miss: wrongly decoded text is mended, Unicode normalised to NFC, line
ends made `\\n`, and characters that print nothing dropped. Spaces, punctuation and full-width forms stay as written.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_ASCII_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_UNWANTED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u2029\u2060\ufeff\ufffe\uffff\ud800-\udfff]")
_LINE_ENDS = re.compile(r"\r\n?|[\x85\u2028\u2029\x0c\x0b]")
# UTF-8 read as Latin-1 or Windows-1252 shows as one of these capitals or accented letters followed by a character that
# comes from a continuation byte. Only such lines are worth the full, slow inspection.
_SUSPECT = re.compile(
    "[\u00c2-\u00f4\u0102\u0103\u010e\u010f\u0110\u0111\u0413\u0420\u0421\u0432\u0440]"
    "[\x80-\xbf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201e\u2020-\u2022\u2026\u2030\u2039"
    "\u203a\u20ac\u2122]"
)


def clean(text: str, *, repair: bool = True, counts: Counter[str] | None = None) -> str:
    """The text as it should be trained on.

    `counts` gains the number of "repaired lines" and of "control characters" removed.
    """
    counts = counts if counts is not None else Counter()
    if text.isascii():
        return _clean_ascii(text, counts) if _ASCII_CONTROL.search(text) else text
    if repair and _SUSPECT.search(text):
        text = _mend_lines(text, counts)
    if _UNWANTED.search(text):
        text = _LINE_ENDS.sub("\n", text)
        text, removed = _UNWANTED.subn("", text)
        counts["control characters"] += removed
    if repair and not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return text


def _clean_ascii(text: str, counts: Counter[str]) -> str:
    text = _LINE_ENDS.sub("\n", text)
    text, removed = _ASCII_CONTROL.subn("", text)
    counts["control characters"] += removed
    return text


def _mend_lines(text: str, counts: Counter[str]) -> str:
    import ftfy  # costs a tenth of a second; most corpora never need it

    # C1 control characters are what mojibake leaves behind, so str.splitlines, which breaks at \x85, would tear it apart.
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if _SUSPECT.search(line):
            mended = ftfy.fix_encoding(line)
            if mended != line:
                lines[number] = mended
                counts["repaired lines"] += 1
    return "\n".join(lines)
