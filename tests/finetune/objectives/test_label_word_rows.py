"""Rows of text and label, learned by a head or as words: what is prepared, kept for a resumed run, and measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.finetune.tiny_tuning import make_model

from owngpt.config.finetuning import FinetuneConfig
from owngpt.errors import UsageError
from owngpt.finetune.material import Material, kept, prepare
from owngpt.finetune.objectives.classification import attach_head
from owngpt.finetune.objectives.label_words import WordRenderer
from owngpt.finetune.report.measure import measure
from owngpt.finetune.sequences.store import ExampleStore
from owngpt.text.chat import CHATML
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

TEXTS = {"animals": ("the cat sleeps", "a dog barks"), "weather": ("rain tomorrow", "snow and wind")}
ROWS = [{"text": f"{text} {number}", "label": label} for number in range(8) for label, texts in TEXTS.items() for text in texts]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([f"{row['text']} {row['label']}" for row in ROWS], vocab_size=320).with_chat_template(CHATML)


def prepared(folder: Path, tokenizer: Tokenizer, **options: bool) -> Material:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    settings = FinetuneConfig(method="classify", **options)
    said: list[str] = []
    return prepare([str(folder / "rows.jsonl")], settings, tokenizer, folder / "data", context_length=64, say=said.append)


def test_a_head_has_classes_and_learns_no_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    material = prepared(tmp_path, tokenizer)
    assert (material.method, material.labels, material.classes) == ("classify", ("animals", "weather"), ("animals", "weather"))
    assert not material.train.targets.any() and set(material.train.labels.tolist()) == {0, 1}


def test_words_are_answers_to_learn_and_a_resumed_run_reads_them_the_same(tmp_path: Path, tokenizer: Tokenizer) -> None:
    material = prepared(tmp_path, tokenizer, label_words=True)
    assert (material.method, material.labels, material.classes) == ("sft", ("animals", "weather"), ())
    assert material.train.targets.all() and set(material.train.labels.tolist()) == {0, 1}
    again = kept(tmp_path / "data")
    assert again is not None and isinstance(again.renderer, WordRenderer)
    assert (again.method, again.labels, again.classes) == ("sft", material.labels, ())
    example = material.examples[0]
    assert again.renderer.encode(example)[0].token_ids.tolist() == material.renderer.encode(example)[0].token_ids.tolist()


@pytest.mark.parametrize("label_words", [True, False])
def test_both_are_measured_by_what_they_take_texts_for(tmp_path: Path, tokenizer: Tokenizer, label_words: bool) -> None:
    material, model = prepared(tmp_path, tokenizer, label_words=label_words), make_model(vocab_size=tokenizer.vocab_size)
    if not label_words:
        attach_head(model, 2, seed=0)
    assert isinstance(material.held_out, ExampleStore)
    measured = measure(
        model, tokenizer, material.renderer, material.examples, material.held_out, seconds=2, seed=0, labels=material.labels
    )
    assert {guess.label for guess in measured.guesses} <= set(TEXTS) and {guess.guess for guess in measured.guesses} <= set(TEXTS)
    assert 0 < len(measured.guesses) == len(measured.losses) <= len(material.examples)
    assert all(loss.nats > 0 and (loss.targets > 1) == label_words for loss in measured.losses)


def test_words_need_labels(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps({"prompt": "Hello", "completion": "Good day"}) + "\n")
    with pytest.raises(UsageError, match="--label-words is for rows with a text and a label, but these hold"):
        prepare(
            [str(tmp_path / "chat.jsonl")], FinetuneConfig(label_words=True), tokenizer, tmp_path / "data", context_length=64,
            say=print,
        )  # fmt: skip
    with pytest.raises(UsageError, match="--label-words is of classify, but the method is dpo"):
        FinetuneConfig(method="dpo", label_words=True)
