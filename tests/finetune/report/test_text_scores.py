"""Scores of answers, in any language, against worked examples and the libraries' own."""

from __future__ import annotations

import pytest

from owngpt.finetune.report.repetition import distinct_share, loops
from owngpt.finetune.report.text_scores import chrf, exact_match, rouge_l, token_f1, tokens


def test_english_tokens_are_those_of_rouge_itself() -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    for text in ("The cat's mat, 3 of them.", "Open 9:00-17:30; closed on X-mas!", "", "  A\tB\n"):
        assert tokens(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


def test_chinese_characters_are_tokens_and_full_width_forms_are_folded() -> None:
    assert tokens("你好，ＯｗｎGPT２！再见。") == ["你", "好", "owngpt2", "再", "见"]


@pytest.mark.parametrize("score", [exact_match, token_f1, rouge_l, chrf])
def test_the_same_text_scores_one_and_another_zero(score) -> None:
    for text, other in (("We open at nine.", "Zebras"), ("我们九点开门。", "斑马")):
        assert score([(text, text)]) == pytest.approx(1.0)
        assert score([(other, text)]) == pytest.approx(0.0, abs=0.06)
    assert score([("", "We open at nine.")]) == 0.0


def test_f1_counts_shared_words_whatever_their_order() -> None:
    assert token_f1([("nine open we", "We open at nine.")]) == pytest.approx(2 * 3 / (3 + 4))
    assert token_f1([("九点", "九点开门")]) == pytest.approx(2 * 2 / (2 + 4))


def test_rouge_l_follows_the_order_also_in_chinese() -> None:
    assert rouge_l([("nine open we", "We open at nine.")]) == pytest.approx(2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))
    assert rouge_l([("我们开门", "我们九点开门")]) == pytest.approx(2 * 1 * (4 / 6) / (1 + 4 / 6))


def test_articles_and_punctuation_do_not_spoil_an_exact_match() -> None:
    assert exact_match([("the Red mug", "A red mug."), ("红色的杯子", "红色的杯子。"), ("blue mug", "red mug")]) == pytest.approx(
        2 / 3
    )


def test_chrf_is_that_of_all_answers_together() -> None:
    from sacrebleu.metrics import CHRF

    pairs = [("We open at ten.", "We open at nine."), ("是的，可以。", "可以的。")]
    assert chrf(pairs) == pytest.approx(CHRF().corpus_score([a for a, _ in pairs], [[b for _, b in pairs]]).score / 100)


def test_loops_and_repetition() -> None:
    assert loops([1, 2, 3] * 6)
    assert loops([9, 8, 7] + [5] * 16)
    assert not loops([1, 2, 3] * 4)  # twelve tokens are a refrain, not a loop
    assert not loops(list(range(100)))
    assert not loops([*([1, 2, 3] * 6), 4])  # it found out again
    assert distinct_share(list(range(10))) == 1.0
    assert distinct_share([1] * 13) == pytest.approx(1 / 10)
    assert distinct_share([1, 2]) == 1.0
