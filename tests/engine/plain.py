"""A vocabulary in which every token is text by itself, for tests that compare with the plain forward pass.

Untrained models often like bytes best that continue no character. The engine does not write those, a plain argmax does.
"""

from __future__ import annotations

import copy
import json

import tokenizers

from owngpt.text.characters import WHOLE, state_after
from owngpt.text.stream import byte_level_bytes
from owngpt.text.tokenizer import Tokenizer


def plain(tokenizer: Tokenizer) -> Tokenizer:
    """The same byte-level vocabulary with other letters in place of pieces of characters."""
    description = copy.deepcopy(tokenizer.description)
    model = description["model"]
    spelled = {}
    for token, token_id in model["vocab"].items():
        spelled[token] = token if state_after(byte_level_bytes(token)) == WHOLE else f"~{token_id}"
    model["vocab"] = {spelled[token]: token_id for token, token_id in model["vocab"].items()}
    model["merges"] = [
        pair for pair in model["merges"] if all(spelled[part] == part for part in (*pair, "".join(pair)))
    ]  # fmt: skip
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(description)), settings=tokenizer.settings)
