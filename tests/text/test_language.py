"""Languages are told apart by script, common words and the look of code."""

from __future__ import annotations

import inspect
import json.decoder

import pytest

from owngpt.text.language import detect_language

SAMPLES = {
    "The cat sat on the mat and it was not happy that we had come.": "en",
    "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer": "en",
    "滚滚长江东逝水，浪花淘尽英雄。": "zh",
    "我们用 Python 和 PyTorch 训练了一个小模型，效果很好。": "zh",
    "これは日本語の文章です。とても良い天気ですね。": "other",
    "Der schnelle braune Fuchs springt über den faulen Hund, und das ist gut so.": "other",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.": "other",
    "": "other",
    "12345 !!! ???": "other",
    '#include <stdio.h>\nint main(void) {\n  printf("hi");\n  return 0;\n}\n': "code",
}


@pytest.mark.parametrize(("text", "language"), SAMPLES.items())
def test_short_samples(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_a_source_file_is_code_and_its_prose_is_english() -> None:
    assert detect_language(inspect.getsource(json.decoder)) == "code"
    assert detect_language("The text of it is for a reader, not for the machine.\n" * 5000) == "en"
    assert detect_language("天地玄黄，宇宙洪荒。\n" * 100_000) == "zh"
