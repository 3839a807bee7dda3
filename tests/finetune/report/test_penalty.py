"""A model that loops is written with a small penalty on repetition, and whoever serves it is told."""

from __future__ import annotations

import time
from dataclasses import replace

import torch
from tiny_report import PlainRenderer, completions, network, tokenizer

from owngpt.finetune.report.answers import question_of
from owngpt.finetune.report.penalty import PENALTIES, better_of, write_answers

WORDS = tokenizer()


def questions(count: int = 6):
    renderer = PlainRenderer(WORDS)
    return [question_of(index, each, renderer.encode(each), WORDS) for index, each in enumerate(completions(count))]


def stutterer(weight: float):
    """A model that says the last token again, the more surely the greater the weight, and otherwise ends."""
    model = network(WORDS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        table = torch.randn(model.embedding.weight.shape, generator=torch.Generator().manual_seed(0))
        model.embedding.weight.copy_(torch.nn.functional.normalize(table, dim=-1))
        model.final_norm.weight.fill_(1.0)
        head = model.embedding.weight if model.output_head is None else model.output_head.weight
        head.copy_(weight * model.embedding.weight)
        (asked,) = WORDS.encode("?")
        head[WORDS.end_of_text_id] = 0.98 * head[asked]
    return model.eval()


def write(model, penalties=PENALTIES, **options):
    return write_answers(model, WORDS, questions(), penalties, **{"limit": 64, "deadline": None, "most": 10, **options})


def test_the_least_penalty_that_stops_the_loops_is_taken():
    plain = write(stutterer(4.0), (1.0,))
    assert all(answer.loops for answer in plain.answers) and plain.penalty == 1.0 and plain.looped is None
    better = write(stutterer(4.0))
    assert better.penalty == 1.05 and better.looped == 1.0
    assert all(answer.ended == "end" and not answer.loops for answer in better.answers)


def test_answers_that_say_much_twice_count_although_they_are_over_before_they_loop():
    better = write(stutterer(4.0), limit=12)
    assert better.penalty == 1.05 and better.looped == 0.0
    assert min(answer.distinct for answer in better.answers) == 1.0


def test_an_owner_who_says_the_same_again_is_answered_alike():
    (said,) = WORDS.encode("?")
    repeated = replace(questions(1)[0], reference=WORDS.decode([said] * 12))
    plain = write_answers(stutterer(4.0), WORDS, [repeated], PENALTIES, limit=12, deadline=None, most=10)
    assert plain.penalty == 1.0 and plain.answers[0].distinct < 0.2


def test_answers_that_do_not_loop_are_written_once():
    begun = write(network(WORDS, seed=3).eval(), (1.0, 2.0), limit=4)
    assert begun.penalty == 1.0 and begun.looped is None


def test_where_time_is_short_those_that_were_finished_decide():
    plain, whole = (
        write_answers(stutterer(4.0), WORDS, questions(14), (penalty,), limit=64, deadline=None, most=14)
        for penalty in (1.0, 1.05)
    )
    cut = [replace(answer, counts=place < 10) for place, answer in enumerate(whole.answers)]
    assert better_of(plain, replace(whole, answers=tuple(cut))).answers == whole.answers[:10]
    few = [replace(answer, counts=place < 9) for place, answer in enumerate(whole.answers)]
    assert better_of(plain, replace(whole, answers=tuple(few))) == plain


def test_when_the_time_is_over_the_first_answers_stay():
    assert write(stutterer(4.0), deadline=time.monotonic()).penalty == 1.0
