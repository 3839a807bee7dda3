"""Examples are held out by what is asked in them: never the same question on both sides."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from owngpt.errors import UsageError
from owngpt.finetune.examples.dataset import open_examples, split_examples
from owngpt.finetune.examples.example import Chat, Completion, Example, Labelled, Origin
from owngpt.finetune.examples.keys import content_key, prompt_key
from owngpt.finetune.examples.split import shared_prompts

HERE = Origin("a", 1)


def split(
    tmp_path: Path, rows: Iterable[dict[str, Any]], held_out: float | None = None, seed: int = 0
) -> tuple[list[Any], list[Any]]:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, held = split_examples(open_examples([path]), held_out=held_out, seed=seed)
    examples = list(train), list(held)
    assert (len(train), len(held)) == (len(examples[0]), len(examples[1]))
    return examples


def pairs(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question number {n}", "completion": f"answer {n}"} for n in range(count)]


@pytest.mark.parametrize(("count", "held"), [(1, 0), (4, 0), (5, 1), (10, 1), (200, 20), (5100, 500)])
def test_a_tenth_is_held_out_but_at_most_five_hundred(tmp_path: Path, count: int, held: int) -> None:
    train, out = split(tmp_path, pairs(count))
    assert (len(train), len(out)) == (count - held, held)
    assert {example.origin.line for example in [*train, *out]} == set(range(1, count + 1))


def test_the_share_is_the_persons(tmp_path: Path) -> None:
    assert len(split(tmp_path, pairs(100), held_out=0.25)[1]) == 25
    assert len(split(tmp_path, pairs(100), held_out=0)[1]) == 0
    assert len(split(tmp_path, pairs(3), held_out=0.01)[1]) == 1
    with pytest.raises(UsageError, match="--held-out is 0.6"):
        split(tmp_path, pairs(3), held_out=0.6)


def test_the_seed_and_the_content_choose_not_the_order(tmp_path: Path) -> None:
    rows = pairs(300)
    held = {example.prompt for example in split(tmp_path, rows)[1]}
    assert {example.prompt for example in split(tmp_path, rows[::-1])[1]} == held
    assert {example.prompt for example in split(tmp_path, rows, seed=1)[1]} != held
    grown = {example.prompt for example in split(tmp_path, rows + pairs(330)[300:])[1]}
    assert len(held & grown) > 0.8 * len(held)


def test_the_same_question_is_never_on_both_sides(tmp_path: Path) -> None:
    forms = ("How do I return it?", "how do i return it", "How  do I return it?!", "HOW DO I RETURN IT")
    rows = [{"prompt": f"{form} {n // 4}", "completion": f"answer {n}"} for n, form in enumerate(forms * 50)]
    train, out = split(tmp_path, rows)
    assert len(out) == 20
    assert not {prompt_key(example) for example in train} & {prompt_key(example) for example in out}


def test_where_all_ask_the_same_what_is_said_decides(tmp_path: Path) -> None:
    rows = [{"prompt": "Tell me a joke.", "completion": f"joke {n}"} for n in range(40)]
    train, out = split(tmp_path, rows)
    assert (len(train), len(out)) == (36, 4)
    assert len(split(tmp_path, rows[:1] * 40)[1]) == 0


def test_a_question_that_most_ask_stays_on_the_learning_side(tmp_path: Path) -> None:
    rows = [{"prompt": "the usual", "completion": f"answer {n}"} for n in range(90)] + pairs(10)
    train, out = split(tmp_path, rows)
    assert len(out) == 10 and all(example.prompt != "the usual" for example in out)


def test_every_label_keeps_an_example_to_learn_from(tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "label": f"label {n // 2}"} for n in range(40)]
    train, out = split(tmp_path, rows, held_out=0.5)
    assert len(out) == 20 and {example.label for example in train} == {f"label {n}" for n in range(20)}


def test_examples_for_checking_that_ask_what_is_learned_are_counted(tmp_path: Path) -> None:
    for name, rows in (("a", pairs(10)), ("b", [{"prompt": "Question number 3!", "completion": "else"}, *pairs(12)[10:]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    learned, others = (open_examples([tmp_path / f"{name}.jsonl"]) for name in "ab")
    assert shared_prompts(learned, others) == 1 and shared_prompts(others, learned) == 1


def test_a_label_may_be_seen_once_in_what_is_only_checked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "label": "good"}\n{"text": "y", "label": "bad"}\n')
    assert len(open_examples([tmp_path / "a.jsonl"], only_checked=True)) == 2


def chat(*said: str, system: str = "") -> Example:
    roles = ("user", "assistant")
    messages = [{"role": "system", "content": system}] if system else []
    return Chat((*messages, *({"role": roles[n % 2], "content": text} for n, text in enumerate(said))), HERE)


def test_prompts_are_told_apart_by_what_is_asked() -> None:
    long = "Which documents do I need for a building permit?"
    assert prompt_key(chat(long, "a")) == prompt_key(chat(long.upper(), "b", "more", "c", system="S"))
    assert prompt_key(chat("Hi", "Hello", "How old are you?", "2")) != prompt_key(chat("Hi", "Hello", "Where do you live?", "x"))
    assert prompt_key(chat("你好", "你好", "退货要几天？", "七天")) != prompt_key(chat("你好", "你好", "怎么付款？", "微信"))
    assert prompt_key(chat("请问退货需要几天才能到账？", "七天")) == prompt_key(chat("请问，退货需要几天才能到账", "三天"))
    assert prompt_key(Completion("", "One", HERE)) != prompt_key(Completion("", "Two", HERE))
    assert prompt_key(Completion("？", "x", HERE)) != prompt_key(Completion("。", "y", HERE))
    assert prompt_key(Labelled("x", "1", HERE)) == prompt_key(Labelled("X!", "2", HERE))


def test_contents_are_equal_only_for_repeats_wherever_they_are() -> None:
    assert content_key(Completion("a", "b", HERE)) == content_key(Completion("a", "b", Origin("b", 9)))
    different = [Completion("a", "b", HERE), Completion("ab", "", HERE), Completion("A", "b", HERE), chat("a", "b")]
    assert len({content_key(example) for example in different}) == 4
