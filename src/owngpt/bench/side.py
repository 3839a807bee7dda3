"""What can be asked of a side of the comparison, and how a side is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Protocol

Prompt = Sequence[int]
Figures = dict[str, float]
"""Measured numbers by name; seconds unless the name says otherwise."""

CLASSES = {
    "owngpt": "owngpt.bench.ours:OwnGPT",
    "transformers": "owngpt.bench.transformers_side:Transformers",
    "llama.cpp": "owngpt.bench.llama_cpp_side:LlamaCpp",
    "vllm": "owngpt.bench.vllm_side:VLLM",
}
"""Where each kind is implemented; imported only in its own process."""
PEERS = tuple(kind for kind in CLASSES if kind != "owngpt")
MODULES = {"transformers": "transformers", "llama.cpp": "xllamacpp", "vllm": "vllm"}
"""What has to be installed."""


@dataclass(frozen=True)
class SideSpec:
    """One side: which program, which file, which weights."""

    name: str
    """For tables; unique among the sides."""
    kind: str
    """A key of :data:`CLASSES`."""
    path: str
    """The file or folder that it opens."""
    weights: str
    """bf16, int8 or int4 for ours; a dtype or a GGUF type for others."""
    threads: int
    longest: int
    """Tokens of the longest text it will be given."""
    memory: int
    """Tokens its cache has to hold."""
    most_requests: int
    options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class Side(Protocol):
    """A program that runs a model. Greedy, end tokens ignored. None means that it has no such thing."""

    def __init__(self, spec: SideSpec) -> None: ...

    def info(self) -> dict[str, Any]:
        """version, settings in words, and weight_bytes: what decoding one token reads of the weights."""
        ...

    def tune(self, prompt: Prompt) -> dict[str, Any]:
        """Choose the settings that are fastest here."""
        ...

    def prefill(self, prompt: Prompt) -> Figures:
        """seconds until the first token of one prompt that it has not seen."""
        ...

    def write(self, prompts: Sequence[Prompt], new: int) -> Figures:
        """Write ``new`` tokens after each prompt, all at once: seconds of all, and rate, the tokens a second of all texts
        together while all of them were being written."""
        ...

    def prefix(self, cold: Prompt, seen: Prompt) -> Figures | None:
        """Two prompts that begin alike, one after the other: seconds until their first tokens, cold and seen."""
        ...

    def arrival(self, prompts: Sequence[Prompt], new: int, arriving: Prompt) -> Figures | None:
        """While texts are being written, a long prompt arrives: median gap between a text's tokens before, p99 and median gap
        until the newcomer's first token, and first_token, the seconds until that."""
        ...

    def process_id(self) -> int:
        """Of the process that computes."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


def installed(kind: str) -> bool:
    """Whether a peer can be run here."""
    return find_spec(MODULES[kind]) is not None


def gaps(before: Sequence[float], during: Sequence[float], first_token: float) -> Figures:
    """The figures of an arrival from the gaps of all texts, in seconds."""
    ordered, calm = sorted(during or before), sorted(before)
    return {
        "median": calm[len(calm) // 2],
        "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
        "median_during": ordered[len(ordered) // 2],
        "first_token": first_token,
    }


def split_gaps(times: Sequence[Sequence[float]], start: float, end: float) -> tuple[list[float], list[float]]:
    """Gaps between the tokens of each text, from their times: (before ``start``, between ``start`` and ``end``).

    A gap that only partly lies in between counts there: somebody waited through it.
    """
    before: list[float] = []
    during: list[float] = []
    for stream in times:
        for earlier, later in pairwise(stream):
            if later <= start:
                before.append(later - earlier)
            elif earlier < end:
                during.append(later - earlier)
    return before, during
