"""How well a network predicts general text that has nothing to do with anybody's examples, to see what it forgets."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from owngpt.evaluate.windows import windows
from owngpt.finetune.report.losses import window_nats
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

GeneralLanguage = Literal["English", "Chinese"]
FILES: dict[GeneralLanguage, str] = {"English": "general_english.txt", "Chinese": "general_chinese.txt"}
TRIED = 3
"""Texts of each language that are tried, the first of them whatever time it takes."""
KNOWN_BITS = 2.0
"""Bits per byte below which a network knows a language: a text of single characters drawn by their frequency has over 2.5."""
FOREIGN_BITS = 2.3
"""Bits per byte from which a network is taken not to know a language, so that no more of it is read."""
SEPARATOR = "\n---\n"
"""Between the texts of a file."""


@dataclass(frozen=True)
class GeneralLoss:
    """What one of the general texts costs."""

    language: GeneralLanguage
    index: int
    """Of the text in its language."""
    nats: float
    tokens: int
    bytes: int
    """Of its UTF-8 form."""


def general_texts(language: GeneralLanguage) -> list[str]:
    """Texts of many kinds, written for this purpose alone: no model has been trained on them."""
    text = (Path(__file__).parent / FILES[language]).read_text(encoding="utf-8")
    return [part.strip() for part in text.split(SEPARATOR)]


def general_losses(network: GPT, tokenizer: Tokenizer, deadline: float | None) -> list[GeneralLoss]:
    """The loss on each text, languages in turn, as many as the time allows; of a language that the network turns out not to
    know, only the first few.

    Every token counts once, with at least half a context of history where its text has that. A text's first token is
    predicted from the token that begins a text; where a tokenizer has none it costs ln V nats.
    """
    texts = _in_turn()
    one, tried = len(FILES), TRIED * len(FILES)
    found = _losses(network, tokenizer, texts[:one], None)  # the least that says anything
    found += _losses(network, tokenizer, texts[one:tried], deadline)
    known = [language for language in FILES if _may_know(found, language)] or [*FILES]
    return found + _losses(network, tokenizer, [text for text in texts[tried:] if text[0] in known], deadline)


def some_general(network: GPT, tokenizer: Tokenizer, languages: Sequence[GeneralLanguage]) -> list[GeneralLoss]:
    """The loss on every other text of these languages, for choosing before all of them are measured."""
    return _losses(network, tokenizer, _every_other(languages), None)


def some_of(losses: Sequence[GeneralLoss], languages: Sequence[GeneralLanguage]) -> list[GeneralLoss] | None:
    """Of what was measured, what :func:`some_general` measures; None where some of it was not."""
    found = {(loss.language, loss.index): loss for loss in losses}
    places = [(language, index) for language, index, _ in _every_other(languages)]
    return [found[place] for place in places] if found.keys() >= set(places) else None


def _every_other(languages: Sequence[GeneralLanguage]) -> list[tuple[GeneralLanguage, int, str]]:
    return [text for text in _in_turn() if text[0] in languages and text[1] % 2]


def known_languages(losses: Sequence[GeneralLoss]) -> tuple[GeneralLanguage, ...]:
    """The languages that a network predicts better than chance; all of them where it knows none."""
    by_language = {language: [loss for loss in losses if loss.language == language] for language in FILES}
    present = [language for language, found in by_language.items() if found]
    return tuple([name for name in present if bits_per_byte(by_language[name]) < KNOWN_BITS] or present)


def _losses(
    network: GPT, tokenizer: Tokenizer, texts: Sequence[tuple[GeneralLanguage, int, str]], deadline: float | None
) -> list[GeneralLoss]:
    if deadline is not None and time.monotonic() >= deadline:
        return []
    places, pieces, tokens = [], [], []
    start, length = tokenizer.begin_of_text_id, network.config.context_length
    fixed = math.log(network.config.vocab_size) if start is None else 0.0
    for place, (_, _, text) in enumerate(texts):
        token_ids = tokenizer.encode(text)
        tokens.append(len(token_ids))
        known = token_ids if start is None else [start, *token_ids]
        for window in windows(known, context_length=length, stride=max(1, length // 2)):
            places.append(place)
            pieces.append(window)
    sums, seen = [0.0] * len(texts), [0] * len(texts)
    for index, nats in window_nats(network, pieces, deadline):
        sums[places[index]] += nats
        seen[places[index]] += 1
    return [
        GeneralLoss(language, index, sums[place] + fixed, tokens[place], len(text.encode("utf-8")))
        for place, (language, index, text) in enumerate(texts)
        if seen[place] == places.count(place)
    ]


def _may_know(found: Sequence[GeneralLoss], language: GeneralLanguage) -> bool:
    losses = [loss for loss in found if loss.language == language]
    return not losses or bits_per_byte(losses) < FOREIGN_BITS


def perplexity(losses: Sequence[GeneralLoss]) -> float:
    """e^(mean loss of a token); it compares only with that of the same tokenizer."""
    return math.exp(min(sum(loss.nats for loss in losses) / sum(loss.tokens for loss in losses), 700.0))


def bits_per_byte(losses: Sequence[GeneralLoss]) -> float:
    """Bits of the texts compressed by the network, over their bytes."""
    return sum(loss.nats for loss in losses) / math.log(2) / sum(loss.bytes for loss in losses)


def _in_turn() -> list[tuple[GeneralLanguage, int, str]]:
    """(language, index, text): one of each language after the other."""
    by_language = [[(language, index, text) for index, text in enumerate(general_texts(language))] for language in FILES]
    longest = max(map(len, by_language))
    return [texts[index] for index in range(longest) for texts in by_language if index < len(texts)]
