"""A small model and examples for it, encoded in the plainest way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from owngpt.finetune.examples.example import Completion, Example, Labelled, Origin, PlainText, Preference
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

WORDS = ("red", "blue", "green", "warm", "cold", "soft", "slow", "kind")


def tokenizer() -> Tokenizer:
    return train_tokenizer([], kind="byte")


def network(tokenizer: Tokenizer, context_length: int = 128, seed: int = 0) -> GPT:
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, context_length=context_length, hidden_size=64, layers=2, heads=2, key_value_heads=2,
        head_size=32, intermediate_size=128,
    )  # fmt: skip
    return GPT(config, generator=torch.Generator().manual_seed(seed))


def completions(count: int) -> list[Example]:
    return [
        Completion(f"{WORDS[index % 8]} {WORDS[index // 8 % 8]}?", f" {WORDS[index % 8]}!", Origin("faq.jsonl", index + 1))
        for index in range(count)
    ]


class PlainRenderer:
    """Prompt, answer, end of text."""

    def __init__(self, tokenizer: Tokenizer, labels: Sequence[str] = ()) -> None:
        self.tokenizer, self.labels = tokenizer, labels

    def encode(self, example: Example) -> list[Encoded]:
        match example:
            case Completion(prompt=prompt, completion=completion):
                return [self._pair(prompt, completion, example.origin)]
            case Preference(prompt=str(prompt), chosen=str(chosen), rejected=str(rejected)):
                return [self._pair(prompt, answer, example.origin) for answer in (chosen, rejected)]
            case PlainText(text=text):
                return [self._pair("", text, example.origin)]
            case Labelled(text=text, label=label):
                ids = np.array([*self.tokenizer.encode(text), self.tokenizer.end_of_text_id])
                return [Encoded(ids, np.zeros(len(ids), dtype=bool), example.origin, self.labels.index(label))]
        raise AssertionError(example)

    def _pair(self, prompt: str, answer: str, origin: Origin) -> Encoded:
        before, after = self.tokenizer.encode(prompt), [*self.tokenizer.encode(answer), self.tokenizer.end_of_text_id]
        learned = np.array([False] * len(before) + [True] * len(after))
        learned[0] = False
        return Encoded(np.array([*before, *after]), learned, origin)


class ListStore:
    """Sequences in memory."""

    def __init__(self, sequences: Sequence[Encoded]) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def example(self, index: int) -> Encoded:
        return self.sequences[index]


def store_of(renderer: PlainRenderer, examples: Sequence[Example]) -> ListStore:
    return ListStore([encoded for example in examples for encoded in renderer.encode(example)])


def learn(model: GPT, store: ListStore, steps: int, learning_rate: float = 3e-3) -> None:
    """A few steps of plain AdamW, one example at a time in turn."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    for step in range(steps):
        chosen = [store.example((step * 8 + offset) % len(store)) for offset in range(8)]
        longest = max(map(len, chosen))
        inputs = torch.zeros(8, longest - 1, dtype=torch.int64)
        targets = torch.full((8, longest - 1), -100)
        for row, encoded in enumerate(chosen):
            ids = torch.from_numpy(encoded.token_ids).long()
            inputs[row, : len(ids) - 1] = ids[:-1]
            targets[row, : len(ids) - 1] = torch.where(torch.from_numpy(encoded.learned)[1:], ids[1:], -100)
        optimizer.zero_grad()
        model.loss(inputs, targets, scale=1 / int((targets >= 0).sum())).backward()
        optimizer.step()
