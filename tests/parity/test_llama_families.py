"""LLaMA and its descendants: random models of transformers compute the same here, and come back bit by bit.

The texts are longer than windows and than the length that a scaling stretches. Every parameter is random, biases and norms
too, since those that start at 0 or 1 would hide that they are not used.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.pairs import build, continued, left_padded, stored, theirs_alone, theirs_continued
from torch import Tensor

from owngpt.formats.folder import load_config, load_model, save_model
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-4
LENGTH, NEW, ORIGINAL = 40, 10, 16
PADDING = torch.tensor([7, 0, 11])

SMALL = {"hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2, "max_position_embeddings": 64}
ODD = SMALL | {"num_attention_heads": 3, "num_key_value_heads": 1}
GROUPED = SMALL | {"num_attention_heads": 6, "num_key_value_heads": 2}
ALONE = SMALL | {"num_attention_heads": 4, "num_key_value_heads": 4}
WINDOWS = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": ORIGINAL}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": ORIGINAL}
RAMP = {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", ODD),
    "llama biases": ("Llama", GROUPED | {"attention_bias": True, "mlp_bias": True, "head_dim": 10}),
    "llama smollm2": (
        "Llama",
        SMALL
        | {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
        | {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    ),
    "llama linear": ("Llama", ALONE | {"rope_parameters": LINEAR}),
    "llama dynamic": ("Llama", GROUPED | {"rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL}),
    "llama llama3": ("Llama", GROUPED | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama yarn": ("Llama", ODD | {"rope_parameters": YARN | RAMP | {"attention_factor": 1.3}}),
    "mistral": ("Mistral", ODD | {"hidden_size": 40, "head_dim": 12, "sliding_window": 6}),
    "mistral unlimited": ("Mistral", GROUPED | {"sliding_window": None, "tie_word_embeddings": True}),
    "mistral yarn": (
        "Mistral",
        GROUPED | {"sliding_window": 20, "rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.1}},
    ),
    "qwen2": ("Qwen2", ODD),
    "qwen2 windows": ("Qwen2", GROUPED | WINDOWS | {"tie_word_embeddings": True}),
    "qwen2 yarn": ("Qwen2", ALONE | {"rope_parameters": YARN, "max_position_embeddings": ORIGINAL}),
    "qwen3": ("Qwen3", ODD | {"head_dim": 12}),
    "qwen3 windows": ("Qwen3", GROUPED | WINDOWS | {"head_dim": 10, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3 dynamic": ("Qwen3", ALONE | {"head_dim": 8, "rope_parameters": DYNAMIC, "max_position_embeddings": ORIGINAL}),
    "qwen3 yarn": ("Qwen3", GROUPED | {"head_dim": 16, "rope_parameters": YARN | RAMP}),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["The quick brown fox jumps over the lazy dog. " * 30], vocab_size=280)


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(case, theirs, ours, the folder that theirs was saved in)"""
    theirs = build(*CASES[request.param])
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    tokenizer.save(folder)
    return request.param, theirs, load_model(folder)[0], folder


def token_ids() -> Tensor:
    return torch.randint(1, 300, (3, LENGTH), generator=torch.Generator().manual_seed(3))


def fresh(theirs: Any) -> Any:
    """Dynamic scaling in transformers remembers the longest text; a short one makes it forget."""
    with torch.no_grad():
        theirs(torch.ones(1, 1, dtype=torch.int64))
    return theirs


def test_logits_are_theirs(pair: Any) -> None:
    _, theirs, ours, _ = pair
    with torch.no_grad():
        expected, actual = fresh(theirs)(token_ids()).logits, ours.logits(token_ids())
    assert (expected - actual).abs().max().item() <= TOLERANCE


def test_left_padding_is_seen_by_no_token(pair: Any) -> None:
    _, theirs, ours, _ = pair
    ids, mask = left_padded(token_ids(), PADDING)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = fresh(theirs)(ids, attention_mask=mask, position_ids=positions).logits
        actual = ours.logits(ids, attention_mask=mask)
    assert (expected - actual).abs()[mask.bool()].max().item() <= TOLERANCE


@pytest.mark.parametrize("with_padding", [False, True], ids=["whole", "left padding"])
def test_the_greedy_continuation_with_the_cache_is_theirs(pair: Any, with_padding: bool) -> None:
    case, theirs, ours, _ = pair
    ids, mask = left_padded(token_ids(), PADDING) if with_padding else (token_ids(), None)
    if mask is not None and "dynamic" in case:  # transformers turns the heads of a row by the length of the longest one
        expected = torch.cat([theirs_alone(fresh(theirs), ids[i : i + 1], mask[i : i + 1], NEW) for i in range(len(ids))])
    else:
        expected = theirs_continued(fresh(theirs), ids, mask, NEW)
    assert torch.equal(continued(ours, ids, mask, NEW), expected)


def test_every_tensor_comes_back_bit_by_bit_in_the_same_layout(pair: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    case, theirs, ours, folder = pair
    family = case.split()[0]
    save_model(tmp_path, ours, tokenizer, family=family)
    before, after = stored(folder), stored(tmp_path)
    assert set(before) == set(after)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    back, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert back.config.model_type == family
    with torch.no_grad():
        assert torch.equal(back.eval()(token_ids()).logits, fresh(theirs)(token_ids()).logits)
    assert load_config(tmp_path) == ours.config


@pytest.mark.parametrize("type_name", ["type", "rope_type"])
def test_old_spellings_of_the_rotary_fields_say_the_same(pair: Any, type_name: str, tmp_path: Path) -> None:
    """`rope_theta` and `rope_scaling`, as transformers 4 wrote them."""
    _, _, ours, folder = pair
    values = json.loads((folder / "config.json").read_text())
    block = dict(values.pop("rope_parameters"))
    base, kind = block.pop("rope_theta"), block.pop("rope_type")
    scaling = None if kind == "default" else {type_name: kind, **block}
    old = {**values, "rope_theta": base, "rope_scaling": scaling, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert load_config(tmp_path) == ours.config
