"""Attention windows in a config.json, where `layer_types` alone says which layers have one."""

from __future__ import annotations

from typing import Any

from owngpt.families.base import ConfigReader, uniform_window
from owngpt.model.config import GPTConfig

SLIDING, FULL = "sliding_attention", "full_attention"


def read_layer_windows(reader: ConfigReader, layers: int, period: int, width: int) -> tuple[int, ...]:
    """Window of each layer, () when none has one.

    :param period: without `layer_types`, every ``period``-th layer sees everything and the others slide.
    :param width: what `sliding_window` is when it is absent.
    """
    kinds = reader.take("layer_types", [SLIDING if (layer + 1) % period else FULL for layer in range(layers)])
    if not isinstance(kinds, list) or len(kinds) != layers or not {SLIDING, FULL}.issuperset(map(str, kinds)):
        found = f"a list of {len(kinds)}" if isinstance(kinds, list) else kinds
        raise reader.error("layer_types", found, f"a list of {layers} names, each {FULL} or {SLIDING}")
    window = reader.integer("sliding_window", None if reader.has("sliding_window") and SLIDING in kinds else width)
    return tuple(window if kind == SLIDING else 0 for kind in kinds) if SLIDING in kinds else ()


def layer_window_fields(config: GPTConfig, width: int) -> dict[str, Any]:
    """The inverse of :func:`read_layer_windows`; ``width`` is written where no layer slides."""
    kinds = [SLIDING if config.window(layer) else FULL for layer in range(config.layers)]
    return {"sliding_window": uniform_window(config) or width, "layer_types": kinds}
