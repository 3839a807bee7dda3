"""LoRA adapters (arXiv 2106.09685) as PEFT stores them: a folder of adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owngpt.config.json_files import read_json_object
from owngpt.errors import ModelFolderError
from owngpt.families import FAMILIES, Family
from owngpt.families.base import Part, TensorMap
from owngpt.formats.tensor_files import MappedFile
from owngpt.formats.weights import FLOATING
from owngpt.model.config import GPTConfig

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
MAXIMUM_CONFIG_BYTES = 1 << 20
PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"
NAMED_IN_ERRORS = 5

DESCRIPTIVE = frozenset((
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision",
    "runtime_config", "target_modules", "task_type",
))  # fmt: skip
"""Fields that change nothing in what stored tensors mean: which modules have an update is seen from the tensors."""
KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin a training that leave the base model's own weights as they were. The others, such as PiSSA, change them."""
TARGETS = re.compile(r"\.(attention|mlp)\.(query_key_value|output|gate_up|up|down)\.weight$")


@dataclass(frozen=True)
class LowRankUpdate:
    """What is added to one of our weights W (out, in): up @ down; the adapter's scale is in ``up``."""

    down: Tensor
    """(R, in) float32"""
    up: Tensor
    """(out, R) float32"""
    magnitude: Tensor | None = None
    """DoRA (arXiv 2402.09353): the length that each row of W + up @ down is given, (out,); not-a-number: its own."""

    def merged(self, weight: Tensor) -> Tensor:
        """What a weight (out, in) is with this update, in float32 on its device."""
        whole = weight.float() + (self.up @ self.down).to(weight.device)
        if self.magnitude is not None:
            magnitude = self.magnitude.to(weight.device)
            factors = magnitude / torch.linalg.vector_norm(whole, dim=1)
            whole *= torch.where(magnitude.isnan(), 1.0, factors)[:, None]
        return whole


Adapter = Mapping[str, LowRankUpdate]
"""By the name of our linear layer, such as blocks.0.attention.query_key_value."""


