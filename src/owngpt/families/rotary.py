"""Rotary positions in a config.json: transformers 5 gathers them in `rope_parameters`, older files have `rope_theta` and
`rope_scaling`. Both are read, and both are written, for transformers and for tools that know only one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from owngpt.families.base import LONGEST_CONTEXT, ConfigReader
from owngpt.model.config import GPTConfig
from owngpt.model.rotary import KINDS, RotaryScaling

NUMBERS: Mapping[str, str] = {
    "low_freq_factor": "low_frequency_factor",
    "high_freq_factor": "high_frequency_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
}
"""Their name → ours."""
NAMES_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": (),
    "dynamic": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim"),
}
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",), "dynamic": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip
"""Fields without which there is no such scaling; a yarn without a factor has that of its two lengths."""


@dataclass(frozen=True)
class Rotary:
    """What a config.json says of its rotary positions."""

    base: float
    scaling: RotaryScaling | None
    fraction: float
    """Leading share of each head that is rotated."""
    context_length: int
    """Tokens the model is good for: the scaled length where `max_position_embeddings` is the original one."""


def read_rotary(reader: ConfigReader, context_length: int, *, base: float = 10000.0, fraction: float = 1.0) -> Rotary:
    """Read either spelling.

    :param context_length: the config's `max_position_embeddings`.
    :param base: what `rope_theta` is when it is absent.
    :param fraction: what `partial_rotary_factor` is when it is absent.
    :raises ModelFolderError: a scaling that is not implemented, or the two spellings contradict each other.
    """
    base = _base(reader, reader.number("rope_theta", base))
    fraction = reader.number("partial_rotary_factor", fraction)
    found = [
        read_rotary_block(reader, name, values, context_length, base=base, fraction=fraction)
        for name in ("rope_parameters", "rope_scaling")
        if (values := reader.take(name)) is not None
    ]
    if len(found) == 2 and found[0] != found[1]:
        raise reader.error("rope_scaling", reader.take("rope_scaling"), "what rope_parameters says, or absent")
    if found and reader.take("rope_theta") is not None and found[0].base != base:
        raise reader.error("rope_theta", base, f"the {found[0].base} that its rotary block says, or absent")
    return found[0] if found else Rotary(base, None, fraction, context_length)


def read_rotary_block(
    reader: ConfigReader, name: str, values: Any, context_length: int, *, base: float, fraction: float = 1.0
) -> Rotary:
    """One block of fields, as :func:`read_rotary` says.

    :param name: what the block is called in the file, for messages.
    """
    kind = values.get("rope_type", values.get("type", "default")) if isinstance(values, Mapping) else None
    if not isinstance(kind, str) or kind not in NAMES_OF_KIND:
        raise reader.error(name, values, f"an object whose rope_type is one of {', '.join(NAMES_OF_KIND)}")
    block = ConfigReader(values, f"{reader.model_type} {name}")
    block.ignore("rope_type", "type")
    base = _base(block, block.number("rope_theta", base))
    fraction = block.number("partial_rotary_factor", fraction)
    if kind == "default":
        block.finish()
        return Rotary(base, None, fraction, context_length)
    scaling = _scaling(block, kind, context_length)
    block.finish()
    return Rotary(base, scaling, fraction, _scaled_length(block, scaling, context_length))


def _base(reader: ConfigReader, value: float) -> float:
    if not value > 1.0:
        raise reader.error("rope_theta", value, "a number above 1")
    return value


def _scaling(block: ConfigReader, kind: str, context_length: int) -> RotaryScaling:
    for name in REQUIRED.get(kind, ()):
        if block.take(name) is None:
            raise block.error(name, None, "a number")
    # What a file does not name is the length of the config; dynamic scaling knows no other.
    original = block.context_length("original_max_position_embeddings", context_length)
    if kind == "dynamic" and original != context_length:
        raise block.error("original_max_position_embeddings", original, f"max_position_embeddings, {context_length}, or absent")
    numbers = {NUMBERS[name]: block.number(name, 0.0) for name in NAMES_OF_KIND[kind] if block.take(name) is not None}
    return RotaryScaling(
        kind=KINDS[KINDS.index(kind)],  # type: ignore[arg-type]
        factor=block.number("factor", max(context_length / original, 1.0)),
        original_context_length=None if kind == "linear" else original,
        truncate=block.flag("truncate", True) if kind == "yarn" else True,
        **numbers,
    )


def _scaled_length(block: ConfigReader, scaling: RotaryScaling, context_length: int) -> int:
    """Dynamic and many yarn configs keep the original length in `max_position_embeddings`."""
    if scaling.kind not in ("dynamic", "yarn") or scaling.original_context_length is None:
        return context_length
    length = max(context_length, int(scaling.factor * scaling.original_context_length))
    if length > LONGEST_CONTEXT:
        raise block.error("factor", scaling.factor, f"so small that the model has at most {LONGEST_CONTEXT} positions")
    return length


def rotary_fields(config: GPTConfig) -> dict[str, Any]:
    """`max_position_embeddings` and both spellings of base and scaling, for a config.json."""
    scaling = config.rotary_scaling
    fields: dict[str, Any] = {"max_position_embeddings": config.context_length, "rope_theta": config.rotary_base}
    if scaling is None:
        return {**fields, "rope_parameters": {"rope_type": "default", "rope_theta": config.rotary_base}}
    if scaling.kind == "dynamic":
        fields["max_position_embeddings"] = scaling.original_context_length
    block = scaling_fields(scaling)
    return {**fields, "rope_parameters": {**block, "rope_theta": config.rotary_base}, "rope_scaling": block}


def scaling_fields(scaling: RotaryScaling) -> dict[str, Any]:
    """A scaling in their spelling, without the base."""
    fields: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        fields["original_max_position_embeddings"] = scaling.original_context_length
    values = {name: getattr(scaling, NUMBERS[name]) for name in NAMES_OF_KIND[scaling.kind]}
    fields |= {name: value for name, value in values.items() if value is not None}
    return fields | ({"truncate": scaling.truncate} if scaling.kind == "yarn" else {})


def rotary_misfits(config: GPTConfig) -> list[str]:
    """What of a configuration's scaling :func:`rotary_fields` cannot say."""
    scaling = config.rotary_scaling
    if scaling is None or scaling.kind not in ("dynamic", "yarn") or scaling.original_context_length is None:
        return []
    length = int(scaling.factor * scaling.original_context_length)
    if config.context_length < length or (scaling.kind == "dynamic" and config.context_length != length):
        return [f"context_length is {config.context_length}, not the {length} of its rotary scaling"]
    return []
