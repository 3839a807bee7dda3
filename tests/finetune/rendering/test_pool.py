"""Processes that render change how fast sequences come, never which."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from owngpt.errors import DataError
from owngpt.finetune.examples.example import Chat, Completion, Example, Labelled, Origin, PlainText, Preference
from owngpt.finetune.rendering import pool as rendering_pool
from owngpt.finetune.rendering.pool import encode_all
from owngpt.finetune.rendering.renderer import Renderer
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content if loop.last else m.content[-2:]) + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""Earlier messages are shortened, so that every answer takes a sequence of its own."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["The cat sat on the mat. " * 20], vocab_size=300)


def examples(count: int) -> list[Example]:
    made: list[Example] = []
    for index in range(count):
        origin = Origin(f"{index % 3}.jsonl", index + 1)
        chat = ({"role": "user", "content": f"Say {index} 猫"}, {"role": "assistant", "content": f"{index}!"})
        kinds: list[Example] = [
            Chat((*chat, *chat), origin),
            Completion(f"{index} and", " one", origin),
            PlainText(f"text {index}", origin),
            Preference(chat[:1], chat[1:], ({"role": "assistant", "content": "no"},), origin),
            Labelled(f"text {index}", "good", origin),
        ]
        made.append(kinds[index % len(kinds)])
    return made


def plain(encoded: Iterable[Encoded]) -> list[tuple[object, ...]]:
    return [(each.token_ids.tolist(), each.learned.tolist(), each.origin, each.label) for each in encoded]


def in_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering_pool, "PARALLEL_FROM", 20)
    monkeypatch.setattr(rendering_pool, "CHUNK", 7)


def test_sequences_are_the_same_for_every_number_of_processes(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parallel(monkeypatch)
    tokenizer = tokenizer.with_chat_template(THOUGHTS)
    here, there = (Renderer(tokenizer, labels=["bad", "good"], system="Be kind") for _ in range(2))
    assert plain(encode_all(there, examples(60), workers=2)) == plain(here.encode_all(examples(60)))
    assert there.separate_turns == here.separate_turns > 0


def test_what_is_chosen_elsewhere_is_chosen_here(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parallel(monkeypatch)
    renderer = Renderer(tokenizer, labels=["good"])
    list(encode_all(renderer, examples(60), workers=2))
    assert renderer.tokenizer.chat_template and len(renderer.notes) == 1 and "ChatML was chosen" in renderer.notes[0]
    texts = Renderer(tokenizer)
    list(encode_all(texts, [example for example in examples(200) if isinstance(example, PlainText)], workers=2))
    assert texts.tokenizer.chat_template is None and not texts.notes


def test_a_bad_example_stops_everything_or_is_counted(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parallel(monkeypatch)
    rows = examples(60)
    rows[31] = Labelled("text", "unheard of", Origin("1.jsonl", 32))
    renderer = Renderer(tokenizer, labels=["good"])
    with pytest.raises(DataError, match="1.jsonl:32: unknown label 'unheard of'"):
        list(encode_all(renderer, rows, workers=2))
    assert plain(encode_all(renderer, rows, workers=2, skip_bad=True)) == plain(
        Renderer(tokenizer, labels=["good"]).encode_all(rows, skip_bad=True)
    )
    assert renderer.refused_count == 1 and "1.jsonl:32" in renderer.refused[0]


def test_few_examples_take_no_process(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering_pool, "Processes", None)
    assert len(list(encode_all(Renderer(tokenizer, labels=["good"]), examples(10)))) == 12
