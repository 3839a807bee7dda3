"""The chat template of a base that has none."""

from __future__ import annotations

import json

from owngpt.errors import ModelFolderError
from owngpt.text.chat import CHATML
from owngpt.text.special import TURN_END, TURN_START
from owngpt.text.tokenizer import Tokenizer

_HEADINGS = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + END }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
"""For a vocabulary without tokens for turns: only its end of text is a token of its own."""


def choose_template(tokenizer: Tokenizer) -> tuple[str, str]:
    """A template for a tokenizer without one: its source, and what is to be said about it.

    :raises ModelFolderError: the vocabulary has no token that could end an answer.
    """
    if {TURN_START, TURN_END} <= tokenizer.special_ids.keys():
        note = f"the base has no chat template; ChatML was chosen, whose tokens {TURN_START} and {TURN_END} it knows"
        return _begun(tokenizer, CHATML), note
    try:
        end = tokenizer.token(tokenizer.end_of_text_id)
    except ModelFolderError as error:
        raise ModelFolderError(
            "the base has neither a chat template nor a token that ends a text, so it cannot learn to end an answer; "
            "fine-tune a base with an end-of-text token, or give rows of plain text"
        ) from error
    source = _HEADINGS.replace("END", json.dumps(end, ensure_ascii=False))
    note = f"the base has no chat template and no tokens for turns; headings (### User:) that end with {end} were chosen"
    return _begun(tokenizer, source), note


def _begun(tokenizer: Tokenizer, source: str) -> str:
    """The template behind the token that the base's maker begins every text with, if any: Gemma is lost without it."""
    begin = tokenizer.begin_of_text_id
    if begin is None or tokenizer.encode_prompt("a")[:1] != [begin]:
        return source
    return f"{{{{ {json.dumps(tokenizer.token(begin), ensure_ascii=False)} }}}}{source}"
