"""A model that is an adapter and the model it was trained over: which base belongs to an adapter folder, and whether it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from owngpt.errors import ModelFolderError
from owngpt.formats import peft
from owngpt.formats.tensor_files import INDEX_FILE, WEIGHTS_FILE, TensorFiles
from owngpt.formats.weights import FLOATING
from owngpt.model.config import GPTConfig

MOST_ADAPTERS = 8
"""One over another; more is a circle."""
COMPARED_TENSORS, COMPARED_VALUES = 4, 4096
SAME_SHARE = 0.9
"""Of the compared values that are equal in bfloat16 where two folders hold the same weights in whatever types."""


@dataclass(frozen=True)
class Stack:
    """A model and the adapters over it."""

    base: Path
    """A model folder or GGUF file."""
    adapters: tuple[Path, ...] = ()
    """Folders, in the order in which they are put on."""

    def updates(self, config: GPTConfig) -> list[peft.Adapter]:
        """What the adapters add to a model of the base's configuration.

        :raises ModelFolderError: one is damaged, or does not fit the base; both are named.
        """
        return [self._update(folder, config) for folder in self.adapters]

    def _update(self, folder: Path, config: GPTConfig) -> peft.Adapter:
        try:
            return peft.load_adapter(folder, config)
        except ModelFolderError as error:
            raise ModelFolderError(f"{error} (opened over {self.base}; {_trained_over(folder)})") from error


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (path / peft.CONFIG_FILE).is_file() and not any((path / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE))


def stack_of(path: Path, adapter: Path | None = None) -> Stack:
    """What a path means.

    :param path: a model folder, a GGUF file, or an adapter folder, whose base is where its config says.
    :param adapter: an adapter folder to put over it.
    :raises ModelFolderError: a base is not here, is not a model, or is another one than the adapter was trained over.
    """
    adapters: list[Path] = []
    base = path
    while is_adapter(base):
        adapters.insert(0, base)
        if len(adapters) > MOST_ADAPTERS:
            raise ModelFolderError(f"{path} is an adapter over more than {MOST_ADAPTERS - 1} others; merge some of them first")
        base = base_of(base)
    if adapter is not None:
        if not is_adapter(adapter):
            missing = "holds a model of its own" if (adapter / peft.CONFIG_FILE).is_file() else f"has no {peft.CONFIG_FILE}"
            raise ModelFolderError(f"{adapter} {missing}, so it is not an adapter; name the folder that a fine-tuning wrote")
        _check_same_base(adapter, path)
        adapters.append(adapter)
    return Stack(base, tuple(adapters))


def base_of(adapter: Path) -> Path:
    """Where the model is that an adapter was trained over; nothing is downloaded.

    Its config names a path, in itself or from the adapter's folder, or a model that was pulled.

    :raises ModelFolderError: it names none, or that is not here.
    """
    name = base_name(adapter)
    if name is None:
        raise ModelFolderError(
            f"{adapter / peft.CONFIG_FILE} names no base_model_name_or_path; name the base as the model and this folder "
            f"with --adapter {adapter}"
        )
    found = _located(adapter, name)
    if isinstance(found, ModelFolderError):
        raise ModelFolderError(
            f"the adapter {adapter} was trained over {name!r}, which is not here: {found}; "
            f"or name the base as the model and this folder with --adapter {adapter}"
        ) from found
    return found


def base_name(adapter: Path) -> str | None:
    """What an adapter's config calls its base, or None."""
    name = peft.read_config(adapter).get("base_model_name_or_path")
    return name if isinstance(name, str) and name.strip() and "\0" not in name else None


def _located(adapter: Path, name: str) -> Path | ModelFolderError:
    from owngpt.formats.locate import locate  # not at the top: it knows all hubs, and most models are plain folders

    try:
        beside = adapter / name  # an absolute name stays itself
        if beside.exists() and beside.resolve() != adapter.resolve():
            return beside
        return locate(name)
    except ModelFolderError as error:
        return error
    except OSError as error:  # what no folder can be called
        return ModelFolderError(f"{error.strerror}")


def _trained_over(adapter: Path) -> str:
    name = base_name(adapter)
    return f"it says it was trained over {name!r}" if name else "it does not say what it was trained over"


def _check_same_base(adapter: Path, given: Path) -> None:
    """Refuse a base that is known to be another than the adapter's own; its copies in other types or formats are not."""
    name = base_name(adapter)
    own = None if name is None else _located(adapter, name)
    if not isinstance(own, Path) or own.resolve() == given.resolve() or not _differ(own, given):
        return
    raise ModelFolderError(
        f"the adapter {adapter} was trained over {name!r} ({own}), whose weights are not those of {given}; open it over its own "
        f"base, or, where another is meant, name that as base_model_name_or_path in {adapter / peft.CONFIG_FILE}"
    )


def _differ(one: Path, other: Path) -> bool:
    """Whether two model folders, as far as can be seen from some values, hold other weights."""
    try:
        first, second = TensorFiles(one), TensorFiles(other)
    except ModelFolderError:  # a GGUF file, an adapter, something else: not to be told from here
        return False
    shared = [
        name for name, shape in first.shapes.items()
        if second.shapes.get(name) == shape and {first.dtypes[name], second.dtypes[name]} <= set(FLOATING)
    ]  # fmt: skip
    same = total = 0
    for name in shared[:: max(1, len(shared) // COMPARED_TENSORS)]:
        ours, theirs = (files.read(name).flatten()[:COMPARED_VALUES].to(torch.bfloat16) for files in (first, second))
        same, total = same + int((ours == theirs).sum()), total + len(ours)
    return same < SAME_SHARE * total
