"""A configuration survives JSON, reads older records, and refuses what makes no sense with value, limit and way out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from owngpt.errors import UsageError
from owngpt.model.config import GPTConfig
from owngpt.model.rotary import RotaryScaling

NATIVE = GPTConfig(
    vocab_size=300, context_length=32, hidden_size=32, layers=2, heads=4, key_value_heads=2, head_size=16, intermediate_size=64
)


def test_every_field_survives_json() -> None:
    config = replace(
        NATIVE, rotary_scaling=RotaryScaling("yarn", 4.0, original_context_length=8, truncate=False), attention_windows=(3, 0),
        local_rotary_base=5.0, norm_placement="sandwich", norm_weight_offset=1.0, experts=4, experts_per_token=2,
    )  # fmt: skip
    assert GPTConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_record_from_before_these_fields_is_the_same_model() -> None:
    new = (
        "rotary_scaling", "local_rotary_base", "norm_weight_offset", "parallel_residual", "shared_norm", "experts",
        "experts_per_token", "attention_sinks", "embedding_scale", "output_head_bias",
    )  # fmt: skip
    old = {name: value for name, value in NATIVE.to_dict().items() if name not in new}
    assert len(old) == len(NATIVE.to_dict()) - len(new)
    assert GPTConfig.from_dict(old) == NATIVE


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(UsageError, match="unknown model fields: future"):
        GPTConfig.from_dict({**NATIVE.to_dict(), "future": 1})


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"heads": 3}, "heads 3 is not a multiple of key_value_heads 2"),
    ({"layers": 0}, "layers is 0; it must be at least 1"),
    ({"attention_windows": (1,)}, "names 1 layers, the model has 2"),
    ({"shared_norm": True}, "set parallel_residual too"),
    ({"parallel_residual": True, "norm_placement": "sandwich"}, "norm_placement is 'sandwich', use 'pre'"),
    ({"norm": "layernorm", "norm_weight_offset": 1.0}, "is for rmsnorm"),
    ({"experts": 4}, "experts_per_token is 0 of 4 experts; it must be 1 to experts"),
    ({"experts": 2, "experts_per_token": 3}, "experts_per_token is 3 of 2"),
    ({"experts": 2, "experts_per_token": 1, "activation": "gelu"}, "experts are gated layers, the activation is 'gelu'"),
    ({"rotary_base": 0.0}, "rotary_base is 0.0; it must be a number above 0"),
    ({"embedding_scale": float("nan")}, "embedding_scale is nan"),
    ({"positions": "learned", "local_rotary_base": 9.0}, "need rotary positions, not 'learned'"),
    ({"norm_epsilon": -1.0}, "norm_epsilon is -1.0; it must be at least 0"),
    ({"rotary_fraction": 0.2}, "the rotated part of a head, 3, must be even"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(NATIVE, **changes)
