"""One turn of the assistant: the ids that serving reads before it, then those that the model is to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from owngpt.errors import UsageError
from owngpt.finetune.examples.example import Message
from owngpt.finetune.spans import Span
from owngpt.text.conversation import ChatLayout, EncodedChat, lay_out
from owngpt.text.messages import REASONING_NAMES
from owngpt.text.tokenizer import Tokenizer

Turn = Span
_OPEN_THOUGHT = "<think>"
_THOUGHT_END = "\n</think>\n\n"
_SHOWN = 40
"""Characters of a text that a message quotes."""


class TurnEncoder:
    """Encodes turns of a conversation for one tokenizer and template."""

    def __init__(
        self, tokenizer: Tokenizer, options: Mapping[str, Any], stop_ids: frozenset[int], end_of_text: Sequence[int]
    ) -> None:
        """
        :param options: what :func:`owngpt.text.conversation.lay_out` takes beside the messages.
        :param stop_ids: tokens that end an answer.
        :param end_of_text: put behind a turn that the template leaves without an end; may be empty.
        """
        self._tokenizer, self._options, self._stops = tokenizer, options, stop_ids
        self._end_of_text = list(end_of_text)

    def encode(self, messages: Sequence[Message], place: int) -> Turn:
        """The turn ``messages[place]``: everything before it as serving reads it, masked, and itself, learned.

        :raises UsageError: the template refuses the conversation, or writes the answer so that it does not go on from what
            serving reads before it.
        """
        prompt = lay_out(self._tokenizer, messages[:place], add_generation_prompt=True, **self._options)
        whole = lay_out(self._tokenizer, messages[: place + 1], **self._options)
        before = prompt.encode().token_ids
        answer, mask = self._answer(prompt, whole, before, messages[place])
        answer, learned = self._ended(answer, mask if whole.spans else [1] * len(answer))
        return Turn(before + answer, [False] * len(before) + learned)

    def _answer(
        self, prompt: ChatLayout, whole: ChatLayout, before: list[int], message: Message
    ) -> tuple[list[int], Sequence[int]]:
        """The ids behind the prompt's, and which of them stand in ``{% generation %}`` blocks."""
        if not whole.rendered.startswith(prompt.rendered):
            tail = self._behind_thought(prompt, whole, message)
            return tail.token_ids, tail.assistant_mask
        encoded = whole.encode()
        if encoded.token_ids[: len(before)] == before:
            return encoded.token_ids[len(before) :], encoded.assistant_mask[len(before) :]
        tail = whole.encode(len(prompt.rendered))  # a token would stretch across the border, where serving has one
        return tail.token_ids, tail.assistant_mask

    def _behind_thought(self, prompt: ChatLayout, whole: ChatLayout, message: Message) -> EncodedChat:
        """An answer behind a prompt that opens a thought, which the template leaves out of answers: it is closed first.

        :raises UsageError: the prompt ends with something else that the answer does not begin with.
        """
        common = _common_length(prompt.rendered, whole.rendered)
        opening = prompt.rendered[common:]
        if opening.strip() != _OPEN_THOUGHT:
            raise UsageError(
                f"the chat template lets the model answer behind {_quoted(opening)}, but writes the answer as "
                f"{_quoted(whole.rendered[common:])}, which does not go on from that; use a template that shows an answer "
                "as it is written"
            )
        thought = next((str(message[name]) for name in REASONING_NAMES if message.get(name)), "")
        bridge = self._tokenizer.encode(thought) + self._tokenizer.encode(_THOUGHT_END, special=True)
        tail = whole.encode(common)
        mask = [1] * len(bridge) + list(tail.assistant_mask)
        return EncodedChat(tail.text, bridge + tail.token_ids, mask)

    def _ended(self, answer: list[int], mask: Sequence[int]) -> tuple[list[int], list[bool]]:
        """The answer up to the token that ends it, which is learned; what the template writes behind that is not."""
        end = self._end_place(answer)
        if end is None:
            count = len(self._end_of_text)
            return answer + self._end_of_text, [bool(value) for value in mask] + [True] * count
        learned = [bool(value) for value in mask[: end + 1]]
        learned[end] = learned[end] or any(learned)
        return answer[: end + 1], learned

    def _end_place(self, answer: list[int]) -> int | None:
        """Index of the first of the ends behind the last thing said."""
        found = None
        for place in range(len(answer) - 1, -1, -1):
            if answer[place] in self._stops:
                found = place
            elif self._tokenizer.token_bytes(answer[place]).strip():
                break
        return found


def _common_length(first: str, second: str) -> int:
    length = min(len(first), len(second))
    return next((place for place in range(length) if first[place] != second[place]), length)


def _quoted(text: str) -> str:
    return repr(text[:_SHOWN] + ("…" if len(text) > _SHOWN else ""))
