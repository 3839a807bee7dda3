"""Random models of transformers and ours give the same logits, in both directions, and every tensor survives the round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from owngpt.families import family_for
from owngpt.formats.folder import load_config, load_model, save_model
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4
LENGTH = 40
TEXT = "The quick brown fox; 滚滚长江东逝水，浪花淘尽英雄。\n\n    it's 1859 <|im_start|>\t🧑‍👩‍👧\r\n"

NATIVE = {"vocab_size": 320, "context_length": 64, "hidden_size": 48, "layers": 3, "intermediate_size": 80}
GROUPED = {"heads": 4, "key_value_heads": 2, "head_size": 16}
OURS: dict[str, dict[str, Any]] = {
    "qwen3": {"heads": 4, "key_value_heads": 2, "head_size": 16},
    "qwen3 multi-head": {"heads": 3, "key_value_heads": 3, "head_size": 16, "rotary_base": 5000.0},
    "qwen3 untied": {"heads": 6, "key_value_heads": 1, "head_size": 8, "tie_embeddings": False, "norm_epsilon": 1e-5},
    "qwen3 windows": {"heads": 4, "key_value_heads": 2, "head_size": 16, "attention_windows": (0, 9, 0)},
    "qwen3 biases": {**GROUPED, "query_key_value_bias": True, "attention_output_bias": True},
    "gpt2": {"heads": 3},
    "gpt2 untied": {"heads": 4, "tie_embeddings": False, "activation": "gelu"},
    "gpt2 unscaled": {"heads": 3, "attention_scale": 1.0, "activation": "relu"},
    "gpt_neo": {"heads": 3, "query_key_value_bias": False, "attention_windows": (0, 8, 0)},
    "gpt_neo unscaled": {"heads": 4, "query_key_value_bias": False, "attention_scale": 1.0, "tie_embeddings": False},
    "openai-gpt": {"heads": 3, "norm_placement": "post", "intermediate_size": 192},
}
CLASSIC = {
    "positions": "learned", "norm": "layernorm", "norm_epsilon": 1e-5, "activation": "gelu_tanh", "query_key_value_bias": True,
    "attention_output_bias": True, "mlp_bias": True, "query_key_norm": False,
}  # fmt: skip
SMALL = {"hidden_size": 40, "intermediate_size": 72, "max_position_embeddings": 64}
SLIDING = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2, "tie_word_embeddings": True}
ROTARY = {"rope_type": "default", "rope_theta": 1e6}
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": (
        "Qwen3",
        {
            **SMALL,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 12,
            "rope_parameters": ROTARY,
        },
    ),
    "qwen3 windows": (
        "Qwen3",
        {**SMALL, **SLIDING, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 10}
        | {"attention_bias": True},
    ),
    "gpt2": ("GPT2", {"n_embd": 45, "n_layer": 2, "n_head": 5, "n_positions": 64}),
    "gpt2 wide": (
        "GPT2",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 50, "tie_word_embeddings": False},
    ),
    "gpt_neo": (
        "GPTNeo",
        {"hidden_size": 48, "num_layers": 3, "num_heads": 3, "max_position_embeddings": 64, "window_size": 6}
        | {"attention_types": [[["global", "local"], 1], [["local"], 1]]},
    ),
    "openai-gpt": ("OpenAIGPT", {"n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 64}),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([TEXT * 30], vocab_size=310)


def perturb(parameters: Any) -> None:
    """Values that tell every tensor and every bias from its neighbours."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def token_ids() -> torch.Tensor:
    return torch.randint(0, 300, (2, LENGTH), generator=torch.Generator().manual_seed(3))


def stored(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("case", OURS)
def test_what_we_save_transformers_opens(case: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    values = {**NATIVE, **({} if case.startswith("qwen3") else CLASSIC), **OURS[case]}
    values = {"key_value_heads": values["heads"], "head_size": 48 // values["heads"], **values}
    config = GPTConfig(**values)
    model = GPT(config, generator=torch.Generator().manual_seed(1)).eval()
    perturb(model.parameters())
    assert family_for(config).model_type == case.split()[0]
    save_model(tmp_path, model, tokenizer)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = token_ids()
    with torch.no_grad():
        difference = (theirs.eval()(ids).logits - model.logits(ids)).abs().max().item()
    assert difference <= TOLERANCE
    again, _ = load_model(tmp_path)
    with torch.no_grad():
        assert torch.allclose(again.logits(ids), model.logits(ids), atol=1e-6)
    assert load_config(tmp_path).tie_embeddings == config.tie_embeddings


@pytest.mark.parametrize("case", THEIRS)
def test_what_transformers_saves_we_open_and_give_back_bit_by_bit(case: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    name, values = THEIRS[case]
    torch.manual_seed(5)
    config = getattr(transformers, f"{name}Config")(vocab_size=320, **values)
    theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    perturb(theirs.parameters())
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(tmp_path / "theirs")
    ours, _ = load_model(tmp_path / "theirs")
    ids = token_ids()
    with torch.no_grad():
        assert (theirs(ids).logits - ours.logits(ids)).abs().max().item() <= TOLERANCE
    save_model(tmp_path / "ours", ours, tokenizer)
    before, after = stored(tmp_path / "theirs"), stored(tmp_path / "ours")
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(back(ids).logits, theirs(ids).logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept_in_the_file(dtype: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = GPTConfig(**NATIVE, **OURS["qwen3"])
    model = GPT(config, generator=torch.Generator().manual_seed(1)).eval()
    save_model(tmp_path, model, tokenizer, dtype=dtype)
    assert {tensor.dtype for tensor in stored(tmp_path).values()} == {getattr(torch, dtype)}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == getattr(torch, dtype)
    ours, _ = load_model(tmp_path)
    with torch.no_grad():
        difference = (theirs.float()(token_ids()).logits - ours.logits(token_ids())).abs().max().item()
    assert difference <= TOLERANCE


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_auto_tokenizer_gives_the_same_ids(kind: str, tmp_path: Path) -> None:
    ours = train_tokenizer([TEXT * 30], kind=kind, vocab_size=310)  # type: ignore[arg-type]
    ours = ours.with_chat_template("{% for message in messages %}{{ '<|im_start|>' ~ message.content }}{% endfor %}")
    config = GPTConfig(**NATIVE, **OURS["qwen3"])
    save_model(tmp_path, GPT(config, generator=torch.Generator().manual_seed(1)), ours)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in (TEXT, "", " leading", "trailing \n", "\n\n\n  x", "a" * 500, "中文" * 100):
        assert theirs.encode(text) == ours.encode(text, special=True)
        assert theirs.decode(theirs.encode(text)) == ours.decode(ours.encode(text, special=True), skip_special=False)
    assert len(theirs) == ours.vocab_size
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (0, 1, 0)
    assert set(ours.special_ids.values()) <= set(theirs.all_special_ids) | set(range(16))
    message = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(message, tokenize=False) == "<|im_start|>hi"


def test_transformers_generates_from_our_folder(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = GPTConfig(**NATIVE, **OURS["qwen3"])
    save_model(tmp_path, GPT(config, generator=torch.Generator().manual_seed(1)), tokenizer, generation={"temperature": 0.8})
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (theirs.generation_config.eos_token_id, theirs.generation_config.pad_token_id) == (0, 1)
    ids = theirs.generate(token_ids()[:1, :5], max_new_tokens=4, do_sample=False)
    assert ids.shape[1] <= 9
