"""Speculation changes how many tokens a step writes, and no text."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch

from owngpt.config.generation import GenerationConfig
from owngpt.engine.draft import DraftModel
from owngpt.engine.engine import Engine
from owngpt.engine.packing import pack_model, recordable
from owngpt.engine.request import Request
from owngpt.engine.runner import PackedRunner, Runner
from owngpt.engine.sequence import Generation
from owngpt.engine.speculation import MEASURED, PAUSE, REFRESH, Lookup, Payoff, Speculation
from owngpt.engine.torch_runner import TorchRunner
from owngpt.errors import UsageError
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.training import train_tokenizer

CONTEXT = 256
TOKENIZER = train_tokenizer([], kind="byte")
CONFIG = GPTConfig(
    vocab_size=TOKENIZER.vocab_size, context_length=CONTEXT, hidden_size=64, layers=2, heads=2, key_value_heads=1, head_size=32,
    intermediate_size=96,
)  # fmt: skip
REPEATING = tuple(b"one two three four five six seven, " * 4)


class Always(Payoff):
    """Guesses in every step, whatever it costs."""

    def wants(self, texts: int) -> bool:
        """Yes."""
        return True

    def took(self, texts: int, written: int | None, seconds: float) -> None:
        """Nothing to learn."""


def speculation(draft: DraftModel | None = None, *, lookup: bool = True) -> Speculation:
    made = Speculation(lookup=lookup, draft=draft)
    made._payoff = Always()
    return made


def model_of(seed: int = 1) -> GPT:
    """Random weights that have strong opinions, so that rounding does not change the likeliest token."""
    model = GPT(CONFIG, generator=torch.Generator().manual_seed(seed)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 6
    return model


def runners(blocks: int = 64) -> list[Runner]:
    found: list[Runner] = [TorchRunner(model_of(), blocks)]
    if recordable(model_of()) is None:
        found.append(PackedRunner(pack_model(model_of(), "bf16"), blocks))
    return found


def requests() -> list[Request]:
    settings = [
        GenerationConfig(max_new_tokens=24, temperature=0.0),
        GenerationConfig(max_new_tokens=15, temperature=0.7, seed=3, top_k=20),
        GenerationConfig(max_new_tokens=18, temperature=0.0, repetition_penalty=1.1),
        GenerationConfig(max_new_tokens=7, temperature=0.2, seed=5, num_return_sequences=2, stop=("ab",)),
    ]
    prompts = [REPEATING, REPEATING[:9], tuple(range(30, 90)), (40,)]
    return [Request(prompt, config, end_ids=frozenset({7})) for prompt in prompts for config in settings]


def texts(engine: Engine, *, together: bool) -> list[list[Generation]]:
    if together:
        return [stream.result() for stream in [engine.submit(request) for request in requests()]]
    return [engine.submit(request).result() for request in requests()]


@cache
def texts_without() -> list[list[Generation]]:
    with Engine(TorchRunner(model_of(), 64), TOKENIZER, context_length=CONTEXT) as engine:
        return texts(engine, together=False)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("kind", ["lookup", "draft", "both"])
def test_texts_are_those_without_speculation(kind: str, together: bool) -> None:
    expected = texts_without()
    runner = TorchRunner(model_of(), 64)
    # The same model as its own draft guesses nearly all greedy tokens right, another one hardly any.
    draft = DraftModel(TorchRunner(model_of(1 if together else 2), 40), TOKENIZER, for_tokenizer=TOKENIZER)
    guessing = speculation(None if kind == "lookup" else draft, lookup=kind != "draft")
    with Engine(runner, TOKENIZER, context_length=CONTEXT, speculation=guessing) as engine:
        assert texts(engine, together=together) == expected
        engine.check()
        stats = engine.stats()
        assert stats.guessed_tokens > stats.accepted_tokens > 0
        assert stats.free_blocks == stats.blocks
        if kind == "draft" and together:
            assert stats.accepted_tokens > stats.guessed_tokens / 2
    assert draft.free_blocks == 39


def test_a_text_that_repeats_itself_takes_fewer_steps_on_both_runners() -> None:
    request = Request(REPEATING, GenerationConfig(max_new_tokens=60, temperature=0.0), end_ids=frozenset())
    for plain, guessing in zip(runners(), runners(), strict=True):
        with Engine(plain, TOKENIZER, context_length=CONTEXT) as engine:
            expected = engine.submit(request).result()
        with Engine(guessing, TOKENIZER, context_length=CONTEXT, speculation=speculation()) as engine:
            found = engine.submit(request).result()
            stats = engine.stats()
        if isinstance(plain, TorchRunner):
            assert found == expected
        else:  # up to where two tokens are as likely as each other within bfloat16's rounding
            same = [a == b for a, b in zip(found[0].token_ids, expected[0].token_ids, strict=True)]
            assert all(same[:20])
        assert stats.steps == 1 + 59 - stats.accepted_tokens
        assert stats.accepted_tokens > 15


def test_random_schedules_with_guesses_lose_no_block() -> None:
    generator = random.Random(2)
    for runner in runners(14):
        with Engine(runner, TOKENIZER, context_length=CONTEXT, speculation=speculation()) as engine:
            streams = []
            for request in [*requests(), *requests()]:
                streams.append(engine.submit(request))
                if generator.random() < 0.2:
                    generator.choice(streams).cancel()
                engine.check()
            for stream in streams:
                stream.result()
            engine.check()
            assert engine.stats().free_blocks == 13


def test_lookup_goes_on_as_the_text_did_before() -> None:
    lookup = Lookup()
    text = [1, 2, 3, 4, 5, 9, 2, 3, 4]
    assert lookup.guess(text, 3) == [5, 9, 2]
    assert lookup.guess([*text, 6], 3) == []
    assert Lookup().guess([7, 8, 7, 8, 7, 8], 5) == [7, 8, 7, 8, 7]
    assert Lookup().guess([7], 5) == Lookup().guess([], 5) == []
    latest = [1, 2, 3, 5, 1, 2, 3, 6, 2, 3]
    assert Lookup().guess(latest, 1) == [6]


def steps(payoff: Payoff, count: int, written: int, plain: float, guessed: float) -> int:
    """Steps in which it wanted guesses."""
    wanted = 0
    for _ in range(count):
        wants = payoff.wants(1)
        wanted += wants
        payoff.took(1, written if wants else None, guessed if wants else plain)
    return wanted


def test_guessing_stops_where_it_does_not_pay_and_goes_on_where_it_does() -> None:
    count = 20 * REFRESH
    assert steps(Payoff(), count, written=3, plain=1.0, guessed=1.5) > 0.95 * count
    assert steps(Payoff(), count, written=1, plain=1.0, guessed=1.1) < 0.05 * count
    payoff = Payoff()
    steps(payoff, MEASURED + MEASURED // 2, written=1, plain=1.0, guessed=1.5)
    assert steps(payoff, PAUSE, written=3, plain=1.0, guessed=1.5) == 0
    assert steps(payoff, count, written=3, plain=1.0, guessed=1.5) > 0.9 * count


def test_a_draft_with_another_tokenizer_is_refused() -> None:
    other = train_tokenizer(["some words that are merged, some words"] * 9, kind="bpe", vocab_size=300)
    with pytest.raises(UsageError, match="another tokenizer"):
        DraftModel(TorchRunner(model_of(), 8), other, for_tokenizer=TOKENIZER)


def test_a_draft_that_fails_is_left_out() -> None:
    class Broken(TorchRunner):
        """A runner that cannot run."""

        def run(self, parts: object) -> torch.Tensor:
            """No."""
            raise RuntimeError("no")

    draft = DraftModel(Broken(model_of(), 8), TOKENIZER, for_tokenizer=TOKENIZER)
    with Engine(TorchRunner(model_of(), 64), TOKENIZER, context_length=CONTEXT, speculation=speculation(draft)) as engine:
        with pytest.warns(RuntimeWarning, match="speculation is off: no"):
            assert len(engine.submit(requests()[8]).result()[0].token_ids) == 24
        engine.check()
