"""What is not finite or leaps far out of line is not learned from; ordinary noise is."""

from __future__ import annotations

import json
import math
import random

from owngpt.train.stability import LEAST, SpikeDetector


def trained(steps: int = 100) -> SpikeDetector:
    chance = random.Random(0)
    detector = SpikeDetector()
    for step in range(steps):
        loss, norm = 3.0 - step / 200 + chance.gauss(0, 0.05), 0.5 + chance.random() / 5
        assert detector.accepts(loss, norm)
        detector.record(loss, norm)
    return detector


def test_losses_that_are_not_finite_are_refused() -> None:
    for loss, norm in ((math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)):
        assert not SpikeDetector().accepts(loss, norm)


def test_a_spike_needs_both_a_loss_and_a_gradient_out_of_line() -> None:
    detector = trained()
    assert not detector.accepts(9.0, 20.0)
    assert detector.accepts(9.0, 1.0)
    assert detector.accepts(2.6, 20.0)


def test_the_first_steps_are_never_called_spikes() -> None:
    detector = SpikeDetector()
    for _ in range(LEAST - 1):
        detector.record(2.0, 0.1)
    assert detector.accepts(100.0, 100.0)


def test_the_judgement_survives_a_checkpoint() -> None:
    detector, restored = trained(), SpikeDetector()
    restored.load_state_dict(json.loads(json.dumps(detector.state_dict())))
    assert restored.state_dict() == detector.state_dict()
    assert not restored.accepts(9.0, 20.0)