@dataclass(frozen=True)
class _Settings:
    """What adapter_config.json says about the stored tensors."""

    path: Path
    rank: int
    alpha: float
    by_root: bool
    lengths: bool
    """DoRA: each matrix has its rows' lengths beside the update."""
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    def rank_of(self, module: str) -> int:
        """Of one module's update."""
        return next((rank for pattern, rank in self.ranks.items() if _names(pattern, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)."""
        alpha = next((alpha for pattern, alpha in self.alphas.items() if _names(pattern, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.by_root else rank)


def load_adapter(folder: str | Path, config: GPTConfig) -> dict[str, LowRankUpdate]:
    """Read an adapter for a model of this configuration.

    :raises ModelFolderError: a file is missing or damaged, the adapter is of another kind than LoRA, has a setting that is not
        implemented, or does not fit the model; it is named.
    """
    folder = Path(folder)
    settings = _read_settings(folder)
    file = MappedFile(_weights_file(folder))
    modules = _modules(folder, file, settings)
    family = _family_of(folder, modules, config)
    return _updates(folder, file, settings, _spelled(modules, family), family.tensors(config))


# The settings


def _read_settings(folder: Path) -> _Settings:
    values = read_config(folder)
    if values.get("peft_type") != "LORA":
        raise _error(folder, f"peft_type is {values.get('peft_type')!r}; only LORA adapters are implemented")
    seen = {
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "use_dora",
        "rank_pattern",
        "alpha_pattern",
        "init_lora_weights",
        "bias",
    }
    asked = [name for name, value in values.items() if name not in seen | DESCRIPTIVE and value not in (None, False, [], {})]
    if asked:
        listed = ", ".join(sorted(f"{name} ({_short(values[name])})" for name in asked))
        raise _error(folder, f"fields that are not implemented: {listed}")
    if values.get("bias", "none") != "none":
        raise _error(folder, f"bias is {_short(values['bias'])}; only adapters without trained biases (none) are implemented")
    begun = values.get("init_lora_weights", True)
    if begun not in KEEPS_BASE:
        raise _error(
            folder,
            f"init_lora_weights is {_short(begun)}, which changes the base model's weights; save the adapter with PEFT's "
            "path_initial_model_for_weight_conversion, which makes it one for the unchanged base model",
        )
    return _Settings(
        folder,
        _whole(folder, "r", values.get("r", 8)),
        _number(folder, "lora_alpha", values.get("lora_alpha", 8)),
        values.get("use_rslora") is True,
        values.get("use_dora") is True,
        {name: _whole(folder, "rank_pattern", rank) for name, rank in _patterns(folder, values, "rank_pattern")},
        {name: _number(folder, "alpha_pattern", alpha) for name, alpha in _patterns(folder, values, "alpha_pattern")},
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    :raises ModelFolderError: it is missing, too large or not a JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ModelFolderError(f"{folder} has no {CONFIG_FILE}, so it is not an adapter; name the folder that PEFT wrote")
    return read_json_object(path, MAXIMUM_CONFIG_BYTES)


def _patterns(folder: Path, values: Mapping[str, Any], field: str) -> Iterable[tuple[str, Any]]:
    found = values.get(field) or {}
    if not isinstance(found, dict):
        raise _error(folder, f"{field} is {_short(found)}; it must be an object of module names")
    for pattern in found:
        # PEFT takes any regular expression; a file from anywhere is not allowed to bring one that never ends.
        if not re.fullmatch(r"\^?[\w.]+", pattern):
            raise _error(folder, f"{field} has the pattern {_short(pattern)}; only names of modules are implemented")
    return list(found.items())


def _names(pattern: str, module: str) -> bool:
    """Whether a name of PEFT's patterns means this module: all of it, or its end behind a dot."""
    if pattern.startswith("^"):
        return module == pattern[1:]
    return module == pattern or module.endswith("." + pattern)


def _whole(folder: Path, field: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _error(folder, f"{field} is {_short(value)}; it must be a whole number of at least 1")
    return value


def _number(folder: Path, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
        raise _error(folder, f"{field} is {_short(value)}; it must be a number")
    return float(value)


# The tensors


def _weights_file(folder: Path) -> Path:
    path = folder / WEIGHTS_FILE
    pickled = folder / "adapter_model.bin"
    if not path.is_file() and pickled.is_file():
        raise ModelFolderError(
            f"{folder} has its weights in {pickled.name}, a pickle, which can run any program when it is opened and is not read; "
            f"save the adapter again with PEFT's save_pretrained(), which writes {WEIGHTS_FILE}"
        )
    return path


def _modules(folder: Path, file: MappedFile, settings: _Settings) -> list[str]:
    """The modules, by PEFT's names without their prefix, that have all tensors of an update."""
    found: dict[str, set[str]] = {}
    strange = []
    for name in file.entries:
        match = re.fullmatch(re.escape(PREFIX) + r"([\w.]+)\.(lora_[AB]\.weight|lora_magnitude_vector)", name)
        if match is None or (match[2] == MAGNITUDE and not settings.lengths):
            strange.append(name)
        else:
            found.setdefault(match[1], set()).add(match[2])
    if strange:
        raise _error(folder, f"tensors that are not LoRA matrices of linear layers: {_listed(strange)}")
    half = [module for module, tensors in found.items() if len(tensors - {MAGNITUDE}) < 2]
    if half or not found:
        raise _error(folder, f"only one matrix of {_listed(half)}" if half else "no tensors at all")
    short = [module for module, tensors in found.items() if settings.lengths and MAGNITUDE not in tensors]
    if short:
        raise _error(folder, f"use_dora is true, but there is no {MAGNITUDE} of {_listed(short)}")
    return list(found)


def _family_of(folder: Path, modules: list[str], config: GPTConfig) -> Family:
    """The layout whose names the adapter uses, among those that can say this model."""
    fitting = [family for family in FAMILIES if not family.misfits(config)]
    unknown = modules
    for family in fitting:
        stored = {part.name for entry in family.tensors(config) for part in entry.parts}
        missing = [module for name, module in _spelled(modules, family).items() if f"{name}.weight" not in stored]
        if not missing:
            return family
        unknown = min(unknown, missing, key=len)
    raise _error(folder, f"modules that this model does not have: {_listed(unknown)}; it was trained for another one")


def _spelled(modules: list[str], family: Family) -> dict[str, str]:
    """Full name of each module → as PEFT wrote it, which may lack the family's prefix."""
    return {name if name.startswith(family.prefix) else family.prefix + name: name for name in modules}


def _updates(
    folder: Path, file: MappedFile, settings: _Settings, modules: Mapping[str, str], maps: list[TensorMap]
) -> dict[str, LowRankUpdate]:
    updates: dict[str, LowRankUpdate] = {}
    wanted = set(modules)
    for entry in maps:
        here = {part.name.removesuffix(".weight") for part in entry.parts} & wanted
        if not here:
            continue
        if not TARGETS.search(entry.ours) or len(entry.shape) != 2:
            raise _error(folder, f"an update of {min(here)}; only those of attention and feed-forward layers are implemented")
        pieces = [_piece(folder, file, settings, modules, entry, part) for part in entry.parts]
        updates[entry.ours.removesuffix(".weight")] = _joined(pieces, entry)
    return updates


def _piece(
    folder: Path, file: MappedFile, settings: _Settings, modules: Mapping[str, str], entry: TensorMap, part: Part
) -> LowRankUpdate | None:
    """The update of one of their tensors, with its rows arranged as in ours."""
    module = part.name.removesuffix(".weight")
    if module not in modules:
        return None
    stored = modules[module]
    rank, (rows, inputs) = settings.rank_of(stored), entry.our_shape(part)
    down = _tensor(folder, file, f"{PREFIX}{stored}.lora_A.weight", (rank, inputs))
    up = _tensor(folder, file, f"{PREFIX}{stored}.lora_B.weight", (rows, rank)) * (settings.scale_of(stored) / part.scale)
    magnitude = _tensor(folder, file, f"{PREFIX}{stored}.{MAGNITUDE}", (rows,)) / abs(part.scale) if settings.lengths else None
    if part.order is None:
        return LowRankUpdate(down, up, magnitude)
    order = part.order(rows)
    return LowRankUpdate(down, up[order], None if magnitude is None else magnitude[order])


def _tensor(folder: Path, file: MappedFile, name: str, shape: tuple[int, ...]) -> Tensor:
    entry = file.entries[name]
    if tuple(entry["shape"]) != shape:
        found, wanted = "×".join(map(str, entry["shape"])), "×".join(map(str, shape))
        raise _error(folder, f"{name} is {found}, this model and rank need {wanted}; it was trained for another one")
    if entry["dtype"] not in FLOATING:
        raise _error(folder, f"{name} has elements of type {entry['dtype']}; they must be of floating point")
    tensor = file.read(name).float().clone()
    if not bool(tensor.isfinite().all()):
        raise _error(folder, f"{name} has values that are not finite; the adapter is damaged or its training diverged")
    return tensor


def _joined(pieces: list[LowRankUpdate | None], entry: TensorMap) -> LowRankUpdate:
    """Updates of parts that are one matrix here: their ``down`` below one another, their ``up`` along a diagonal."""
    present = [piece for piece in pieces if piece is not None]
    magnitude = torch.full((entry.shape[0],), torch.nan) if any(piece.magnitude is not None for piece in present) else None
    up = torch.zeros(entry.shape[0], sum(len(piece.down) for piece in present))
    row = column = 0
    for part, piece in zip(entry.parts, pieces, strict=True):
        if piece is not None:
            rank = len(piece.down)
            up[row : row + part.rows, column : column + rank] = piece.up
            if magnitude is not None and piece.magnitude is not None:
                magnitude[row : row + part.rows] = piece.magnitude
            column += rank
        row += part.rows
    return LowRankUpdate(torch.cat([piece.down for piece in present]), up, magnitude)


def _error(folder: Path, what: str) -> ModelFolderError:
    return ModelFolderError(f"the adapter {folder}: {what}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _listed(names: list[str]) -> str:
    more = len(names) - NAMED_IN_ERRORS
    return ", ".join(names[:NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")
