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


@dataclass(frozen=True)
class ChatLayout:
    """A conversation as its template lays it out, before it is tokens."""

    rendered: str
    """The text, with marks where a :class:`ContentGuard` looks after the contents. A conversation that goes on from another
    one usually begins with all of the other's."""
    spans: tuple[tuple[int, int], ...]
    """Where, [start, stop) in characters of ``rendered``, the ``{% generation %}`` blocks stand."""
    has_marks: bool
    """Whether there may be marks; without, ``rendered`` is the text itself."""
    _tokenizer: Tokenizer
    _guard: ContentGuard | None

    def encode(self, start: int = 0) -> EncodedChat:
        """As tokens; from a character of ``rendered`` on, as if nothing stood before it."""
        rendered = self.rendered[start:]
        spans = [(max(first - start, 0), last - start) for first, last in self.spans if last > start]
        if self._guard is None:
            encoding = self._tokenizer.backend.encode(rendered, add_special_tokens=False)
            return EncodedChat(rendered, encoding.ids, token_mask(encoding.char_to_token, spans, len(encoding.ids)))
        guarded = self._guard.encode(rendered, has_marks=self.has_marks)
        return EncodedChat(guarded.text, guarded.token_ids, token_mask(guarded.token_at, spans, len(guarded.token_ids)))


class Conversation:
    """A conversation made ready for a template once, of which beginnings are then laid out."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Any],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        special_in_contents: bool = False,
        template: ChatTemplate | None = None,
        **extra: Any,
    ) -> None:
        """
        :param special_in_contents: let contents write control tokens, as transformers does; for trusted text only.
        :param template: another one than the tokenizer's own.
        :param extra: what the template reads beside; see :meth:`ChatTemplate.render` for this and the other parameters.
        :raises UsageError: there is no message or no template, or one is not what it should be.
        """
        self._tokenizer, self._template = tokenizer, template or ChatTemplate.of(tokenizer, tools=tools)
        values = self._template.values(messages, tools, documents=documents, **extra)
        self._guard = None if special_in_contents else ContentGuard.of(tokenizer, self._template.source)
        self._values = values if self._guard is None else self._guard.marked(values)
        self._has_marks = self._values != values

    def layout(
        self,
        count: int | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
    ) -> ChatLayout:
        """Lay out the first messages.

        :param count: how many, by default all.
        :raises UsageError: the template refuses the conversation.
        :raises ModelFolderError: the template runs without end or makes a text without bound.
        """
        messages = self._values["messages"][:count]
        values = {**self._values, "messages": messages, "add_generation_prompt": add_generation_prompt}
        rendered, spans = self._template.render_values(values, continue_final_message)
        return ChatLayout(rendered, tuple(spans), self._has_marks, self._tokenizer, self._guard)


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Any],
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    **options: Any,
) -> EncodedChat:
    """Lay out a conversation and encode it.

    The ids are those of transformers' ``apply_chat_template``, except that the text of a control token in messages, tools,
    documents and ``extra`` is only text. The other parameters and the errors are those of :class:`Conversation`.
    """
    layout = Conversation(tokenizer, messages, **options).layout(
        add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message
    )
    return layout.encode()


def token_mask(token_at: Callable[[int], int | None], spans: Iterable[tuple[int, int]], length: int) -> list[int]:
    """1 for tokens that stand, in whole or in part, in the spans of characters.

    A character may have no token (a blank that a tokenizer drops): then the next one inside of the span counts.
    """
    mask = [0] * length
    for start, stop in spans:
        first = next((token for place in range(start, stop) if (token := token_at(place)) is not None), None)
        last = next((token for place in range(stop - 1, start - 1, -1) if (token := token_at(place)) is not None), None)
        if first is not None and last is not None:
            mask[first : last + 1] = [1] * (last + 1 - first)
    return mask
