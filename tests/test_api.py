"""The Python face: a model folder opens, writes, streams, chats, scores and gives logits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.engine import poem

import owngpt
from owngpt.errors import ModelFolderError, UsageError
from owngpt.evaluate.bits import score_text
from owngpt.families import family_for
from owngpt.formats.folder import save_model
from owngpt.formats.weights import export_state
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.chat import CHATML

PROMPT = "春眠"
REST = poem.POEM.removeprefix(PROMPT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("poem") / "model"
    save_model(path, poem.model(), poem.tokenizer(), card=None, generation=None)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> owngpt.Model:
    return owngpt.load(folder, device="cpu")


def test_a_loaded_model_writes_what_it_knows(model: owngpt.Model) -> None:
    assert model.generate(PROMPT, temperature=0) == REST
    assert "".join(model.stream(PROMPT, temperature=0)) == REST
    assert model.config.context_length == poem.CONTEXT_LENGTH
    assert model.tokenizer.decode(model.tokenizer.encode(REST)) == REST


def test_several_sequences_are_a_list_and_one_is_a_text(model: owngpt.Model) -> None:
    texts = model.generate("x", num_return_sequences=3, seed=1, max_new_tokens=5)
    assert isinstance(texts, list)
    assert len(texts) == 3
    assert model.generate("x", seed=1, max_new_tokens=5) == texts[0]


def test_generations_say_why_each_text_ended(model: owngpt.Model) -> None:
    (generation,) = model.generations(PROMPT, temperature=0, stop=["Then"])
    assert generation.stop_reason == "stop"
    assert generation.text == REST.split("Then")[0]


def test_logits_are_those_of_the_network_for_lists_and_tensors(model: owngpt.Model) -> None:
    ids = model.tokenizer.encode("abc")
    expected = poem.model().logits(torch.tensor([ids])).detach()
    assert expected.shape == (1, 3, model.config.vocab_size)
    for given in (ids, [ids], torch.tensor(ids), torch.tensor([ids], dtype=torch.int32)):
        logits = model.logits(given)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([], "not empty"),
        ([0.5], "whole numbers"),
        ([[[1]]], r"\(B, T\)"),
        ([1, -1], "token id -1 is outside the model's vocabulary, 0 to 279"),
        ([280], "token id 280 is outside"),
        ([1] * 129, "129 tokens are longer than the model's context of 128"),
    ],
)
def test_wrong_token_ids_are_refused(model: owngpt.Model, token_ids: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.logits(token_ids)


def test_left_padding_changes_no_logits(model: owngpt.Model) -> None:
    ids = model.tokenizer.encode(PROMPT + "夜来")
    masked = model.logits([[0, 0, 0, *ids]], attention_mask=[[0] * 3 + [1] * len(ids)])
    torch.testing.assert_close(masked[:, 3:], model.logits(ids), rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"attention_mask is \(1, 2\)"):
        model.logits([ids], attention_mask=[[1, 1]])
    with pytest.raises(UsageError, match="between the tokens of row 0"):
        model.logits([ids], attention_mask=[[1] + [0] * (len(ids) - 2) + [1]])


def test_a_base_model_says_that_it_cannot_chat(model: owngpt.Model) -> None:
    with pytest.raises(UsageError, match="no chat template"):
        model.chat([{"role": "user", "content": "Hi"}])


def test_a_model_with_a_template_answers_and_streams_the_same(model: owngpt.Model) -> None:
    talker = owngpt.Model(model.network, model.tokenizer.with_chat_template(CHATML))
    messages = [{"role": "user", "content": "春"}]
    answer = talker.chat(messages, seed=3, max_new_tokens=20)
    prompt = talker.tokenizer.encode("<|im_start|>user\n春<|im_end|>\n<|im_start|>assistant\n", special=True)
    assert isinstance(answer, str)
    assert "".join(talker.chat(messages, stream=True, seed=3, max_new_tokens=20)) == answer
    assert prompt.count(talker.tokenizer.special_ids["<|im_start|>"]) == 2
    with pytest.raises(UsageError, match="conversation is empty"):
        talker.chat([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1.0}, "unknown generation option temprature"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p|top-p"),
        ({"max_new_tokens": 0}, "max_new_tokens|max-new-tokens"),
    ],
)
def test_options_out_of_range_name_themselves(model: owngpt.Model, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.generate("x", **options)


def test_the_folders_own_settings_hold_unless_others_are_given(model: owngpt.Model) -> None:
    comma = model.tokenizer.encode("。")[-1]
    settings = {"do_sample": True, "temperature": 0.01, "top_k": 1, "eos_token_id": [comma]}
    tuned = owngpt.Model(model.network, model.tokenizer, generation=settings)
    (generation,) = tuned.generations(PROMPT)
    assert generation.stop_reason == "end"
    assert generation.text.startswith("不觉晓，处处闻啼鸟")
    assert len({tuned.generate("x", max_new_tokens=20, seed=seed) for seed in range(3)}) == 1
    assert len({tuned.generate("x", max_new_tokens=20, seed=seed, temperature=5.0, top_k=0) for seed in range(3)}) == 3


def test_evaluate_takes_a_model_or_its_folder(model: owngpt.Model, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text(poem.POEM, encoding="utf-8")
    score = owngpt.evaluate(model, data=path)
    assert score == owngpt.evaluate(folder, data=[str(path)])
    assert score == score_text(poem.model(), poem.tokenizer(), [poem.POEM])
    assert score.bits_per_byte < 0.05


def test_a_damaged_generation_config_is_named(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text("[1", encoding="utf-8")
    with pytest.raises(ModelFolderError, match=r"generation_config\.json"):
        owngpt.load(tmp_path)


def test_a_missing_folder_and_an_unknown_device_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="nowhere"):
        owngpt.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="device toaster"):
        owngpt.load(folder, device="toaster")


def test_importing_the_package_imports_no_torch() -> None:
    code = "import json, sys, owngpt; print(json.dumps('torch' in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) is False


def test_public_functions_are_not_hidden_by_rooms_of_the_same_name() -> None:
    code = "import owngpt.evaluate.bits, owngpt; print(callable(owngpt.evaluate))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "True\n"


def test_a_folder_without_a_tokenizer_shows_its_logits_and_refuses_text(tmp_path: Path) -> None:
    config = GPTConfig(
        vocab_size=97, context_length=32, hidden_size=32, layers=1, heads=2, key_value_heads=1, head_size=16, intermediate_size=48
    )
    network = GPT(config, generator=torch.Generator().manual_seed(0)).eval()
    family = family_for(config)
    (tmp_path / "config.json").write_text(json.dumps(family.from_config(config)))
    save_file(export_state(network.state_dict(), family, config, torch.float32), tmp_path / "model.safetensors")
    model = owngpt.load(tmp_path)
    assert torch.allclose(model.logits([1, 2, 3])[0], network.logits(torch.tensor([[1, 2, 3]]))[0], atol=1e-5)
    with pytest.raises(owngpt.OwnGPTError, match=r"has no tokenizer\.json"):
        model.generate("a")
