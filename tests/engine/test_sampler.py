"""What is drawn has the distribution that temperature, top-k, top-p, min-p and the repetition penalty define."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from owngpt.config.generation import GenerationConfig
from owngpt.engine.sampler import Sampler, candidates, penalize
from owngpt.errors import ModelFolderError

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 3.0, float("-inf")])
DRAWS = 4_000


def exact(temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> dict[int, float]:
    """The distribution written out token by token from the definitions."""
    weights = {i: math.exp(x / temperature) for i, x in enumerate(LOGITS.tolist()) if x > -math.inf}
    ranked = sorted(weights, key=lambda i: -weights[i])
    if top_k:
        ranked = ranked[:top_k]
    total = sum(weights[i] for i in ranked)
    nucleus, mass = [], 0.0
    for i in ranked:
        if mass >= top_p:
            break
        nucleus.append(i)
        mass += weights[i] / total
    kept = [i for i in nucleus if weights[i] >= min_p * weights[ranked[0]]]
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.5, "min_p": 0.2},
    {"temperature": 1.3, "top_k": 6, "top_p": 0.95, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 100},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_have_the_exact_distribution(settings: dict[str, float]) -> None:
    expected = exact(**settings)
    sampler = Sampler(GenerationConfig(seed=5, **settings))
    counts = Counter(sampler.pick(LOGITS, ()) for _ in range(DRAWS))
    assert set(counts) <= set(expected)
    chi_square = sum((counts[i] - DRAWS * p) ** 2 / (DRAWS * p) for i, p in expected.items())
    freedom = len(expected) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 10  # one in a million by chance; a wrong share is far beyond


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_candidates_are_exactly_those_of_the_definitions(settings: dict[str, float]) -> None:
    probabilities, ids = candidates(LOGITS, GenerationConfig(**settings))
    got = {i: p for i, p in zip(ids.tolist(), probabilities.tolist(), strict=True) if p > 0}
    assert got == pytest.approx(exact(**settings), rel=1e-6)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert {Sampler(GenerationConfig(temperature=0.0)).pick(LOGITS, ()) for _ in range(5)} == {6}


@pytest.mark.parametrize("settings", [{"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 1e-9}], ids=str)
def test_the_tightest_setting_still_leaves_the_likeliest(settings: dict[str, float]) -> None:
    sampler = Sampler(GenerationConfig(**settings))
    assert {sampler.pick(LOGITS, ()) for _ in range(20)} == {6}


def test_repetition_penalty_lowers_used_tokens_only() -> None:
    penalized = penalize(LOGITS, [0, 5, 5], 2.0)
    assert penalized.tolist() == [1.0, 1.0, 0.5, 0.0, -0.5, -2.0, 3.0, float("-inf")]
    assert Sampler(GenerationConfig(temperature=0.0, repetition_penalty=2.0)).pick(LOGITS, [6]) == 0


def test_the_same_seed_draws_the_same_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, second = (Sampler(GenerationConfig(seed=9)) for _ in range(2))
    assert [first.pick(LOGITS, ()) for _ in range(50)] == [second.pick(LOGITS, ()) for _ in range(50)]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_each_sampler_draws_its_own() -> None:
    flat = torch.zeros(1000)
    first, second = (Sampler(GenerationConfig()) for _ in range(2))
    assert [first.pick(flat, ()) for _ in range(20)] != [second.pick(flat, ()) for _ in range(20)]


def test_sequences_of_one_request_and_of_the_next_seed_differ() -> None:
    flat = torch.zeros(1000)
    streams = [Sampler(GenerationConfig(seed=seed), index) for seed in (7, 8) for index in (0, 1)]
    assert len({tuple(sampler.pick(flat, ()) for _ in range(20)) for sampler in streams}) == 4


def test_logits_that_are_not_numbers_are_an_error() -> None:
    with pytest.raises(ModelFolderError, match="not a number"):
        Sampler(GenerationConfig()).pick(torch.tensor([1.0, float("nan")]), ())
