"""How near an answer is to the owner's own, in any language: exact match, token F1, ROUGE-L and chrF, each from 0 to 1."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

ARTICLES = frozenset(("a", "an", "the"))
_IDEOGRAPHS = "\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_TOKEN = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")

Pairs = Sequence[tuple[str, str]]
"""What was written, and the reference."""


def tokens(text: str) -> list[str]:
    """Words in small letters, and Chinese and Japanese characters each by itself; punctuation is left out.

    For English these are the tokens of ROUGE's own tokenizer, which would drop every Chinese character.
    """
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def exact_match(pairs: Pairs) -> float:
    """Share of answers with the reference's words in its order; articles and punctuation do not count (as for SQuAD)."""
    return fmean(_words(written) == _words(reference) for written, reference in pairs)


def token_f1(pairs: Pairs) -> float:
    """Mean F1 of the words that answer and reference share, whatever their order (SQuAD, arXiv 1606.05250)."""
    return fmean(_overlap(_words(written), _words(reference)) for written, reference in pairs)


def rouge_l(pairs: Pairs) -> float:
    """Mean F1 of the longest common subsequence of tokens (ROUGE-L, Lin 2004)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Tokens())
    return fmean(scorer.score(reference, written)["rougeL"].fmeasure for written, reference in pairs)


def chrf(pairs: Pairs) -> float:
    """Character n-gram F-score of all answers together (chrF2, Popović 2015)."""
    from sacrebleu.metrics import CHRF

    score = CHRF().corpus_score([written for written, _ in pairs], [[reference for _, reference in pairs]])
    return float(score.score) / 100


TEXT_SCORES: dict[str, Callable[[Pairs], float]] = {
    "exact match": exact_match, "token F1": token_f1, "ROUGE-L": rouge_l, "chrF": chrf,
}  # fmt: skip


class _Tokens:
    """What rouge-score takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


def _words(text: str) -> list[str]:
    return [token for token in tokens(text) if token not in ARTICLES]


def _overlap(written: Sequence[str], reference: Sequence[str]) -> float:
    if not written or not reference:
        return float(written == reference)
    shared = sum((Counter(written) & Counter(reference)).values())
    return 2 * shared / (len(written) + len(reference))
