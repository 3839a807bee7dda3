"""A fine-tuning from rows on disk to a folder that others open, on a model that takes seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.finetune.small_runs import SHAPE, chats, labelled, write_base, write_rows

import owngpt
from owngpt.config.run_record import read_configuration
from owngpt.errors import UsageError
from owngpt.finetune.objectives.classifier import Classifier
from owngpt.finetune.result import FinetunedModel
from owngpt.finetune.start import finetune
from owngpt.train.metrics import read_lines

OPTIONS = {**SHAPE, "context_length": 128, "quiet": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "faq.jsonl", chats(24))


@pytest.fixture(scope="module")
def tuned(base: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> FinetunedModel:
    """An adapter, made by six steps."""
    folder = tmp_path_factory.mktemp("out") / "shop"
    return owngpt.finetune(base, rows, output=folder, steps=6, system="You are Mira.", rank=4, patience=3, **OPTIONS)


def test_it_learns_and_says_what_changed(tuned: FinetunedModel) -> None:
    assert tuned.method == "sft"
    assert tuned.sentence.startswith("loss ")
    after, before = tuned.report["comparison"], tuned.report["before"]
    assert after and before["losses"]
    lines = list(read_lines(tuned.output / "run" / "metrics.jsonl"))
    training = [line["loss"] for line in lines if line.get("split") == "train"]
    assert training[-1] < training[0] - 0.1
    assert all("bits_per_byte" not in line for line in lines), "answers are no plain text"
    assert tuned.training["step"] == 6
    assert any("steps" in warning for warning in tuned.warnings)


def test_the_folder_is_whole(tuned: FinetunedModel, base: Path) -> None:
    folder = tuned.output
    names = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "README.md",
        "report.md",
    }
    assert names | {"report.json", "run"} <= {path.name for path in folder.iterdir()}
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card and "base_model: model\n" in card and "24 chats" in card
    for passed_on in (card, (folder / "report.md").read_text(), (folder / "report.json").read_text()):
        assert str(base.parent) not in passed_on, "where the owner keeps files is nobody's business"
        assert str(folder.parent) not in passed_on


def test_it_is_served_as_it_was_taught(tuned: FinetunedModel) -> None:
    model = owngpt.load(tuned.output)
    ids = model.encode_chat([{"role": "user", "content": "lamp 2?"}]).token_ids
    text = model.tokenizer.decode(ids, skip_special=False)
    assert text == "<|im_start|>system\nYou are Mira.<|im_end|>\n<|im_start|>user\nlamp 2?<|im_end|>\n<|im_start|>assistant\n"
    assert isinstance(model.chat([{"role": "user", "content": "lamp 2?"}], max_new_tokens=4), str)


def test_peft_opens_the_adapter_with_the_same_logits(tuned: FinetunedModel, base: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), tuned.output).eval()
    ids = torch.tensor([[1, 50, 60, 70, 80, 90]])
    with torch.inference_mode():
        expected = theirs(ids).logits
    found = owngpt.load(tuned.output, dtype="float32").logits(ids)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(owngpt.load(base, dtype="float32").logits(ids), expected, atol=1e-3)


def test_a_finished_run_resumes_to_the_same_end(tuned: FinetunedModel) -> None:
    weights = (tuned.output / "adapter_model.safetensors").read_bytes()
    again = finetune(output=tuned.output, resume=True, quiet=True)
    assert (tuned.output / "adapter_model.safetensors").read_bytes() == weights
    assert again.training["step"] == 6
    assert again.report["before"] == tuned.report["before"]
    with pytest.raises(UsageError, match="--rank 8 is 4 in this run"):
        finetune(output=tuned.output, resume=True, quiet=True, rank=8)
    with pytest.raises(UsageError, match="leave the sources out"):
        finetune(None, "other.jsonl", output=tuned.output, resume=True, quiet=True)


def test_a_run_is_repeated_from_its_own_description(tuned: FinetunedModel, tmp_path: Path) -> None:
    model, sources, settings = read_configuration(tuned.output / "run" / "run.yaml", "finetune")
    again = finetune(model, sources, output=tmp_path / "again", quiet=True, **settings)
    weights = [(folder / "adapter_model.safetensors").read_bytes() for folder in (tuned.output, again.output)]
    assert weights[0] == weights[1]
    with pytest.raises(UsageError, match="it is of `owngpt finetune`"):
        read_configuration(tuned.output / "run" / "run.yaml")


def test_a_model_that_is_trained_whole_opens_in_transformers(base: Path, rows: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    before = (base / "model.safetensors").read_bytes()
    tuned = finetune(base, rows, output=tmp_path / "whole", lora=False, steps=4, **OPTIONS)
    assert (base / "model.safetensors").read_bytes() == before, "the base is left alone"
    assert not (tuned.output / "adapter_config.json").exists()
    ids = torch.tensor([[1, 50, 60, 70]])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tuned.output, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = theirs(ids).logits
    assert torch.allclose(owngpt.load(tuned.output, dtype="float32").logits(ids), expected, atol=1e-4)
    ends = json.loads((tuned.output / "generation_config.json").read_text())["eos_token_id"]
    assert set(ends) == owngpt.load(tuned.output).tokenizer.stop_ids, "whatever ends a turn ends a text"


def test_classes_are_told_apart_here_and_in_transformers(base: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    file = write_rows(tmp_path / "labels.jsonl", labelled(24))
    tuned = finetune(base, file, output=tmp_path / "classes", steps=10, **OPTIONS)
    texts = ["good lamp 3", "bad rug 8"]
    ours = Classifier.load(tuned.output)
    tell = transformers.pipeline("text-classification", str(tuned.output), dtype=torch.float32)
    assert [found["label"] for found in tell(texts)] == ours.guess(texts)
    assert ours.labels == ("+", "-")


def test_a_base_without_a_template_gets_one_that_is_said_and_kept(rows: Path, tmp_path: Path, capsys) -> None:
    plain = write_base(tmp_path / "plain", template=None)
    plan = finetune(plain, rows, steps=1, dry_run=True, **OPTIONS)
    assert any("no chat template" in note for note in plan.data["notes"])
    assert not (tmp_path / "runs").exists()


def test_the_run_ends_when_held_out_examples_are_no_longer_learned(base: Path, rows: Path, tmp_path: Path) -> None:
    tuned = finetune(base, rows, output=tmp_path / "early", epochs=80, learning_rate=0.05, lora=False, patience=2, **OPTIONS)
    assert tuned.training["step"] < tuned.plan["course"]["steps"]
    events = [line for line in read_lines(tuned.output / "run" / "metrics.jsonl") if line.get("event") == "stopped_early"]
    assert len(events) == 1
    assert tuned.training["best_step"] < tuned.training["step"], "the best weights are kept"


def test_general_text_is_mixed_in_and_kept(base: Path, rows: Path, tmp_path: Path) -> None:
    text = tmp_path / "general.txt"
    text.write_text("\n\n".join(f"The {n}th ship sailed at noon and came home after {n} days." for n in range(40)))
    options = {**OPTIONS, "replay": 0.3, "replay_from": str(text), "steps": 4}
    tuned = finetune(base, rows, output=tmp_path / "mixed", **options)
    assert (tmp_path / "mixed" / "run" / "data" / "replay").is_dir()
    text.unlink()  # a resumed run needs no source any more
    again = finetune(output=tuned.output, resume=True, quiet=True)
    assert again.training["step"] == 4


def test_options_that_name_files_may_be_repeated_as_they_were_given(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path / "others.jsonl", chats(26)[22:])
    monkeypatch.chdir(tmp_path)
    tuned = finetune(base, rows, output=tmp_path / "out", steps=2, validation="others.jsonl", **OPTIONS)
    assert any("2 held-out examples ask what the model was taught" in warning for warning in tuned.warnings)
    assert (
        "4 held-out examples were not learned from, but 2 of them ask what was learned"
        in (tuned.output / "report.md").read_text()
    )
    again = finetune(output=tuned.output, resume=True, quiet=True, validation="others.jsonl")
    assert again.training["step"] == 2
    with pytest.raises(UsageError, match="--validation .*faq.jsonl is .*others.jsonl in this run"):
        finetune(output=tuned.output, resume=True, quiet=True, validation=str(rows))


def test_a_handful_of_rows_works_and_is_called_few(base: Path, tmp_path: Path) -> None:
    few = write_rows(tmp_path / "few.jsonl", chats(3))
    tuned = finetune(base, few, output=tmp_path / "few", epochs=2, quiet=True)
    assert tuned.training["validation_loss"] is None, "of so few none is held out"
    assert tuned.plan["examples"] == 3
    assert any("few" in warning or "only 3" in warning for warning in tuned.warnings)


def test_an_adapter_is_tuned_on(tuned: FinetunedModel, rows: Path, tmp_path: Path) -> None:
    second = finetune(tuned.output, rows, output=tmp_path / "second", steps=2, **OPTIONS)
    named = json.loads((second.output / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(tuned.output)
    ids = torch.tensor([[1, 50, 60, 70]])
    assert not torch.equal(owngpt.load(second.output).logits(ids), owngpt.load(tuned.output).logits(ids))
