"""The model folder: config.json, weights, tokenizer and card in the Hugging Face layout, which transformers opens unchanged."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from owngpt.config.files import TEMPORARY_SUFFIX, make_folder, storage_errors, sync_file, sync_folder
from owngpt.config.json_files import read_json_object
from owngpt.errors import ModelFolderError, UsageError
from owngpt.families import Family, family_for, family_named
from owngpt.formats.adapted import Stack, stack_of
from owngpt.formats.merging import merge_adapter, merging
from owngpt.formats.tensor_files import INDEX_FILE, WEIGHTS_FILE, TensorFiles
from owngpt.formats.weights import Prepare, Take, export_state, load_state, stored_dtype
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.templates import TEMPLATE_FILE, TEMPLATE_FOLDER, read_templates
from owngpt.text.tokenizer import NoTokenizer, Tokenizer, holds_tokenizer

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
CARD_FILE = "README.md"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAXIMUM_CONFIG_BYTES = 1 << 20
CLASSIFIER = "ForSequenceClassification"
"""How transformers ends the names of models with a head over classes."""


def save_model(
    folder: str | Path,
    model: GPT,
    tokenizer: Tokenizer,
    *,
    card: str | None = None,
    generation: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    family: str | None = None,
) -> list[Path]:
    """Write a model folder. At any instant each file in it is the old one or the new one, whole.

    :param card: text of README.md; see :mod:`owngpt.formats.card`.
    :param generation: fields for generation_config.json beside the ids of the special tokens, such as temperature.
    :param dtype: float32, bfloat16 or float16.
    :param family: model_type of the layout to write where several hold this model; by default the first that does.
    :returns: the files written.
    :raises ModelFolderError: no layout says this model exactly, or the tokenizer has more ids than the model.
    :raises StorageError: the disk is full, read-only or not ours; what was there is untouched.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; choose {', '.join(DTYPES)}")
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ModelFolderError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {model.config.vocab_size} embeddings; "
            "save the model with the tokenizer that it was trained with"
        )
    layout = family_for(model.config, family)
    tensors = export_state(model.state_dict(), layout, model.config, DTYPES[dtype])
    ids = token_ids_of(tokenizer)
    texts = {
        GENERATION_FILE: as_json({**ids, **(generation or {})}),
        CONFIG_FILE: as_json({**layout.from_config(model.config), **ids, "dtype": dtype}),
        **({CARD_FILE: card} if card is not None else {}),
    }
    return write_folder(folder, tensors, texts, tokenizer)


