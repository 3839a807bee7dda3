"""Rotary positions in GGUF keys: base, size, and the scalings that llama.cpp knows. Llama 3's is a tensor of divisors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owngpt.errors import ModelFolderError
from owngpt.formats.gguf.layout import Config
from owngpt.formats.gguf.metadata import Metadata
from owngpt.model.rotary import RotaryScaling, rotary_frequencies

DIVISORS = "rope_freqs.weight"
ORIGINAL_LENGTH = 8192
"""Llama 3's; only its ratios to the two limits matter, so that it may stand for any other."""
USUAL_LIMITS = (1.0, 4.0)
"""Llama 3's low and high frequency factors."""


def read_rotary(metadata: Metadata, context_length: int, size: int) -> dict[str, Any]:
    """Base and scaling as fields of a config.json.

    :param size: rotated elements of a head.
    :raises ModelFolderError: a scaling that is not implemented.
    """
    base = metadata.number("rope.freq_base", 10000.0)
    kind, factor = metadata.text("rope.scaling.type", "none"), metadata.number("rope.scaling.factor", 1.0)
    original = metadata.integer("rope.scaling.original_context_length", context_length)
    fields: dict[str, Any] = {"rope_theta": base}
    if DIVISORS in metadata.tensors:
        return fields | {"rope_scaling": _llama3(metadata, base, size)}
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return fields
    if kind == "linear":
        return fields | {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind == "yarn":
        return fields | {"rope_scaling": _yarn(metadata, factor, original)}
    raise metadata.error("rope.scaling.type", kind, "none, linear or yarn")


def _yarn(metadata: Metadata, factor: float, original: int) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    found["beta_fast"] = metadata.number("rope.scaling.yarn_beta_fast", 32.0)
    found["beta_slow"] = metadata.number("rope.scaling.yarn_beta_slow", 1.0)
    warmth = metadata.number("rope.scaling.attn_factor", 1.0)
    if warmth != 1.0:
        found["attention_factor"] = warmth * _usual_magnitude(factor)
    return found


def _usual_magnitude(factor: float) -> float:
    return 0.1 * math.log(factor) + 1.0


def rotary_keys(config: Config) -> dict[str, Any]:
    """The keys of a config.json's base and scaling."""
    block = rotary_block(config)
    keys: dict[str, Any] = {"rope.freq_base": float(block["rope_theta"])}
    if block["rope_type"] in ("linear", "yarn"):
        keys |= {"rope.scaling.type": block["rope_type"], "rope.scaling.factor": float(block["factor"])}
    scaling = _scaling(block) if block["rope_type"] in ("yarn", "llama3") else None
    if scaling is not None:
        keys["rope.scaling.original_context_length"] = scaling.original_context_length
    if scaling is not None and scaling.kind == "yarn":
        keys["rope.scaling.yarn_beta_fast"] = scaling.beta_fast
        keys["rope.scaling.yarn_beta_slow"] = scaling.beta_slow
        if not math.isclose(scaling.magnitude, _usual_magnitude(scaling.factor), rel_tol=1e-6):
            keys["rope.scaling.attn_factor"] = scaling.magnitude / _usual_magnitude(scaling.factor)
    return keys


def rotary_misfits(config: Config) -> list[str]:
    """A scaling that llama.cpp does not compute."""
    kind = rotary_block(config)["rope_type"]
    return [] if kind in ("default", "linear", "yarn", "llama3") else [f"llama.cpp has no rotary scaling {kind!r}"]


def rotary_block(config: Config) -> dict[str, Any]:
    """A config.json's base and scaling in the new spelling."""
    found: Any = config.get("rope_parameters") or config.get("rope_scaling") or {}
    found = found.get("full_attention", found)  # Gemma 3 says it for each kind of layer; windowed ones are never scaled
    return {"rope_type": found.get("type", "default"), "rope_theta": config.get("rope_theta", 10000.0), **found}


def _scaling(block: dict[str, Any]) -> RotaryScaling:
    """The scaling of a config.json that one of our families wrote."""
    named = {
        "low_freq_factor": "low_frequency_factor", "high_freq_factor": "high_frequency_factor", "factor": "factor",
        "original_max_position_embeddings": "original_context_length", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
        "attention_factor": "attention_factor", "mscale": "mscale", "mscale_all_dim": "mscale_all_dim", "truncate": "truncate",
    }  # fmt: skip
    return RotaryScaling(kind=block["rope_type"], **{ours: block[name] for name, ours in named.items() if name in block})


def divisors(config: Config, size: int) -> dict[str, Tensor]:
    """Llama 3's scaling as llama.cpp wants it: what to divide each frequency by, (size/2,) float32; else nothing."""
    block = rotary_block(config)
    if block["rope_type"] != "llama3":
        return {}
    base = float(block["rope_theta"])
    return {DIVISORS: rotary_frequencies(size, base) / rotary_frequencies(size, base, _scaling(block))}


def _llama3(metadata: Metadata, base: float, size: int) -> dict[str, Any]:
    """The scaling that these divisors come from: between the two limits, 1/divisor is linear in the frequency."""
    stored = metadata.vector(DIVISORS, size // 2)
    original = metadata.integer("rope.scaling.original_context_length", ORIGINAL_LENGTH)
    factor = float(stored.max())
    turns = original * rotary_frequencies(size, base).numpy().astype(np.float64) / (2 * math.pi)
    between = (stored > 1.0 + 1e-6) & (stored < factor * (1.0 - 1e-6))
    limits = [USUAL_LIMITS]
    if between.sum() > 1:
        share = (1.0 / stored[between] - 1.0 / factor) / (1.0 - 1.0 / factor)
        slope, start = np.polyfit(turns[between], share, 1)
        limits.append((round(-start / slope, 4), round((1.0 - start) / slope, 4)))
    for low, high in limits:
        found = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
        found["original_max_position_embeddings"] = original
        if factor >= 1.0 and 0 < low < high and _explains(found, base, size, stored):
            return found
    raise ModelFolderError(f"{metadata.path}: {DIVISORS} is not Llama 3's scaling of the frequencies; no other is implemented")


def _explains(block: dict[str, Any], base: float, size: int, stored: np.ndarray[Any, Any]) -> bool:
    again = divisors({"rope_parameters": {**block, "rope_theta": base}}, size)[DIVISORS]
    return torch.allclose(again, torch.from_numpy(stored).float(), rtol=1e-4)
