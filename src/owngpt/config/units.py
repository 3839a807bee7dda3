"""Numbers with units, as a person reads them."""

from __future__ import annotations


def in_bytes(count: int) -> str:
    """A number of bytes for a person: 1,234 bytes; 12.3 kB; 4.8 MB."""
    if count < 10_000:
        return f"{count:,} bytes"
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1000:.1f} kB"
