"""A conversation as token ids: what a model reads before it answers, and what fine-tuning learns from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from owngpt.text.chat import ChatTemplate
from owngpt.text.control import ContentGuard
from owngpt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class EncodedChat:
    """A conversation in the model's own layout."""

    text: str
    token_ids: list[int]
    assistant_mask: list[int]
    """1 for the tokens of ``{% generation %}`` blocks, 0 for the others; as long as ``token_ids``."""


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Any],
    *,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    special_in_contents: bool = False,
    template: ChatTemplate | None = None,
    **extra: Any,
) -> EncodedChat:
    """Lay out a conversation and encode it.

    The ids are those of transformers' ``apply_chat_template``, except that the text of a control token in messages, tools,
    documents and ``extra`` is only text.

    :param special_in_contents: let contents write control tokens, as transformers does; for trusted text only.
    :param template: another one than the tokenizer's own.
    :param extra: what the template reads beside; see :meth:`ChatTemplate.render` for this and the other parameters.
    :raises UsageError: the template refuses the conversation, or there is none.
    :raises ModelFolderError: the template runs without end or makes a text without bound.
    """
    template = template or ChatTemplate.of(tokenizer, tools=tools)
    values = template.values(messages, tools, add_generation_prompt, documents=documents, **extra)
    if special_in_contents:
        rendered, spans = template.render_values(values, continue_final_message)
        encoding = tokenizer.backend.encode(rendered, add_special_tokens=False)
        return EncodedChat(rendered, encoding.ids, _mask(encoding.char_to_token, spans, len(encoding.ids)))
    guard = ContentGuard.of(tokenizer, template.source)
    marked = guard.marked(values)
    rendered, spans = template.render_values(marked, continue_final_message)
    guarded = guard.encode(rendered, has_marks=marked != values)
    return EncodedChat(guarded.text, guarded.token_ids, _mask(guarded.token_at, spans, len(guarded.token_ids)))


def _mask(token_at: Callable[[int], int | None], spans: Iterable[tuple[int, int]], length: int) -> list[int]:
    """1 for the tokens that stand, in whole or in part, in the spans of characters.

    A character may have no token (a blank that a tokenizer drops): then the next one inside of the span counts.
    """
    mask = [0] * length
    for start, stop in spans:
        first = next((token for place in range(start, stop) if (token := token_at(place)) is not None), None)
        last = next((token for place in range(stop - 1, start - 1, -1) if (token := token_at(place)) is not None), None)
        if first is not None and last is not None:
            mask[first : last + 1] = [1] * (last + 1 - first)
    return mask
