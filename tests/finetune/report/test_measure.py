"""What is measured before and after, and that measuring changes nothing."""

from __future__ import annotations

import math
import time
from pathlib import Path

import pytest
import torch
from tiny_report import ListStore, PlainRenderer, completions, network, store_of, tokenizer

from owngpt.errors import DataError
from owngpt.finetune.examples.example import Labelled, Origin, PlainText, Preference
from owngpt.finetune.objectives.classification import attach_head
from owngpt.finetune.report.answers import answer, question_of
from owngpt.finetune.report.measure import Measurement, measure

ORIGIN = Origin("rows.jsonl", 1)


@pytest.fixture(scope="module")
def measured() -> Measurement:
    words = tokenizer()
    renderer, examples = PlainRenderer(words), completions(12)
    return measure(network(words), words, renderer, examples, store_of(renderer, examples), seconds=None, seed=3)


def test_the_loss_is_the_mean_over_all_learned_tokens(measured: Measurement) -> None:
    words = tokenizer()
    model, store = network(words).eval(), store_of(PlainRenderer(words), completions(12))
    total, count = 0.0, 0
    with torch.no_grad():
        for encoded in store.sequences:
            ids = torch.from_numpy(encoded.token_ids)
            log_probabilities = model.logits(ids[None])[0].log_softmax(-1)
            for place in range(1, len(ids)):
                if encoded.learned[place]:
                    total -= float(log_probabilities[place - 1, ids[place]])
                    count += 1
    assert sum(loss.targets for loss in measured.losses) == count
    assert measured.loss == pytest.approx(total / count, rel=1e-5)


def test_a_measurement_survives_a_file(measured: Measurement, tmp_path: Path) -> None:
    measured.write(tmp_path / "before.json")
    assert Measurement.read(tmp_path / "before.json") == measured
    (tmp_path / "before.json").write_text('{"kind": "chat"}')
    with pytest.raises(DataError, match="delete it to measure again|no measurement"):
        Measurement.read(tmp_path / "before.json")


def test_the_same_is_measured_twice_and_neither_randomness_nor_mode_changes() -> None:
    words = tokenizer()
    renderer, examples, model = PlainRenderer(words), completions(6), network(words).train()
    store, state = store_of(renderer, examples), torch.get_rng_state()
    first = measure(model, words, renderer, examples, store, seconds=None, seed=3)
    second = measure(model, words, renderer, examples, store, seconds=None, seed=3)
    assert (first.losses, first.answers, first.general) == (second.losses, second.answers, second.general)
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_little_time_measures_the_beginning_of_the_same_order(measured: Measurement) -> None:
    words = tokenizer()
    renderer, examples = PlainRenderer(words), completions(12)
    short = measure(network(words), words, renderer, examples, store_of(renderer, examples), seconds=0.0, seed=3)
    assert [answer.index for answer in short.answers] == [answer.index for answer in measured.answers][: len(short.answers)]
    was_cut = any(answer.ended == "time" for answer in short.answers)  # unless the machine was faster than the clock
    assert math.isnan(short.stop_rate) == was_cut
    assert short.general and short.losses


def test_a_text_is_gone_on_with_and_has_no_right_answer() -> None:
    words = tokenizer()
    renderer, examples = PlainRenderer(words), [PlainText("the cat sat on the mat and slept " * 2, ORIGIN)]
    (answer,) = measure(network(words), words, renderer, examples, store_of(renderer, examples), seconds=None, seed=0).answers
    assert answer.shown == examples[0].text[:32]
    assert answer.shown + " " + answer.reference in examples[0].text or answer.shown + answer.reference in examples[0].text


def test_the_sequences_of_a_preference_stay_together() -> None:
    words = tokenizer()
    renderer = PlainRenderer(words)
    examples = [Preference(f"{number}?", " good", " bad thing", Origin("p.jsonl", number)) for number in range(1, 6)]
    found = measure(network(words), words, renderer, examples, store_of(renderer, examples), seconds=None, seed=0)
    indices = [loss.index for loss in found.losses]
    assert sorted(indices) == list(range(10))
    assert all(second == first + 1 and first % 2 == 0 for first, second in zip(indices[::2], indices[1::2], strict=True))
    assert len(found.answers) == 5 and found.answers[0].reference == "good"


def test_a_classifier_takes_every_held_out_text_for_something() -> None:
    words = tokenizer()
    labels = ("no", "yes")
    renderer = PlainRenderer(words, labels)
    examples = [Labelled(text, label, ORIGIN) for text, label in (("good day", "yes"), ("bad day", "no"), ("nice", "yes"))]
    model, store = network(words), store_of(renderer, examples)
    without = measure(model, words, renderer, examples, store, seconds=None, seed=0, labels=labels)
    assert not without.guesses and math.isnan(without.loss)
    attach_head(model, 2, seed=1)
    found = measure(model, words, renderer, examples, store, seconds=None, seed=0, labels=labels)
    assert sorted((guess.index, guess.label) for guess in found.guesses) == [(0, "yes"), (1, "no"), (2, "yes")]
    assert found.loss == pytest.approx(math.log(2), rel=0.2)
    for guess in found.guesses:  # the head reads the last token's hidden state
        ids = torch.from_numpy(store.example(guess.index).token_ids[:-1])
        with torch.no_grad():
            assert labels[int(model.score(model.eval()(ids[None])[0, -1].float()).argmax())] == guess.guess
    assert not found.answers


def test_nothing_held_out_is_no_error() -> None:
    words = tokenizer()
    found = measure(network(words), words, PlainRenderer(words), [], ListStore([]), seconds=None, seed=0)
    assert not found.losses and not found.answers and found.general


def test_ten_answers_come_first_and_a_cut_wave_counts_for_no_rate() -> None:
    words = tokenizer()
    renderer, model, examples = PlainRenderer(words), network(words).eval(), completions(40)
    questions = [question_of(index, example, renderer.encode(example), words) for index, example in enumerate(examples)]
    assert None not in questions
    whole = answer(model, words, questions, limit=20, deadline=None, most=40)
    assert len(whole) == 40 and all(each.counts for each in whole)
    cut = answer(model, words, questions, limit=120, deadline=time.monotonic() + 0.01, most=40)
    assert len(cut) == 10 and not any(each.counts for each in cut)
    for short, full in zip(cut, answer(model, words, questions, limit=120, deadline=None, most=10), strict=True):
        assert full.text.startswith(short.text[:-1])
