"""The report of a tokenizer counts what the tokenizer does."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from owngpt.errors import DataError
from owngpt.text.report import tokenizer_report
from owngpt.text.training import train_tokenizer

ENGLISH = "the quick brown fox jumps over the lazy dog and it is not at all sorry for that\n" * 20
CHINESE = "天地玄黄，宇宙洪荒。日月盈昃，辰宿列张。\n" * 20


def test_counts_by_language_add_up() -> None:
    tokenizer = train_tokenizer([ENGLISH], vocab_size=400)
    report = tokenizer_report(tokenizer, [ENGLISH, CHINESE, ENGLISH])
    english, chinese = report.languages if report.languages[0].language == "en" else report.languages[::-1]
    assert (english.language, chinese.language) == ("en", "zh")
    assert english.tokens == 2 * len(tokenizer.encode(ENGLISH))
    assert english.fallback_share == 0
    assert english.bytes_per_token > 2
    assert chinese.fallback_share > 0.9  # it never saw Chinese: bytes only
    assert report.total.bytes == english.bytes + chinese.bytes
    assert report.total.documents == 3
    used = {token for text in (ENGLISH, CHINESE) for token in tokenizer.encode(text)}
    assert report.unused_tokens == tokenizer.vocab_size - 16 - len(used)


def test_it_is_json_and_a_table() -> None:
    report = tokenizer_report(train_tokenizer([], kind="byte"), {"zh": [CHINESE], "en": [ENGLISH]})
    assert json.loads(json.dumps(report.to_dict()))["total"]["bytes_per_token"] == 1.0
    output = io.StringIO()
    Console(file=output, width=120).print(report)
    assert "bytes/token" in output.getvalue()


def test_no_text_is_an_error() -> None:
    with pytest.raises(DataError, match="no text"):
        tokenizer_report(train_tokenizer([], kind="byte"), [])
