"""An adapter that PEFT wrote changes our model just as it changes theirs, or is refused by the name of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

import owngpt
from owngpt.errors import ModelFolderError
from owngpt.formats.folder import load_config, load_weights
from owngpt.formats.merging import merge_adapter
from owngpt.formats.peft import load_adapter
from owngpt.model.config import GPTConfig

peft = pytest.importorskip("peft", reason="PEFT is what wrote the adapters")

LLAMA = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS: dict[str, tuple[Any, list[str]]] = {
    "llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), ALL),
    "llama, some": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)), ["q_proj", "v_proj", "up_proj"]),
    "qwen3": (lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA, head_dim=8)), ALL),
    "gpt2": (
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        ),
        ["c_attn", "c_proj", "c_fc"],
    ),
    "gpt_neox": (
        lambda: transformers.GPTNeoXForCausalLM(
            transformers.GPTNeoXConfig(**{**LLAMA, "num_key_value_heads": None}, rotary_pct=0.5)
        ),
        ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    ),
    "gptj": (
        lambda: transformers.GPTJForCausalLM(
            transformers.GPTJConfig(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)
        ),
        ["q_proj", "v_proj", "out_proj", "fc_in"],
    ),
}


def write(folder: Path, name: str, **settings: Any) -> torch.Tensor:
    """A base model in ``folder/base``, an adapter in ``folder/adapter``. Returns theirs adapted logits of tokens 0 … 19."""
    torch.manual_seed(0)
    make, targets = MODELS[name]
    base = make().eval()
    base.save_pretrained(folder / "base")
    values = {"r": 4, "lora_alpha": 12, "target_modules": targets, "task_type": "CAUSAL_LM", **settings}
    adapted = peft.get_peft_model(base, peft.LoraConfig(**values)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.2)
    adapted.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return adapted(torch.arange(20)[None]).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_the_adapted_model_is_theirs(tmp_path: Path, name: str) -> None:
    theirs = write(tmp_path, name)
    config = load_config(tmp_path / "base")
    model = load_weights(tmp_path / "base", config)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        plain = model.logits(ids)
        merge_adapter(model, load_adapter(tmp_path / "adapter", config))
        torch.testing.assert_close(model.logits(ids), theirs, atol=1e-4, rtol=1e-4)
    assert float((plain - theirs).abs().max()) > 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"use_dora": True},
        {"use_dora": True, "target_modules": ["k_proj", "up_proj"]},
        {"rank_pattern": {"q_proj": 8, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"k_proj": 1, "q_proj": 3}},
        {"layers_to_transform": [1]},
    ],
)
def test_scale_rank_and_choice_of_layers_are_theirs(tmp_path: Path, settings: dict[str, Any]) -> None:
    theirs = write(tmp_path, "llama", **settings)
    config = load_config(tmp_path / "base")
    model = load_weights(tmp_path / "base", config)
    merge_adapter(model, load_adapter(tmp_path / "adapter", config))
    with torch.no_grad():
        torch.testing.assert_close(model.logits(torch.arange(20)[None]), theirs, atol=1e-4, rtol=1e-4)


def test_an_export_gives_the_logits_of_merge_and_unload(tmp_path: Path) -> None:
    write(tmp_path, "llama")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().eval()
    words = tokenizers.models.WordLevel({"a": 0, "b": 1, "<|endoftext|>": 2}, "a")
    tokenizers.Tokenizer(words).save(str(tmp_path / "adapter" / "tokenizer.json"))
    owngpt.export(tmp_path / "base", format="hf", output=tmp_path / "plain", adapter=tmp_path / "adapter")
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPTConfig]:
    folder = tmp_path_factory.mktemp("adapter")
    write(folder, "llama")
    return folder / "adapter", load_config(folder / "base")


def edited(written: tuple[Path, GPTConfig], target: Path, **values: Any) -> Path:
    target.mkdir()
    source = written[0]
    settings = json.loads((source / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**settings, **values}))
    (target / "adapter_model.safetensors").write_bytes((source / "adapter_model.safetensors").read_bytes())
    return target


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"use_dora": True}, "use_dora is true, but there is no lora_magnitude_vector"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"from_the_future": 3}, "from_the_future"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"r": 0}, "r is 0"),
        ({"r": 5}, "rank need 5×32"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"rank_pattern": {"(a+)+b": 3}}, "only names of modules"),
    ],
)
def test_settings_that_are_not_implemented_are_named(
    written: tuple[Path, GPTConfig], tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelFolderError) as caught:
        load_adapter(edited(written, tmp_path / "edited", **values), written[1])
    assert said in str(caught.value)


def test_tensors_that_do_not_fit_are_named(written: tuple[Path, GPTConfig], tmp_path: Path) -> None:
    folder, config = edited(written, tmp_path / "edited"), written[1]
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    first = min(tensors)

    def refused(changed: dict[str, torch.Tensor], said: str) -> None:
        save_file(changed, file)
        with pytest.raises(ModelFolderError, match=said):
            load_adapter(folder, config)

    refused({**tensors, first: torch.zeros(4, 31)}, "4×31, this model and rank need")
    refused({**tensors, first: tensors[first] * torch.inf}, "not finite")
    refused({name: tensor for name, tensor in tensors.items() if name != first}, "only one matrix of")
    refused({**tensors, "base_model.model.lm_head.modules.weight": torch.zeros(1)}, "lm_head.modules.weight")
    refused({}, "no tensors")
    head = {
        f"base_model.model.lm_head.lora_{which}.weight": torch.zeros(*shape) for which, shape in (("A", (4, 32)), ("B", (64, 4)))
    }
    refused({**tensors, **head}, "lm_head")
    save_file(tensors, file)
    with pytest.raises(ModelFolderError, match="does not have"):
        load_adapter(folder, GPTConfig(**{**config.to_dict(), "layers": 1}))


def test_what_is_no_adapter_is_said(written: tuple[Path, GPTConfig], tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no adapter_config.json"):
        load_adapter(tmp_path, written[1])
    folder = edited(written, tmp_path / "edited")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ModelFolderError, match="pickle"):
        load_adapter(folder, written[1])
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelFolderError, match="not JSON"):
        load_adapter(folder, written[1])
