"""What an architecture of llama.cpp is: how its keys and tensors say what a Hugging Face config.json and its tensors say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from owngpt.formats.gguf.metadata import Metadata

Config = Mapping[str, Any]
"""The content of a config.json."""


def _first(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0]


def _alone(tensor: Tensor) -> list[Tensor]:
    return [tensor]


@dataclass(frozen=True)
class Pairing:
    """One tensor of the Hugging Face world and those of the GGUF file that hold the same values."""

    theirs: str
    """Name in a Hugging Face folder."""
    stored: tuple[str, ...]
    """Names in the GGUF file."""
    read: Callable[[Sequence[Tensor]], Tensor] = _first
    """From the stored tensors to theirs; also runs on tensors without values, to know the shape."""
    write: Callable[[Tensor], list[Tensor]] = _alone
    """The inverse."""
    moves_rows: bool = False
    """Whether ``read`` only moves the rows of a single tensor."""

    @property
    def by_rows(self) -> bool:
        """Whether ``read`` may be given anything that has the rows of its tensor."""
        return self.read is _first or self.moves_rows


class Architecture(Protocol):
    """One value of ``general.architecture``."""

    name: str
    model_types: tuple[str, ...]
    """What config.json calls the models that it can hold."""
    always_has_head: bool
    """Whether llama.cpp wants a head even where it is the embedding again."""

    def config(self, metadata: Metadata) -> dict[str, Any]:
        """The config.json of a file.

        :raises ModelFolderError: a key is missing, wrong or asks for something that is not implemented.
        """
        ...

    def keys(self, config: Config) -> dict[str, Any]:
        """The keys of a config.json, without the architecture's name in front."""
        ...

    def constants(self, config: Config) -> dict[str, Tensor]:
        """Tensors of the file that follow from the config.json, by the file's names."""
        ...

    def pairings(self, config: Config) -> list[Pairing]:
        """Every tensor that such a model can have; those that neither side has are left out."""
        ...

    def misfits(self, config: Config) -> list[str]:
        """What of a config.json the architecture cannot say, or llama.cpp would compute otherwise; empty when all is well."""
        ...


def same(theirs: str, stored: str, *kinds: str) -> list[Pairing]:
    """Tensors that both sides store alike: the weight, or those kinds ("weight", "bias")."""
    return [Pairing(f"{theirs}.{kind}", (f"{stored}.{kind}",)) for kind in kinds or ("weight",)]


def transposed(theirs: str, stored: str) -> Pairing:
    """A weight that is (in, out) there and (out, in) in the file."""
    return Pairing(theirs, (stored,), lambda tensors: tensors[0].t(), lambda tensor: [tensor.t()])


def shifted(theirs: str, stored: str, offset: float) -> Pairing:
    """A weight that the file stores with the offset already added."""
    return Pairing(theirs, (stored,), lambda tensors: tensors[0].float() - offset, lambda tensor: [tensor.float() + offset])


def regrouped(theirs: str, stored: str, groups: int, first: int, second: int) -> Pairing:
    """Rows that there are laid out as (groups, first, second, rest) and in the file as (groups, second, first, rest)."""

    def swapped(tensor: Tensor, one: int, other: int) -> Tensor:
        if tensor.shape[0] % (groups * one * other):  # of a wrong shape, which whoever compares shapes will say
            return tensor
        return tensor.reshape(groups, one, other, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)

    return Pairing(
        theirs,
        (stored,),
        lambda tensors: swapped(tensors[0], second, first),
        lambda tensor: [swapped(tensor, first, second)],
        True,
    )


def exact_context(config: Config) -> int:
    """The longest context within which attention windows change nothing, for what llama.cpp runs without windows."""
    longest, window = int(config["max_position_embeddings"]), config.get("sliding_window")
    kinds = config.get("layer_types")
    windowed = config.get("use_sliding_window", True) if kinds is None else "sliding_attention" in kinds
    return min(longest, int(window)) if windowed and window else longest
