"""The card says what the model is made of and gives away nothing else."""

from __future__ import annotations

import yaml

from owngpt.formats.card import model_card
from owngpt.model.config import GPTConfig
from owngpt.text.training import train_tokenizer

CONFIG = GPTConfig(
    vocab_size=280, context_length=32, hidden_size=32, layers=2, heads=4, key_value_heads=2, head_size=8, intermediate_size=64
)


def card() -> str:
    return model_card(
        name="my | books",
        config=CONFIG,
        data={
            "sources": [{"path": "/home/somebody/secret/book.txt", "bytes": 123456, "sha256": "ab" * 32}] * 25,
            "languages": {"en": 900, "zh": 80, "other": 20},
            "removed": {"near duplicate": {"documents": 3, "bytes": 10, "samples": ["/home/somebody: private words"]}},
            "train": {"documents": 10, "bytes": 20},
            "lengths": {"64": 1},
        },
        plan={"seed": 1, "model": CONFIG.to_dict(), "optimizer": {"kind": "muon"}, "reasons": ("because | so",)},
        training={"steps": 12000, "finished": True},
        score={"bits_per_byte": 1.23456789},
        samples=[{"prompt": "Once", "text": " upon\n```\n# not a heading\n```"}],
        tokenizer=train_tokenizer([], kind="byte"),
    )


def test_metadata_is_yaml_that_hubs_read() -> None:
    block = card().split("---\n")[1]
    assert yaml.safe_load(block) == {
        "language": ["en", "zh"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["owngpt"],
    }


def test_facts_are_there() -> None:
    text = card()
    for fact in ("bits_per_byte | 1.23457", "steps | 12,000", "ab" * 32, "book.txt", "and 5 more", "near duplicate: 3", "muon"):
        assert fact in text
    assert "# my \\| books" in text


def test_folders_and_removed_text_stay_private() -> None:
    assert "somebody" not in card()
    assert "private" not in card()


def test_a_sample_cannot_leave_its_fence() -> None:
    assert "````text\nOnce upon\n```\n# not a heading\n```\n````" in card()


def test_a_card_needs_only_a_name_and_a_shape() -> None:
    text = model_card(name="x", config=CONFIG)
    assert "# x" in text
    assert "## Data" not in text
