"""Runs that go on from a model of others: its tokenizer, its layout and what training did not touch stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import owngpt
from owngpt.cli.main import main
from owngpt.config.run_record import read_configuration
from owngpt.errors import ModelFolderError, UsageError
from owngpt.pretraining import train
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

transformers = pytest.importorskip("transformers")

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "Llama",
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        | {"max_position_embeddings": 64, "rope_parameters": ROPE},
    ),
    "mistral": (
        "Mistral",
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        | {"max_position_embeddings": 64, "sliding_window": None},
    ),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
}
SHORT = {"context_length": 32, "batch_size": 4, "quiet": True, "seed": 3}


@pytest.fixture(scope="module", params=SHAPES)
def base(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of transformers with a tokenizer and a chat template, named after its family."""
    name, values = SHAPES[request.param]
    folder = tmp_path_factory.mktemp("base") / request.param
    tokenizer = train_tokenizer([file.read_text() for file in source.iterdir()], vocab_size=300).with_chat_template(TEMPLATE)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = getattr(transformers, f"{name}Config")(vocab_size=tokenizer.vocab_size + 5, **values)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save(folder)
    settings = {"do_sample": True, "temperature": 0.6, "eos_token_id": [0, 2]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def test_training_goes_on_and_the_folder_stays_what_it_was(base: Path, source: Path, tmp_path: Path) -> None:
    before = owngpt.evaluate(base, data=source).bits_per_byte
    result = train(source, output=tmp_path / "out", from_model=str(base), steps=60, learning_rate=3e-3, **SHORT)
    assert result.score["bits_per_byte"] < 0.8 * before
    assert result.plan["optimizer"]["kind"] == "adamw"
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    original = transformers.AutoConfig.from_pretrained(base)
    assert theirs.config.model_type == original.model_type == base.name
    assert theirs.config.max_position_embeddings == original.max_position_embeddings
    assert theirs.config.vocab_size == original.vocab_size
    kept = Tokenizer.load(tmp_path / "out")
    assert (kept.fingerprint, kept.chat_template) == (Tokenizer.load(base).fingerprint, TEMPLATE)
    assert theirs.generation_config.temperature == 0.6
    assert theirs.generation_config.eos_token_id == [0, 2]
    ours, ids = owngpt.load(tmp_path / "out", device="cpu"), torch.arange(60)[None]
    with torch.no_grad():
        assert (theirs.eval()(ids).logits - ours.logits(ids)).abs().max().item() <= 2e-4
    assert ours.generate("In chapter", max_new_tokens=5)


def test_what_training_did_not_touch_is_as_it_was(base: Path, source: Path, tmp_path: Path) -> None:
    train(source, output=tmp_path / "out", from_model=str(base), steps=2, learning_rate=1e-7, weight_decay=0.0, **SHORT)
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert torch.allclose(tensor.float(), after[name], atol=1e-5), name
    if base.name == "gpt2":
        name = next(name for name in before if name.endswith("wpe.weight"))
        assert torch.equal(before[name][32:], after[name][32:])
        assert not torch.equal(before[name][:32], after[name][:32])


def test_the_rate_is_a_tenth_of_a_new_model_s(base: Path, source: Path, tmp_path: Path) -> None:
    plan = train(source, output=tmp_path / "out", from_model=str(base), steps=9, dry_run=True, **SHORT).plan
    new = train(
        source,
        output=tmp_path / "out",
        steps=9,
        dry_run=True,
        optimizer="adamw",
        hidden_size=32,
        layers=2,
        vocab_size=300,
        **SHORT,
    ).plan
    assert plan["optimizer"]["matrix_rate"] == pytest.approx(new["optimizer"]["matrix_rate"] / 10)
    assert plan["reasons"][0].endswith(f"those of {base}")
    assert not (tmp_path / "out").exists()


def test_a_run_resumes_repeats_and_misses_its_base(base: Path, source: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(base, tmp_path / "base")
    train(source, output=tmp_path / "out", from_model=str(moved), steps=4, **SHORT)
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    (tmp_path / "out" / "model.safetensors").unlink()
    train(output=tmp_path / "out", resume=True, quiet=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    _, sources, settings = read_configuration(tmp_path / "out" / "run" / "run.yaml")
    train(sources, output=tmp_path / "again", quiet=True, **settings)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == weights
    shutil.rmtree(moved)
    with pytest.raises(ModelFolderError, match="base"):
        train(output=tmp_path / "out", resume=True, quiet=True)


def test_what_does_not_fit_is_said_before_any_text_is_read(base: Path, source: Path, tmp_path: Path) -> None:
    for option in ({"layers": 3}, {"vocab_size": 400}, {"tokenizer": "byte"}, {"preset": "gpt2"}):
        with pytest.raises(UsageError, match=r"and --from are given together, but .* has its own"):
            train(source, output=tmp_path / "out", from_model=str(base), steps=1, **option)
    with pytest.raises(UsageError, match=r"context_length 65 is longer than the model's 64; use --context-length 64"):
        train(source, output=tmp_path / "out", from_model=str(base), steps=1, context_length=65, quiet=True)
    with pytest.raises(ModelFolderError, match="nowhere"):
        train(source, output=tmp_path / "out", from_model=str(tmp_path / "nowhere"), steps=1, quiet=True)
    assert not (tmp_path / "out").exists()


def test_the_command_line_calls_it_from(base: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if base.name != "llama":
        pytest.skip("once is enough")
    command = ["train", str(source), "--from", str(base), "-o", str(tmp_path / "out"), "--steps", "2", "--context-length", "16"]
    assert main([*command, "--dry-run"]) == 0
    assert "those of" in capsys.readouterr().out
    assert main([*command, "--quiet"]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
