"""Whatever a config.json says, a family reads it or refuses it by name; nothing else happens, and at once."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from owngpt.errors import OwnGPTError
from owngpt.families import FAMILIES, family_named

transformers = pytest.importorskip("transformers")

HOSTILE: tuple[Any, ...] = (
    0, -1, 10**30, -(10**30), 0.5, 1e308, math.inf, math.nan, True, False, "", "x", "9" * 1000, [], [None], [[1]], ["x"] * 5,
    {}, {"rope_type": []}, {"rope_type": "yarn", "factor": 1e300}, {"type": "linear", "factor": 10**400},
    {"rope_type": "dynamic", "factor": 1e12}, {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 10**400},
    {"full_attention": 3, "sliding_attention": []},
)  # fmt: skip


def published(model_type: str) -> dict[str, Any]:
    """The config.json of the family's default model."""
    values: dict[str, Any] = transformers.AutoConfig.for_model(model_type).to_dict()
    return values


@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
def test_the_default_config_is_read(model_type: str) -> None:
    config = family_named(model_type).to_config(published(model_type))
    assert config.layers >= 12


@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
def test_hostile_values_are_read_or_refused(model_type: str) -> None:
    family, values = family_named(model_type), published(model_type)
    began = time.process_time()
    for name in [*values, "rope_scaling", "rope_theta", "sliding_window", "head_dim"]:
        for hostile in HOSTILE:
            try:
                family.to_config({**values, name: hostile})
            except OwnGPTError:
                continue
            except Exception as error:
                pytest.fail(f"{name} = {str(hostile)[:60]!r}: {type(error).__name__}: {error}")
    assert time.process_time() - began < 20


@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
def test_a_field_that_nobody_knows_is_named(model_type: str) -> None:
    with pytest.raises(OwnGPTError, match="not implemented: attention_trick, zzz"):
        family_named(model_type).to_config({**published(model_type), "zzz": 1, "attention_trick": "on"})