def write_folder(folder: Path, tensors: dict[str, Tensor], texts: Mapping[str, str], tokenizer: Tokenizer) -> list[Path]:
    """Put a model's files into a folder, each whole or not at all, config.json last.

    :param tensors: by their names in the file.
    :param texts: other files, by name.
    :returns: the files written.
    :raises StorageError: the disk is full, read-only or not ours; what was there is untouched.
    """
    make_folder(folder)
    staging = folder / f".model-{os.getpid()}{TEMPORARY_SUFFIX}"
    with storage_errors(folder):
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            save_file(tensors, staging / WEIGHTS_FILE, metadata={"format": "pt"})
            tokenizer.save(staging)
            for name, text in texts.items():
                (staging / name).write_text(text, encoding="utf-8", newline="")
            return _publish(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _publish(staging: Path, folder: Path) -> list[Path]:
    """Move finished files to where they belong, config.json last: with it the folder is a model."""
    files = (file.relative_to(staging).as_posix() for file in staging.rglob("*") if file.is_file())
    names = sorted(files, key=lambda name: (name == CONFIG_FILE, name))
    mode = (staging / CONFIG_FILE).stat().st_mode  # as the person's umask has it; safetensors makes its file private
    for name in names:
        os.chmod(staging / name, mode)
        sync_file(staging / name)
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        os.replace(staging / name, folder / name)
    templates = {f"{TEMPLATE_FOLDER}/{file.name}" for file in (folder / TEMPLATE_FOLDER).glob("*.jinja")}
    for stale in {TEMPLATE_FILE, INDEX_FILE, *templates} - set(names):  # of an earlier model in this folder
        (folder / stale).unlink(missing_ok=True)
    sync_folder(folder)
    return [folder / name for name in names]


def load_model(path: str | Path, *, dtype: torch.dtype | None = torch.float32) -> tuple[GPT, Tokenizer]:
    """Open a model: a folder, ours or of a family that we know, a GGUF file, or an adapter's folder.

    :param dtype: of the parameters in memory, whatever the file holds; None leaves them as most of them are stored, and in
        the mapped file where that is possible.
    :returns: the model, on the CPU and in evaluation mode, and its tokenizer.
    :raises ModelFolderError: something is missing, left over, of another shape or not implemented; it is named.
    """
    return open_model(path, dtype=dtype)[:2]


@contextmanager
def _garbage_left_alone() -> Iterator[None]:
    """Loading makes no garbage, but so many objects that Python would look through all of torch's for some."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_garbage_left_alone()
def open_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    prepare: Prepare | None = None,
    needs_tokenizer: bool = True,
    adapter: str | Path | None = None,
) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """What :func:`load_model` gives, and the content of generation_config.json, {} where there is none.

    :param prepare: says what becomes of each tensor, see :data:`owngpt.formats.weights.Prepare`.
    :param needs_tokenizer: refuse a folder without one; else text is refused when somebody gives it.
    :param adapter: a LoRA adapter's folder; it is merged into the weights, and its tokenizer, if it has one, takes the place
        of the model's. A ``path`` that is an adapter itself is opened over the base that it names.
    """
    stack = stack_of(Path(path), None if adapter is None else Path(adapter))
    if stack.adapters:
        return _open_adapted(stack, dtype, prepare, needs_tokenizer)
    return _open_plain(stack.base, dtype, prepare, needs_tokenizer)


def _open_adapted(
    stack: Stack, dtype: torch.dtype | None, prepare: Prepare | None, needs_tokenizer: bool
) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """Weights are merged before ``prepare``'s taker has them, or else where they lie, so that none is held twice."""
    taken = False

    def prepare_merged(config: GPTConfig) -> Take | None:
        nonlocal taken
        take = prepare(config) if prepare is not None else None
        taken = take is not None
        return None if take is None else merging(take, stack.updates(config))

    own, template = _tokenizer_over(stack.adapters)
    model, tokenizer, generation = _open_plain(
        stack.base, dtype, prepare_merged, needs_tokenizer and own is None, own if template else None
    )
    if not taken:
        for update in stack.updates(model.config):
            merge_adapter(model, update)
    for folder in stack.adapters:
        generation = load_generation_settings(folder) or generation
    template = template or tokenizer.chat_template
    tokenizer = own or tokenizer
    if template != tokenizer.chat_template and not isinstance(tokenizer, NoTokenizer):
        tokenizer = tokenizer.with_chat_template(template)
    _check_vocabulary(stack.adapters[-1], tokenizer, model.config)
    return model, tokenizer, generation


def _tokenizer_over(adapters: Sequence[Path]) -> tuple[Tokenizer | None, str | None]:
    """The tokenizer and the chat template of the adapter folders, those of the last that has any; None where none has."""
    template = None
    for folder in reversed(adapters):
        if holds_tokenizer(folder):
            own = Tokenizer.load(folder)
            return own, template or own.chat_template
        template = template or read_templates(folder, None)[0]
    return None, template


def _open_plain(
    path: Path, dtype: torch.dtype | None, prepare: Prepare | None, needs_tokenizer: bool, tokenizer: Tokenizer | None = None
) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """:param tokenizer: to be taken instead of the model's."""
    if (file := gguf_file(path)) is not None:
        from owngpt.formats.gguf import load_gguf  # not at the top: it is built on this file, and folders do not need it

        return load_gguf(file, dtype=dtype, prepare=prepare, tokenizer=tokenizer)
    config = load_config(path)
    if tokenizer is None:
        known = needs_tokenizer or holds_tokenizer(path)
        tokenizer = Tokenizer.load(path) if known else NoTokenizer(path)
    _check_vocabulary(path, tokenizer, config)
    return load_weights(path, config, dtype=dtype, prepare=prepare), tokenizer, load_generation_settings(path)


def _check_vocabulary(path: Path, tokenizer: Tokenizer, config: GPTConfig) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ModelFolderError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} ids, its model only {config.vocab_size} embeddings; "
            "they do not belong together"
        )


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that a path means: itself, or the only one of a folder that has no config.json; else None.

    :raises ModelFolderError: there are several.
    """
    if path.is_file():
        return path
    if (path / CONFIG_FILE).exists() or not path.is_dir():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:5])
        raise ModelFolderError(f"{path} holds {len(found)} GGUF files; name the one that is meant: {names}")
    return found[0] if found else None


def load_generation_settings(folder: Path) -> dict[str, Any]:
    """The content of generation_config.json, or nothing when the folder has none.

    :raises ModelFolderError: it is too large or not a JSON object.
    """
    path = folder / GENERATION_FILE
    if not path.exists():
        return {}
    return read_json_object(path, MAXIMUM_CONFIG_BYTES)


def load_weights(
    folder: Path, config: GPTConfig, *, dtype: torch.dtype | None = torch.float32, prepare: Prepare | None = None
) -> GPT:
    """The model of a folder whose config has been read; without its tokenizer."""
    files = TensorFiles(folder)
    return assembled(
        config, load_state(files, load_family(folder), config, dtype or stored_dtype(files), prepare and prepare(config))
    )


def assembled(config: GPTConfig, state: Mapping[str, Tensor]) -> GPT:
    """A model in evaluation mode whose parameters are these very tensors; nothing is allocated or drawn for it."""
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def load_family(path: str | Path) -> Family:
    """The layout of a model folder or GGUF file, for an adapter that of its base.

    :raises ModelFolderError: config.json is missing or damaged, or names a layout that is not implemented.
    """
    path = stack_of(Path(path)).base
    if (file := gguf_file(path)) is not None:
        from owngpt.formats.gguf import load_gguf_config

        return load_gguf_config(file)[0]
    return family_named(read_config(path)["model_type"])


def load_config(path: str | Path) -> GPTConfig:
    """The configuration of a model folder or GGUF file, for an adapter that of its base.

    :raises ModelFolderError: config.json is missing, damaged, or asks for something that is not implemented.
    """
    path = stack_of(Path(path)).base
    if (file := gguf_file(path)) is not None:
        from owngpt.formats.gguf import load_gguf_config

        return load_gguf_config(file)[1]
    values = read_config(path)
    if is_classifier(values):
        raise ModelFolderError(
            f"{path} is a {architecture_of(values)}, which tells classes apart and writes no text; open it with "
            "owngpt.finetune.objectives.classifier.Classifier.load"
        )
    try:
        return family_named(values["model_type"]).to_config(values)
    except (ModelFolderError, UsageError) as error:
        raise ModelFolderError(f"{path}: {error}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json.

    :raises ModelFolderError: it is missing, damaged, or not that of a model.
    """
    file = folder / CONFIG_FILE
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is not a folder; name the folder that holds the model's {CONFIG_FILE}")
    if not file.is_file():
        raise ModelFolderError(
            f"{folder} has no {CONFIG_FILE}, so it is not a model folder; name the folder that a training wrote"
        )
    values = read_json_object(file, MAXIMUM_CONFIG_BYTES)
    if not isinstance(values.get("model_type"), str):
        raise ModelFolderError(f"{file} names no model_type; it is not the config of a model")
    return values


def architecture_of(values: Mapping[str, Any]) -> str:
    """The class of transformers that a config.json names."""
    names = values.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else f"model of type {values['model_type']}"


def is_classifier(values: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a model with a head over classes."""
    return architecture_of(values).endswith(CLASSIFIER)


def token_ids_of(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids for config.json and generation_config.json, those that the tokenizer has."""
    settings = {"bos_token_id": tokenizer.begin_of_text_id}
    if tokenizer.stop_ids:
        settings |= {"eos_token_id": tokenizer.end_of_text_id, "pad_token_id": tokenizer.padding_id}
    return {name: token_id for name, token_id in settings.items() if token_id is not None}


def as_json(values: Mapping[str, Any]) -> str:
    """As the files of a model folder are written."""
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"
