"""Two measurements are compared on what both have, and what is off is said in words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from owngpt.finetune.report.answers import Answer
from owngpt.finetune.report.comparison import compare
from owngpt.finetune.report.concerns import concerns
from owngpt.finetune.report.facts import RunFacts
from owngpt.finetune.report.forgetting import FILES, GeneralLoss, general_texts
from owngpt.finetune.report.labels import Confusion, Guess
from owngpt.finetune.report.losses import SequenceLoss
from owngpt.finetune.report.measure import Measurement

GENERAL = (GeneralLoss("English", 0, 70.0, 35, 100), GeneralLoss("Chinese", 0, 300.0, 60, 150))


def answered(index: int, text: str = "fine", ended: str = "end", loops: bool = False) -> Answer:
    return Answer(index, "?", "fine", text, 4, ended, 1.0, loops)


def measured(**other: object) -> Measurement:
    losses = tuple(SequenceLoss(index, 10.0, 5) for index in range(30))
    usual = Measurement("chat", 30, losses, GENERAL, tuple(answered(index) for index in range(20)), (), 64, 1.0)
    return replace(usual, **other)


def named(before: Measurement, after: Measurement, records=(), facts: RunFacts | None = None) -> dict[str, str]:
    facts = facts or RunFacts(examples=500, tokens=10_000, learned=5_000, learning_rate=1e-3)
    return {concern.name: str(concern) for concern in concerns(before, after, compare(before, after), facts, records)}


def trained(losses: list[float], split: str = "train") -> list[dict[str, object]]:
    return [{"split": split, "step": 10 * (place + 1), "loss": loss, "epoch": place / 4} for place, loss in enumerate(losses)]


BETTER = measured(losses=tuple(SequenceLoss(index, 5.0, 5) for index in range(30)))


def test_a_run_without_fault_has_no_concern() -> None:
    assert named(measured(), BETTER, [*trained([2.0, 1.5, 1.2, 1.1]), *trained([1.6, 1.3, 1.29], "validation")]) == {}


def test_only_what_both_have_is_compared() -> None:
    before = measured(losses=tuple(SequenceLoss(index, 10.0 + index, 5) for index in range(10)))
    after = measured(losses=tuple(SequenceLoss(index, 4.0 + 2 * index, 5) for index in range(5, 30)))
    line = compare(before, after).line("loss")
    assert line is not None
    assert (line.count, line.wins) == (5, 1)  # of 5 to 9, only 5 became better: 14 < 15
    assert line.before == pytest.approx(sum(10 + index for index in range(5, 10)) / 25)
    assert line.after == pytest.approx(sum(4 + 2 * index for index in range(5, 10)) / 25)


def test_answers_beside_which_others_were_cut_off_are_not_counted() -> None:
    cut = tuple(replace(answered(index, ended=ended), counts=False) for index, ended in ((2, "time"), (3, "end")))
    after = measured(answers=(answered(0), answered(1, ended="length"), *cut))
    rate = compare(measured(), after).line("stop rate")
    assert rate is not None and (rate.count, rate.after) == (2, 0.5)
    assert after.stop_rate == 0.5


def test_forgetting_counts_the_languages_that_the_model_knew() -> None:
    comparison = compare(measured(), measured(general=(replace(GENERAL[0], nats=71.75), replace(GENERAL[1], nats=600.0))))
    assert comparison.knows == ("English",)  # Chinese costs 2.9 bits a byte
    assert comparison.forgetting is not None and comparison.forgetting.change == pytest.approx(math.exp(0.05) - 1)
    assert [line.name for line in comparison.forgotten] == ["perplexity", "bits per byte, English", "bits per byte, Chinese"]


def test_forgetting_is_said_with_what_to_do_about_it() -> None:
    said = named(measured(), replace(BETTER, general=(replace(GENERAL[0], nats=75.0), GENERAL[1])))["forgetting"]
    assert "rose by 15.4%" in said and "--replay 0.1" in said and "--lora" in said


def test_a_preference_is_won_token_for_token_and_moved_by_the_whole_answer() -> None:
    # Pair 0: rejected is shorter, hence likelier as a whole, but not token for token. Pair 1: rejected is likelier.
    before = (SequenceLoss(0, 10.0, 10), SequenceLoss(1, 6.0, 3), SequenceLoss(2, 9.0, 3), SequenceLoss(3, 3.0, 3))
    after = (SequenceLoss(0, 9.0, 10), SequenceLoss(1, 7.0, 3), SequenceLoss(2, 8.0, 3), SequenceLoss(3, 1.0, 3))
    pairs = [measured(kind="preference", examples=2, losses=losses) for losses in (before, after)]
    comparison = compare(*pairs)
    lines = {line.name: line for line in comparison.gained}
    assert (lines["win rate"].before, lines["win rate"].after) == (0.5, 0.5)
    assert lines["win rate against the network of before"].after == 0.5
    assert lines["loss of the chosen answers"].after == pytest.approx(17 / 13)
    assert "preference not learned" in named(*pairs)


@pytest.mark.parametrize(
    ("name", "after", "records", "words"),
    [
        ("nothing gained", measured(), [], "2.000 before, 2.000 after"),
        ("overfit", BETTER, [*trained([2.0, 1.0, 0.2]), *trained([1.5, 1.2, 1.6], "validation")], "--epochs 0.2"),
        ("learning rate too high", BETTER, [*trained([1.0] * 3 + [1.1] * 3 + [1.2] * 3 + [1.6] * 3)], "--learning-rate 0.0003"),
        ("learning rate too high", BETTER, [{"event": "skipped", "step": 3}], "1 steps were not taken"),
        ("never stops", replace(BETTER, answers=tuple(answered(i, ended="length") for i in range(20))), [], "--show 3"),
        ("repeats itself", replace(BETTER, answers=tuple(answered(i, loops=True) for i in range(20))), [], "100% of the answers"),
        ("very short", BETTER, [{"split": "train", "step": 4, "loss": 2.0}], "--minutes"),
        ("stopped early", BETTER, trained([4.0, 3.0, 2.0, 1.5], "validation"), "--minutes"),
        ("little time to measure", replace(BETTER, answers=()), [], "before ten answers"),
    ],
)  # fmt: skip
def test_what_is_off_is_named_with_its_remedy(name: str, after: Measurement, records: list, words: str) -> None:
    said = named(measured(), after, records)
    assert list(said) == [name]
    assert words in said[name]


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("all masked", RunFacts(examples=100, tokens=900, learned=0), "--columns"),
        ("masked", RunFacts(examples=100, tokens=900, learned=500, masked=40), "In 40 of 140"),
        ("nearly all masked", RunFacts(examples=100, tokens=9000, learned=90), "1.0%"),
        ("too long", RunFacts(examples=100, tokens=900, learned=500, dropped=25), "25 examples (20%)"),
        ("few examples", RunFacts(examples=12, tokens=900, learned=500), "only 12 examples"),
        ("learned by heart", RunFacts(examples=100, tokens=900, learned=500, shared=7), "7 held-out examples ask"),
    ],
)
def test_what_is_off_about_the_examples_is_named(name: str, facts: RunFacts, words: str) -> None:
    said = named(measured(), BETTER, facts=facts)
    assert list(said) == [name] and words in said[name]


def test_a_model_that_repeats_itself_less_than_before_is_still_told_of() -> None:
    before = measured(answers=tuple(answered(index, loops=True) for index in range(20)))
    after = replace(BETTER, answers=tuple(answered(index, loops=index < 4) for index in range(20)))
    assert "20% of the answers" in (said := named(before, after)["repeats itself"]) and "--repetition-penalty" in said


def test_facts_are_read_from_stores_and_plans() -> None:
    train = {"examples": 5, "tokens": 70, "learned": 30, "labelled": 0, "dropped": {"count": 2, "first": ["a:1"]}}
    facts = RunFacts.of({"train": train}, {"course": {"learning_rate": 3e-4}, "lora": {"rank": 8}, "replay": 0.1})
    assert (facts.examples, facts.dropped, facts.learning_rate, facts.lora, facts.replay) == (5, 2, 3e-4, True, 0.1)
    assert RunFacts.of({}, {}).rate_in_words == ""
    assert RunFacts.of({"train": {"examples": 36}, "method": "dpo"}, {}).examples == 18, "a pair is two sequences"


def test_classes_are_counted_and_scored_by_hand() -> None:
    pairs = (("a", "a"), ("a", "a"), ("a", "b"), ("b", "b"), ("b", "none of them"), ("c", "a"))
    guesses = tuple(Guess(index, label, guess) for index, (label, guess) in enumerate(pairs))
    confusion = Confusion.of(guesses)
    assert confusion.labels == ("a", "b", "c", "(no label)")
    assert confusion.counts.tolist() == [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert confusion.accuracy == pytest.approx(0.5)
    assert confusion.f1 == pytest.approx({"a": 2 * 2 / (3 + 3), "b": 2 * 1 / (2 + 2), "c": 0.0})
    assert confusion.macro_f1 == pytest.approx((2 / 3 + 1 / 2) / 3)
    before, after = measured(kind="label", answers=()), measured(kind="label", answers=(), guesses=guesses)
    line = compare(before, after).line("accuracy")
    assert line is not None and math.isnan(line.before) and line.after == pytest.approx(0.5)
    assert "c" in named(before, after)["classes never found"]


def test_the_general_texts_are_of_both_languages_and_long_enough() -> None:
    sizes = {language: sum(len(text.encode()) for text in general_texts(language)) for language in FILES}
    assert sum(sizes.values()) > 20_000 and min(sizes.values()) > 9_000
