"""What leaps far out of line is not learned from; ordinary noise is."""

from __future__ import annotations

import json
import math
import random
import statistics

import pytest

from owngpt.train.stability import LEAST, WINDOW, SpikeDetector


def trained(steps: int = 100) -> SpikeDetector:
    chance = random.Random(0)
    detector = SpikeDetector()
    for step in range(steps):
        loss, norm = 3.0 - step / 200 + chance.gauss(0, 0.05), 0.5 + chance.random() / 5
        assert not is_spike(detector, loss, norm)
        detector.record(loss, norm)
    return detector


def is_spike(detector: SpikeDetector, loss: float, norm: float) -> bool:
    loss_limit, norm_limit = detector.limits()
    return loss > loss_limit and norm > norm_limit


def test_a_spike_needs_both_a_loss_and_a_gradient_out_of_line() -> None:
    detector = trained()
    assert is_spike(detector, 9.0, 20.0)
    assert not is_spike(detector, 9.0, 1.0)
    assert not is_spike(detector, 2.6, 20.0)


def test_the_limits_are_six_deviations_and_ten_medians() -> None:
    detector = trained()
    losses, norms = detector.state_dict()["losses"], detector.state_dict()["norms"]
    assert len(losses) == WINDOW
    assert detector.limits() == pytest.approx(
        (statistics.mean(losses) + 6 * statistics.pstdev(losses), 10 * statistics.median(norms))
    )


def test_the_first_steps_are_never_called_spikes() -> None:
    detector = SpikeDetector()
    for _ in range(LEAST - 1):
        detector.record(2.0, 0.1)
    assert detector.limits() == (math.inf, math.inf)


def test_the_judgement_survives_a_checkpoint() -> None:
    detector, restored = trained(), SpikeDetector()
    restored.load_state_dict(json.loads(json.dumps(detector.state_dict())))
    assert restored.limits() == detector.limits()
