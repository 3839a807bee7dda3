"""What the model thought of the answers before it was trained: computed once, kept on disk, so that no second copy of it is
needed beside the one that is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from owngpt.config.files import atomic_write_bytes, make_folder
from owngpt.finetune.objectives.learned_tokens import without_dropout
from owngpt.finetune.objectives.preference import answers
from owngpt.finetune.objectives.preference_batch import PreferenceBatch
from owngpt.model.gpt import GPT

Progress = Callable[[int, int], None]
"""Pairs done, pairs in all."""
NAME = "log_probabilities"


@torch.no_grad()
def reference_log_probabilities(
    model: GPT, batches: Iterable[PreferenceBatch], pairs: int, progress: Progress | None = None
) -> Tensor:
    """(pairs, 2) float32: log-probability of each chosen and rejected answer, summed over its tokens, in nats.

    :param batches: every pair once, in the store's order (:func:`~owngpt.finetune.objectives.preference_batches.held_out_pairs`).
    """
    result = torch.empty(pairs, 2)
    done = 0
    with without_dropout(model):
        for batch in batches:
            result[done : done + batch.pairs] = answers(model, batch).log_probabilities.cpu()
            done += batch.pairs
            if progress is not None:
                progress(done, pairs)
    assert done == pairs
    return result


def kept_reference(path: Path, identity: str, compute: Callable[[], Tensor]) -> Tensor:
    """What ``path`` holds for this identity; otherwise it is computed and written there, whole or not at all.

    :param identity: of the model and of the examples, such as two fingerprints.
    :raises StorageError: it cannot be written.
    """
    known = _read(path, identity)
    if known is not None:
        return known
    values = compute().contiguous()
    data = save({NAME: values}, metadata={"identity": identity, "sha256": _digest(values)})
    make_folder(path.parent)
    atomic_write_bytes(path, data)
    return values


def _read(path: Path, identity: str) -> Tensor | None:
    """None where the file is missing, damaged, or of another model or other examples: it can be computed again."""
    try:
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
            values: Tensor = file.get_tensor(NAME)
    except (OSError, SafetensorError):
        return None
    return values if described == {"identity": identity, "sha256": _digest(values)} else None


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()
