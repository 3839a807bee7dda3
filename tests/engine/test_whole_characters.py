"""Whatever an untrained model of bytes likes best, what is written is valid UTF-8, and a model of whole tokens is left alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tests.engine import poem
from tests.engine.test_generate import wild_model

from owngpt.config.generation import GenerationConfig
from owngpt.engine.engine import Engine
from owngpt.engine.request import Finished, Piece, Request
from owngpt.engine.sampling import Choice, Sampler, pick
from owngpt.engine.speculation import Speculation
from owngpt.engine.torch_runner import TorchRunner
from owngpt.text.characters import REFUSED, state_after

TOKENIZER = poem.tokenizer()
V = TOKENIZER.vocab_size
PROMPT = tuple(TOKENIZER.encode("春眠"))


@cache
def engine(speculates: bool = False) -> Engine:
    speculation = Speculation() if speculates else None
    return Engine(TorchRunner(wild_model(256), 100), TOKENIZER, context_length=256, speculation=speculation)


def written(token_ids: tuple[int, ...]) -> bytes:
    return b"".join(TOKENIZER.token_bytes(token_id) for token_id in token_ids if token_id not in TOKENIZER.special_id_set)


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 2.0, "num_return_sequences": 8},
    {"temperature": 1.5, "top_p": 0.9, "top_k": 40, "num_return_sequences": 4},
    {"temperature": 0.0, "repetition_penalty": 1.5, "logit_bias": dict.fromkeys(TOKENIZER.encode("眠"), 100.0)},
    {"num_beams": 4, "num_return_sequences": 4},
    {"temperature": 1.0, "no_repeat_ngram_size": 3, "num_return_sequences": 4},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_text_has_a_broken_character(options: dict[str, Any]) -> None:
    config = GenerationConfig(max_new_tokens=80, seed=3, **options)
    for generation in engine().submit(Request(PROMPT, config)).result():
        data = written(generation.token_ids)
        assert state_after(data) != REFUSED
        assert "\ufffd" not in generation.text
        assert data.decode(errors="ignore") == generation.text  # what the end of the text cut in two is left out
        if generation.stop_reason == "end":
            assert data.decode() == generation.text


def test_an_untrained_model_alone_would_break_them() -> None:
    """Else the tests above would prove nothing."""
    ids = list(PROMPT)
    with torch.inference_mode():
        for _ in range(40):
            ids.append(int(wild_model(256).logits(torch.tensor([ids]))[0, -1].argmax()))
    assert state_after(written(tuple(ids[len(PROMPT) :]))) == REFUSED


def test_pieces_alone_in_a_batch_and_with_guesses_are_the_same_text() -> None:
    config = GenerationConfig(max_new_tokens=60, temperature=1.3, seed=11)
    alone = engine().submit(Request(PROMPT, config)).result()[0]
    streams = [
        engine().submit(Request(PROMPT, GenerationConfig(max_new_tokens=60, temperature=1.3, seed=seed))) for seed in (11, 12)
    ]
    events = list(streams[0])
    assert next(event.generation for event in events if isinstance(event, Finished)) == alone
    assert "".join(event.text for event in events if isinstance(event, Piece)) == alone.text
    streams[1].result()
    assert engine(speculates=True).submit(Request(PROMPT, config)).result()[0] == alone


def test_draws_have_the_probabilities_of_the_valid_tokens() -> None:
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(2)) * 2
    config = GenerationConfig(seed=4)
    draws = 6000
    samplers = [Sampler(config, TOKENIZER, index, prompt_tokens=1) for index in range(draws)]
    ids = [20, *TOKENIZER.encode("眠")[:1]]
    choices = pick(logits.expand(draws, -1), samplers, [ids] * draws)
    found = torch.bincount(torch.tensor([choice.token_id for choice in choices if isinstance(choice, Choice)]), minlength=V)
    breaks = samplers[0].breaks_characters(ids)
    assert breaks is not None
    expected = (logits[0] / config.temperature).masked_fill(torch.from_numpy(breaks), float("-inf")).softmax(0)
    assert int(found.sum()) == draws
    assert bool((found[expected == 0] == 0).all())
    likely = expected * draws >= 5
    chi_square = float(((found - expected * draws) ** 2 / (expected * draws))[likely].sum())
    freedom = int(likely.sum())
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 10


def test_biases_that_leave_only_broken_characters_give_way() -> None:
    ids = [20, *TOKENIZER.encode("眠")[:1]]
    sampler = Sampler(GenerationConfig(temperature=0.0, no_repeat_ngram_size=1), TOKENIZER, prompt_tokens=1)
    used = [*range(16, V)]  # every token has been there, so none may come again
    (choice,) = pick(torch.randn(1, V, generator=torch.Generator().manual_seed(1)), [sampler], [[*used, *ids[1:]]])
    assert isinstance(choice, Choice)
    assert sampler.keeps_characters([*used, *ids[1:]], choice.token_id)


def test_rows_of_whole_tokens_are_not_even_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("masked")

    monkeypatch.setattr("owngpt.engine.sampling.without_broken", fail)
    sampler = Sampler(GenerationConfig(temperature=0.0), TOKENIZER)
    logits = torch.zeros(1, V)
    logits[0, TOKENIZER.encode("a")[0]] = 9.0
    (choice,) = pick(logits, [sampler], [[]])
    assert isinstance(choice, Choice)
    assert choice.token_id == TOKENIZER.encode("a")[0]
