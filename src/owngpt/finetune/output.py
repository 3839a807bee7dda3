"""What a run leaves: a PEFT adapter folder, or a model folder; with it the tokenizer and the chat template that it was taught."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owngpt.config.files import atomic_write_text
from owngpt.finetune.objectives.classifier import Classifier
from owngpt.finetune.trainee import Trainee
from owngpt.formats.base import BaseModel
from owngpt.formats.folder import CARD_FILE, GENERATION_FILE, as_json, save_model
from owngpt.text.tokenizer import Tokenizer


def save(
    folder: Path, trainee: Trainee, base: BaseModel, tokenizer: Tokenizer, *, named: str, dtype: str, labels: Sequence[str] = ()
) -> None:
    """Write what was trained. A classifier is a whole model even where an adapter was trained: only such a folder can say what
    its classes are called.

    :param named: the base as the adapter's reader is to find it: a path or a name.
    :param dtype: what matrices were computed in, and so what is kept: more digits never had an effect.
    :raises StorageError: the disk is full, read-only or not ours.
    """
    if labels:
        network = trainee.serving()
        network.config = base.config
        Classifier(network, tokenizer, labels).save(folder, dtype=dtype, family=base.layout)
        return
    if trainee.lora is not None:
        trainee.lora.save(folder, base=named)
        tokenizer.save(folder)
        return
    network, computed = trainee.network, trainee.network.config
    network.config = base.config
    try:
        save_model(folder, network, tokenizer, generation=_generation(base, tokenizer), dtype=dtype, family=base.layout)
    finally:
        network.config = computed


def save_card(folder: Path, text: str) -> None:
    """Write the README, last of all: it tells of the report."""
    atomic_write_text(folder / CARD_FILE, text)


def recommend(folder: Path, base: BaseModel, tokenizer: Tokenizer, penalty: float) -> None:
    """Leave word of the penalty on repetition with which the model writes best, in generation_config.json, beside the base's own
    settings."""
    atomic_write_text(folder / GENERATION_FILE, as_json({**_generation(base, tokenizer), "repetition_penalty": penalty}))


def _generation(base: BaseModel, tokenizer: Tokenizer) -> dict[str, Any]:
    """generation_config.json of the base; whatever ends a turn in the template it now has, ends a text."""
    settings = base.generation()
    named = settings.get("eos_token_id")
    ids = set(named) if isinstance(named, list) else {named} if isinstance(named, int) else set()
    settings["eos_token_id"] = sorted(ids | tokenizer.stop_ids)
    return settings
