"""From GPT-1 to gpt-oss: random models of transformers compute the same here, write the same, and come back bit by bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parity.pairs import build, continued, left_padded, stored, theirs_alone, theirs_continued
from torch import Tensor

from owngpt.families import family_for
from owngpt.formats.folder import load_config, load_model, save_model
from owngpt.formats.mxfp4 import decode
from owngpt.model.attention import PaddedContext
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

transformers = pytest.importorskip("transformers")

TOLERANCE = 2e-4
LENGTH, NEW = 24, 10
PADDING = torch.tensor([7, 0, 11])

GPT1 = {"n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 64}
NEO = {"hidden_size": 48, "num_layers": 3, "num_heads": 3, "max_position_embeddings": 64, "window_size": 6}
NEO |= {"attention_types": [[["global", "local"], 1], [["local"], 1]]}
J = {"n_embd": 48, "n_layer": 2, "n_head": 3, "rotary_dim": 8, "n_positions": 64}
NEOX = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80}
NEOX |= {"max_position_embeddings": 64}
GEMMA = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10}
GEMMA |= {"intermediate_size": 72, "max_position_embeddings": 64, "sliding_window": 6, "query_pre_attn_scalar": 10}
GEMMA |= {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 6}
OSS = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8}
OSS |= {"intermediate_size": 24, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 6}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0, "beta_slow": 1.0}
LINEAR = {"rope_type": "linear", "factor": 8.0}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai-gpt": ("OpenAIGPT", GPT1),
    "openai-gpt relu, untied": ("OpenAIGPT", {**GPT1, "n_head": 4, "afn": "relu", "tie_word_embeddings": False}),
    "gpt2": ("GPT2", {"n_embd": 45, "n_layer": 2, "n_head": 5, "n_positions": 64}),
    "gpt2 narrow, unscaled, untied": (
        "GPT2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 50, "tie_word_embeddings": False}
        | {"scale_attn_weights": False, "activation_function": "silu"},
    ),
    "gpt_neo": ("GPTNeo", NEO),
    "gpt_neo untied": ("GPTNeo", {**NEO, "num_heads": 4, "intermediate_size": 50, "tie_word_embeddings": False}),
    "gptj": ("GPTJ", J),
    "gptj tied, whole heads rotated": ("GPTJ", {**J, "rotary_dim": 16, "tie_word_embeddings": True, "n_inner": 70}),
    "gptj small part rotated": ("GPTJ", {**J, "n_head": 1, "rotary_dim": 2, "activation_function": "gelu"}),
    "gpt_neox": ("GPTNeoX", NEOX),
    "gpt_neox sequential, no biases": ("GPTNeoX", {**NEOX, "use_parallel_residual": False, "attention_bias": False}),
    "gpt_neox tied, scaled": (
        "GPTNeoX",
        {**NEOX, "tie_word_embeddings": True, "hidden_act": "gelu_new", "num_attention_heads": 4}
        | {"rope_parameters": {**LINEAR, "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    ),
    "gemma3_text": ("Gemma3Text", GEMMA),
    "gemma3_text biases, scaled": (
        "Gemma3Text",
        {**GEMMA, "attention_bias": True, "tie_word_embeddings": False, "query_pre_attn_scalar": 30}
        | {"rope_parameters": {"full_attention": {**LINEAR, "rope_theta": 1e4}, "sliding_attention": {"rope_type": "default"}}},
    ),
    "gemma3_text multi-query": (
        "Gemma3Text",
        {**GEMMA, "num_attention_heads": 3, "num_key_value_heads": 1, "layer_types": None, "num_hidden_layers": 7},
    ),
    "gpt_oss": ("GptOss", OSS),
    "gpt_oss one expert, tied": (
        "GptOss",
        {**OSS, "num_experts_per_tok": 1, "tie_word_embeddings": True, "attention_bias": False, "num_key_value_heads": 6}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "max_position_embeddings": 64},
    ),
    "gpt_oss all experts, stretched": (
        "GptOss",
        {**OSS, "num_local_experts": 3, "num_experts_per_tok": 3, "max_position_embeddings": 64, "num_attention_heads": 3}
        | {"rope_parameters": {**YARN, "rope_theta": 1e4}, "layer_types": ["full_attention", "sliding_attention"]},
    ),
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
    ours, _ = load_model(folder)
    return request.param, theirs, ours, folder


def token_ids() -> Tensor:
    return torch.randint(1, 300, (3, LENGTH), generator=torch.Generator().manual_seed(3))


def test_logits_are_theirs(pair: Any) -> None:
    case, theirs, ours, _ = pair
    with torch.no_grad():
        expected, actual = theirs(token_ids()).logits, ours.logits(token_ids())
    assert (expected - actual).abs().max().item() <= TOLERANCE
    assert family_for(ours.config).model_type == case.split()[0]


def test_left_padding_is_seen_by_no_token(pair: Any) -> None:
    _, theirs, ours, _ = pair
    ids, mask = left_padded(token_ids(), PADDING)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, position_ids=positions).logits
        actual = ours.logits(ids, attention_mask=mask)
    assert (expected - actual).abs()[mask.bool()].max().item() <= TOLERANCE


@pytest.mark.parametrize("with_padding", [False, True], ids=["whole", "left padding"])
def test_the_greedy_continuation_with_the_cache_is_theirs(pair: Any, with_padding: bool) -> None:
    case, theirs, ours, _ = pair
    ids, mask = left_padded(token_ids(), PADDING) if with_padding else (token_ids(), None)
    if mask is not None and case.startswith("openai-gpt"):  # whose generate() in transformers knows no mask
        expected = theirs_alone(theirs, ids, mask, NEW)
    else:
        expected = theirs_continued(theirs, ids, mask, NEW)
    assert torch.equal(continued(ours, ids, mask, NEW), expected)


def test_every_tensor_comes_back_bit_by_bit(pair: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    _, theirs, ours, folder = pair
    save_model(tmp_path, ours, tokenizer)
    before, after = stored(folder), stored(tmp_path)
    assert set(before) == set(after)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    back, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert torch.equal(back.eval()(token_ids()).logits, theirs(token_ids()).logits)
    assert load_config(tmp_path) == ours.config


def test_training_moves_every_parameter(pair: Any) -> None:
    """The loss is transformers' loss, and no parameter is left out of the gradient."""
    _, theirs, ours, folder = pair
    ids = token_ids()
    ours, _ = load_model(folder)
    loss = ours.loss(ids[:, :-1], ids[:, 1:].contiguous(), scale=1 / ids[:, 1:].numel())
    with torch.no_grad():
        assert loss.item() == pytest.approx(theirs(ids, labels=ids).loss.item(), abs=1e-4)
    loss.backward()
    still = {name for name, parameter in ours.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    alone = ours.config.experts_per_token == 1  # its share is 1, whatever the router says
    assert still == ({name for name, _ in ours.named_parameters() if "router" in name} if alone else set())


def test_left_padding_trains_like_the_same_rows_alone(pair: Any) -> None:
    _, _, ours, _ = pair
    ids, mask = left_padded(token_ids(), PADDING)
    targets = ids.roll(-1, 1).masked_fill(mask == 0, -100)
    targets[:, -1] = -100
    with torch.no_grad():
        together = ours.loss(ids, targets, PaddedContext(mask)).item()
        alone = sum(
            ours.loss(row[gap:][None], target[gap:][None]).item()
            for row, target, gap in zip(ids, targets, PADDING.tolist(), strict=True)
        )
    assert together == pytest.approx(alone, rel=1e-4)


OLD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "gpt_neox": ({"rotary_pct": 0.25, "rotary_emb_base": 10000, "torch_dtype": "float16"}, ("rope_parameters", "dtype")),
    "gpt_neox tied, scaled": (
        {"rotary_pct": 0.5, "rotary_emb_base": 500, "rope_scaling": {"type": "linear", "factor": 8.0}},
        ("rope_parameters",),
    ),
    "gemma3_text multi-query": (
        {"rope_theta": 1000000, "rope_local_base_freq": 10000, "rope_scaling": None, "sliding_window_pattern": 6}
        | {"torch_dtype": "bfloat16", "cache_implementation": "hybrid"},
        ("rope_parameters", "layer_types", "_sliding_window_pattern", "dtype"),
    ),
    "gemma3_text biases, scaled": (
        {"rope_theta": 10000.0, "rope_local_base_freq": 10000, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        ("rope_parameters",),
    ),
    "gpt_oss": (
        {"rope_theta": 150000, "experts_per_token": 2, "initial_context_length": 4096}
        | {"rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}}
        | {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}},
        ("rope_parameters", "swiglu_alpha"),
    ),
    "gptj": ({"n_ctx": 64, "rotary": True, "scale_attn_weights": True, "gradient_checkpointing": False}, ("dtype",)),
}
OLD["gpt_oss"][0]["rope_scaling"]["original_max_position_embeddings"] = 4096


@pytest.mark.parametrize("case", OLD)
def test_old_spellings_of_a_config_say_the_same(case: str, tmp_path: Path) -> None:
    name, values = CASES[case]
    new = getattr(transformers, f"{name}Config")(vocab_size=320, **values).to_dict()
    new["model_type"] = case.split()[0]
    added, removed = OLD[case]
    old = {key: value for key, value in new.items() if key not in removed} | added
    configs = []
    for spelling in (new, old):
        (tmp_path / "config.json").write_text(json.dumps(spelling))
        configs.append(load_config(tmp_path))
    assert configs[0] == configs[1]


def test_mxfp4_decodes_to_the_same_values() -> None:
    integration = pytest.importorskip("transformers.integrations.mxfp4")
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 10, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(1, 250, (3, 10, 2), generator=generator, dtype=torch.uint8)
    expected = integration.convert_moe_packed_tensors(blocks, scales)  # (E, in, out)
    assert torch.equal(decode(blocks, scales).transpose(1, 2), expected)
