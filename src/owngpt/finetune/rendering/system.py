"""A system message that belongs to the model: said in every conversation that has none, while it learns and when it serves."""

from __future__ import annotations

import json

from owngpt.text.tokenizer import Tokenizer

_SAID = (
    "{% if not messages or messages[0]['role'] != 'system' %}"
    "{% set messages = [{'role': 'system', 'content': SYSTEM}] + (messages or []) %}"
    "{% endif %}"
)


def with_system(tokenizer: Tokenizer, system: str) -> Tokenizer:
    """The tokenizer with templates that begin every conversation with this message, unless it begins with one of its own.

    :param tokenizer: with a chat template.
    """
    said = _SAID.replace("SYSTEM", _literal(system))
    changed = tokenizer.with_chat_template(None if tokenizer.chat_template is None else said + tokenizer.chat_template)
    changed.named_chat_templates = {name: said + source for name, source in tokenizer.named_chat_templates.items()}
    return changed


def _literal(text: str) -> str:
    """A text as a template's literal; braces are written as escapes, so that no delimiter can stand in it."""
    return json.dumps(text, ensure_ascii=False).replace("{", "\\u007b").replace("}", "\\u007d").replace("%", "\\u0025")
