"""Classes are learned at each text's last token, and the saved folder is one of transformers' classifiers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from tests.finetune.tiny_tuning import ADAMW, answers_store, encoded, make_model, texts_store
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.nn import functional

from owngpt.errors import DataError, ModelFolderError, UsageError
from owngpt.families import family_named
from owngpt.finetune.adapter.lora import LoraSettings, attach
from owngpt.finetune.objectives.class_batches import ClassBatches, held_out_texts, text_batch
from owngpt.finetune.objectives.classification import Classification, attach_head, class_logits, head_of
from owngpt.finetune.objectives.classifier import Classifier
from owngpt.finetune.sequences.batches import padding_of
from owngpt.formats.folder import load_config, load_model
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer
from owngpt.train.step import TrainModule

TEXTS = ["the cat sleeps on the mat", "rain tomorrow", "a goal in the last minute of the game, and the crowd went wild"]
LABELS = ("animals", "weather", "sports")
LLAMA = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
CLASSIC = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
NEOX = {**LLAMA, "num_key_value_heads": None, "rotary_pct": 0.5}
BASES: dict[str, Any] = {
    "llama": lambda size: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, vocab_size=size)),
    "mistral": lambda size: transformers.MistralForCausalLM(transformers.MistralConfig(**LLAMA, vocab_size=size)),
    "qwen2": lambda size: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA, vocab_size=size)),
    "qwen3": lambda size: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA, vocab_size=size, head_dim=8)),
    "gemma3": lambda size: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**LLAMA, vocab_size=size, head_dim=8, query_pre_attn_scalar=8)
    ),
    "gpt2": lambda size: transformers.GPT2LMHeadModel(transformers.GPT2Config(**CLASSIC, vocab_size=size)),
    "gptj": lambda size: transformers.GPTJForCausalLM(transformers.GPTJConfig(**CLASSIC, rotary_dim=4, vocab_size=size)),
    "gpt_neox": lambda size: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**NEOX, vocab_size=size)),
    "openai": lambda size: transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**CLASSIC, vocab_size=size)),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS * 5, vocab_size=300)


def module_of(model: GPT, **options: Any) -> TrainModule:
    return TrainModule(model, ADAMW, objective=Classification(), **options)


@pytest.mark.parametrize("name", BASES)
def test_transformers_opens_what_was_saved_with_the_same_logits(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    torch.manual_seed(0)
    BASES[name](tokenizer.vocab_size).save_pretrained(tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    model, _ = load_model(tmp_path / "base")
    attach_head(model, 3, seed=1).weight.data.mul_(20)
    classifier = Classifier(model, tokenizer, LABELS)
    wanted = classifier.logits(TEXTS)
    assert wanted.std() > 0.01

    classifier.save(tmp_path / "tuned")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned").eval()
    assert type(theirs).__name__.endswith("ForSequenceClassification")
    assert theirs.config.id2label == dict(enumerate(LABELS))
    reader = transformers.AutoTokenizer.from_pretrained(tmp_path / "tuned")
    with torch.no_grad():
        alone = torch.cat([theirs(reader(text, return_tensors="pt")["input_ids"]).logits for text in TEXTS])
    torch.testing.assert_close(alone, wanted, rtol=1e-4, atol=1e-4)

    again = Classifier.load(tmp_path / "tuned")
    assert again.labels == LABELS
    torch.testing.assert_close(again.logits(TEXTS), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ModelFolderError, match="tells classes apart and writes no text"):
        load_config(tmp_path / "tuned")
    with pytest.raises(ModelFolderError, match="is not a classifier, but a"):
        Classifier.load(tmp_path / "base")


def test_transformers_pipeline_gives_the_same_probabilities(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = make_model(vocab_size=tokenizer.vocab_size)
    attach_head(model, 3, seed=1)
    classifier = Classifier(model, tokenizer, LABELS)
    classifier.save(tmp_path)
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path), top_k=None, device="cpu")
    for text, probabilities in zip(TEXTS, classifier.probabilities(TEXTS).tolist(), strict=True):
        found = {each["label"]: each["score"] for each in pipeline([text])[0]}
        assert [found[label] for label in LABELS] == pytest.approx(probabilities, abs=1e-5)


@pytest.mark.parametrize("pack", [True, False])
def test_the_loss_is_that_of_the_last_token_of_each_text(tmp_path: Path, pack: bool) -> None:
    store = texts_store(tmp_path)
    model = make_model()
    head = attach_head(model, 3, seed=0)
    losses = []
    with torch.no_grad():
        for text in store:
            hidden = model.eval()(torch.from_numpy(text.token_ids)[None])[0, -1]
            losses.append(functional.cross_entropy(head(hidden)[None], torch.tensor([text.label])))
    batches = held_out_texts(store, context_length=40, batch_size=10, pack=pack)
    module = module_of(model)
    assert module.validate(batches) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)
    assert 0 <= module.validation_metrics["accuracy"] <= 1
    assert [Classification().count(batch) for batch in batches] == [10, 10, 4]


def test_a_text_may_fill_a_context_that_is_no_multiple_of_16() -> None:
    model = make_model(context_length=39)
    attach_head(model, 3, seed=0)
    text = encoded([5 + index % 50 for index in range(39)], 0, 1, 2)
    packed, alone = (class_logits(model, text_batch([text], 39, packed=pack))[0] for pack in (True, False))
    torch.testing.assert_close(alone, packed)


def test_a_vocabulary_without_padding_and_end_of_text_has_classes_too(tmp_path: Path) -> None:
    """As GPT-1's: nothing is taken for padding then, not even the first word."""
    backend = tokenizers.Tokenizer(WordLevel({"fine": 0, "good": 1, "bad": 2, "<unk>": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"unk_token": "<unk>"}', "utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert padding_of(tokenizer) is None
    model = make_model()
    head = attach_head(model, 2, seed=0)
    logits = Classifier(model, tokenizer, ["x", "y"]).logits(["bad fine", "good"])
    with torch.no_grad():
        torch.testing.assert_close(logits[0], head(model.eval()(torch.tensor([[2, 0]]))[0, -1]))


def test_padding_at_the_end_of_a_text_is_not_read() -> None:
    model = make_model()
    attach_head(model, 3, seed=0)
    text, padded = encoded([5, 6, 7], 0, 1, 2), encoded([5, 6, 7, 1, 1], 0, 1, 2)
    ours, theirs = (class_logits(model, text_batch([each], 32, padding_id=1))[0] for each in (text, padded))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("adapter", [True, False])
def test_texts_that_differ_are_told_apart(tmp_path: Path, adapter: bool) -> None:
    store = texts_store(tmp_path)
    model = make_model()
    if adapter:
        attach(model, LoraSettings(rank=4), family_named("qwen3"), seed=0)
    attach_head(model, 3, seed=0)
    module = module_of(model, dtype=None if adapter else torch.float32)
    names = {entry.name for entry in module.optimizer.entries}
    assert "score.weight" in names and ("embedding.weight" in names) != adapter
    batches = ClassBatches(store, context_length=40, batch_size=8, seed=0)
    results = [module.run([batches.next()], 0.5) for _ in range(20)]
    assert results[-1].metrics["accuracy"] == 1.0
    assert results[-1].loss < 0.3 * results[0].loss


def test_an_untied_head_over_tokens_is_left_alone() -> None:
    model = make_model(tie_embeddings=False, output_head_bias=True)
    attach_head(model, 3, seed=0)
    names = {entry.name for entry in module_of(model).optimizer.entries}
    assert not names & {"output_head.weight", "head_bias"}
    assert head_of(model) is not None and head_of(make_model()) is None


def test_what_is_no_classification_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="1 labels; at least 2"):
        attach_head(make_model(), 1, seed=0)
    with pytest.raises(DataError, match=r"tiny.jsonl:1: there is no label"):
        ClassBatches(answers_store(tmp_path / "answers"), context_length=40, batch_size=2)
    with pytest.raises(UsageError, match="no head over classes, but there are 3 labels"):
        Classifier(make_model(), tokenizer, LABELS)
    model = make_model(vocab_size=tokenizer.vocab_size)
    attach_head(model, 2, seed=0)
    with pytest.raises(UsageError, match="2 classes, but there are 3 labels"):
        Classifier(model, tokenizer, LABELS)
    with pytest.raises(UsageError, match="text 2 is empty"):
        Classifier(model, tokenizer, LABELS[:2]).guess(["rain", ""])
    with pytest.raises(UsageError, match="1 different labels for 2 classes"):
        Classifier(model, tokenizer, ["a", "a"]).save(tmp_path / "twice")


def test_a_damaged_classifier_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = make_model(vocab_size=tokenizer.vocab_size)
    attach_head(model, 3, seed=0)
    Classifier(model, tokenizer, LABELS).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": {"0": "only"}}))
    with pytest.raises(ModelFolderError, match="id2label is .* but the head has 3 classes"):
        Classifier.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != "id2label"}))
    assert Classifier.load(tmp_path).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_batches_show_every_text_once_an_epoch_whatever_their_size(tmp_path: Path) -> None:
    store = texts_store(tmp_path, 12)
    whole, parts = (ClassBatches(store, context_length=40, batch_size=size, seed=2, pack=False) for size in (12, 4))
    large, small = whole.next(), [parts.next() for _ in range(3)]
    targets = [batch.targets[batch.targets >= 0] for batch in (large, *small)]
    assert torch.equal(targets[0], torch.cat(targets[1:]))
    assert whole.epoch == parts.epoch == 1.0
    assert np.array_equal(np.sort(targets[0].numpy()), np.sort(store.labels))
