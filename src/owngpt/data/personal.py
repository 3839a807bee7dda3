"""Masking of personal data: what looks like it and passes its own checksum is replaced by a label such as `[EMAIL]`.

A number is only masked when its check digits agree (bank cards: Luhn, ISO/IEC 7812-1; Chinese identity cards:
ISO 7064 MOD 11-2, GB 11643), or when its form leaves no doubt, so prices, dates and line numbers stay.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable

_KEY = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----[\s\S]{0,16384}?-----END (?:[A-Z]+ )*PRIVATE KEY-----"
    r"|(?<![A-Za-z0-9])(?:"
    r"sk-(?:[a-z]+-)*[A-Za-z0-9_]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,}"
    r"|glpat-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[0-9A-Za-z_-]{35}|hf_[A-Za-z0-9]{30,}|npm_[A-Za-z0-9]{36}"
    r"|LTAI[A-Za-z0-9]{16,20}|[rs]k_(?:live|test)_[A-Za-z0-9]{20,}"
    r"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    r")(?![A-Za-z0-9])"
)
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_CHINESE_ID = re.compile(
    r"(?<![0-9])[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[0-9Xx](?![0-9A-Za-z])"
)
_CARD = re.compile(r"(?<![0-9A-Za-z.-])[2-6]\d{3}(?:[ -]?\d){9,15}(?![0-9A-Za-z])")
_IPV4 = re.compile(r"(?<![0-9A-Za-z.])(?:\d{1,3}\.){3}\d{1,3}(?![0-9A-Za-z]|\.\d)")
_IPV6 = re.compile(r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![0-9A-Za-z:])")
_PHONE = re.compile(
    r"(?<![0-9A-Za-z.+-])(?:"
    r"(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"  # Chinese mobile
    r"|(?:0\d{2,3}[ -]|[(]0\d{2,3}[)][ -]?)\d{3,4}[ -]?\d{4}"  # Chinese landline
    r"|\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"  # international
    r"|(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])[2-9]\d{2}[.-]\d{4}"  # North American
    r")(?![0-9A-Za-z]|[.-]\d)"
)


_WIDE = re.compile(r"[０-９Ａ-Ｚａ-ｚ＠]|[（＋]\d")
_NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}


def mask(text: str, counts: Counter[str] | None = None) -> str:
    """`text` with keys, email addresses, identity and card numbers, IP addresses and phone numbers replaced by labels.

    `counts` gains the number of replacements by label.
    """
    counts = counts if counts is not None else Counter()
    for label, pattern, holds in _MASKS:
        text = _replace(text, label, pattern, holds, counts)
    return text


def luhn_holds(number: str) -> bool:
    """Whether the digits of `number` pass the Luhn check (ISO/IEC 7812-1, annex B)."""
    digits = [int(character) for character in number if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def chinese_id_holds(number: str) -> bool:
    """Whether the last character of an 18-character identity number is its check character (GB 11643, ISO 7064 MOD 11-2)."""
    weighted = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[weighted % 11] == number[17].upper()


def _is_address(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    # "::" alone and "a::b" are C++ or Ruby scopes far more often than addresses.
    return address.version == 4 or (text.count(":") >= 3 and any(character.isdigit() for character in text))


def _replace(text: str, label: str, pattern: re.Pattern[str], holds: Callable[[str], bool], counts: Counter[str]) -> str:
    pieces, end = [], 0
    for match in pattern.finditer(_narrowed(text)):
        if holds(match.group()):
            counts[label] += 1
            pieces += [text[end : match.start()], f"[{label}]"]
            end = match.end()
    return "".join(pieces) + text[end:] if pieces else text


def _narrowed(text: str) -> str:
    """The text with full-width letters, digits and signs (as in Chinese typesetting) narrow, each in its old place."""
    return text.translate(_NARROW) if _WIDE.search(text) else text


def _always(_: str) -> bool:
    return True


_MASKS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("KEY", _KEY, _always),
    ("EMAIL", _EMAIL, _always),
    ("ID", _CHINESE_ID, chinese_id_holds),
    ("CARD", _CARD, luhn_holds),
    ("IP", _IPV4, _is_address),
    ("IP", _IPV6, _is_address),
    ("PHONE", _PHONE, _always),
)
