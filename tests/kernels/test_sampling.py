"""Tokens are drawn with exactly the probabilities that temperature, top-k, top-p, min-p and typical-p define."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor

from owngpt.kernels import library, sampling

SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 2.0, "top_k": 3},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.5, "min_p": 0.2},
    {"temperature": 1.0, "typical_p": 0.6},
    {"temperature": 1.3, "top_k": 6, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
    {"temperature": 1.0, "top_k": 100},
]
POINTS = 4_000


def exact(logits: list[float], temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
          typical_p: float = 1.0) -> dict[int, float]:  # fmt: skip
    """The distribution, token by token from the definitions."""
    best = max(logits)
    weights = {i: math.exp((x - best) / temperature) for i, x in enumerate(logits) if x > -math.inf}
    kept = sorted(weights, key=lambda i: (-weights[i], i))
    kept = kept[:top_k] if top_k else kept
    kept = reaching(kept, weights, top_p)
    kept = [i for i in kept if weights[i] >= min_p * weights[kept[0]]]
    total = sum(weights[i] for i in kept)
    information = {i: -math.log(weights[i] / total) for i in kept}
    mean = sum(weights[i] / total * information[i] for i in kept)
    if typical_p < 1:
        kept = reaching(sorted(kept, key=lambda i: abs(information[i] - mean)), weights, typical_p)
    total = sum(weights[i] for i in kept)
    return {i: weights[i] / total for i in kept}


def reaching(ranked: list[int], weights: dict[int, float], share: float) -> list[int]:
    """The fewest of the first that together have that share."""
    total, mass = sum(weights[i] for i in ranked), 0.0
    for count, i in enumerate(ranked):
        if mass >= share * total:
            return ranked[:count]
        mass += weights[i]
    return ranked


def numbers(points: np.ndarray, **settings: float) -> np.ndarray:
    plain = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    return np.array([[*{**plain, **settings}.values(), point] for point in points])


@pytest.fixture(params=["kernel", "torch"])
def choose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Both ways to choose."""
    if request.param == "torch":
        monkeypatch.setattr(library, "functions", lambda name="training": None)
    elif library.functions("inference") is None:
        pytest.skip(f"no kernels: {library.status()['reason']}")
    return sampling.choose


def random_logits(size: int, spread: float = 2.0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size)) * spread


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_evenly_spaced_points_give_each_token_its_share(choose, settings: dict[str, float]) -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 3.0, float("-inf"), 0.9, -4.0])
    expected = exact(logits.tolist(), **settings)
    counts = Counter(choose(logits.expand(POINTS, -1), numbers((np.arange(POINTS) + 0.5) / POINTS, **settings)))
    assert set(counts) <= set(expected)
    for token_id, share in expected.items():
        assert abs(counts[token_id] - share * POINTS) <= 1.5


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("spread", [0.01, 3.0, 30.0])
def test_large_vocabularies_leave_exactly_the_same_tokens(choose, settings: dict[str, float], spread: float) -> None:
    logits = random_logits(3_001, spread)
    expected = exact(logits.double().tolist(), **settings)
    ranked = sorted(expected)
    ends = np.cumsum([expected[i] for i in ranked])
    points = np.linspace(0.001, 0.999, 60)
    found = choose(logits.expand(len(points), -1), numbers(points, **settings))
    agreed = 0
    for point, token_id in zip(points, found, strict=True):
        place = min(int(np.searchsorted(ends, point, side="right")), len(ranked) - 1)
        agreed += token_id in ranked[max(0, place - 1) : place + 2]  # a boundary may fall to either side by rounding
    assert (
        agreed >= 0.9 * len(points) if "typical_p" in settings else agreed == len(points)
    )  # distances may agree but for rounding


def test_the_likeliest_is_the_first_among_equals(choose) -> None:
    logits = random_logits(1_000)
    logits[[700, 300, 999]] = 50.0
    assert choose(logits[None], numbers(np.zeros(1))) == [300]


def test_among_equals_lower_ids_stay(choose) -> None:
    flat = torch.zeros(2_000)
    points = (np.arange(500) + 0.5) / 500
    assert set(choose(flat.expand(500, -1), numbers(points, temperature=1.0, top_k=50))) == set(range(50))
    assert set(choose(flat.expand(500, -1), numbers(points, temperature=1.0, top_p=0.05))) == set(range(100))


@pytest.mark.parametrize(
    "settings", [{"top_p": 1e-9}, {"top_k": 1}, {"min_p": 1.0}, {"temperature": 1e-9}, {"temperature": 1e-300}], ids=str
)
def test_the_tightest_setting_still_leaves_the_likeliest(choose, settings: dict[str, float]) -> None:
    logits = random_logits(500)
    points = np.array([0.0, 0.5, 1 - 2**-53])
    assert set(choose(logits.expand(3, -1), numbers(points, **{"temperature": 1.0, **settings}))) == {int(logits.argmax())}


def test_what_is_forbidden_is_never_chosen_not_even_by_the_last_point(choose) -> None:
    logits = random_logits(600)
    logits[:20] = logits[-300:] = float("-inf")
    for settings in SETTINGS:
        for token_id in choose(logits.expand(2, -1), numbers(np.array([0.0, 1 - 2**-53]), **settings)):
            assert math.isfinite(logits[token_id])


def test_rows_without_a_number_are_named(choose) -> None:
    broken, infinite, nothing = random_logits(300), random_logits(300), torch.full((300,), float("-inf"))
    broken[299], infinite[3] = float("nan"), float("inf")
    rows = [random_logits(300), broken, infinite, nothing, random_logits(300)]
    for settings in ({"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}):
        found = choose(torch.stack(rows), numbers(np.full(5, 0.3), **settings))
        assert found[1:4] == [sampling.NO_NUMBER] * 3
        assert found[0] == found[4] >= 0


def test_a_row_is_chosen_the_same_alone_and_in_a_batch(choose) -> None:
    rows = [random_logits(997, spread) for spread in (0.1, 1.0, 3.0, 9.0)] * 8
    settings = np.concatenate([numbers(np.array([0.1 + i / 16]), **SETTINGS[i]) for i in range(8)] * 4)
    together = choose(torch.stack(rows), settings)
    assert together == [choose(row[None], settings[i : i + 1])[0] for i, row in enumerate(rows)]


def test_a_row_that_takes_anothers_place_is_chosen_from(choose) -> None:
    logits, other = torch.stack([random_logits(300), random_logits(300)]), torch.zeros(300)
    other[77] = 100.0
    first = int(logits[0].argmax())
    assert choose(logits, numbers(np.zeros(2)), {1: other}) == [first, 77]
    assert choose(logits, numbers(np.zeros(2))) == [first, first]
