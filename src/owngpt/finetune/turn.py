"""One turn of the assistant: the ids that serving reads before it, then those that the model is to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from owngpt.errors import UsageError
from owngpt.finetune.examples.example import Message
from owngpt.finetune.spans import Span
from owngpt.text.conversation import ChatLayout, lay_out
from owngpt.text.messages import REASONING_NAMES
from owngpt.text.tokenizer import Tokenizer

Turn = Span
_OPEN_THOUGHT = "<think>"
_THOUGHT_END = "\n</think>\n\n"
_OTHER_ANSWER = "\u2042"
"""No answer begins with it: shows where in a rendering answers begin."""
_LONGEST_LEAD = 64
"""Characters that a template may write before every answer, such as a blank or an empty thought."""
_LEAST_MATCH, _LONGEST_MATCH = 4, 256
"""Characters by which the end of a prompt is known again."""
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

        :raises UsageError: the template refuses the conversation, leaves out what the turn does, or writes it so that it does
            not go on from what serving reads before it.
        """
        prompt = self._laid_out(messages[:place], add_generation_prompt=True)
        whole = self._laid_out(messages[: place + 1])
        before = prompt.encode().token_ids
        if whole.rendered.startswith(prompt.rendered):
            answer, mask = self._behind(before, prompt, whole)
        else:
            answer, mask = self._found(prompt, whole, messages, place)
        answer, learned = self._ended(answer, mask if whole.spans else [1] * len(answer))
        return Turn(before + answer, [False] * len(before) + learned)

    def _laid_out(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> ChatLayout:
        return lay_out(self._tokenizer, messages, add_generation_prompt=add_generation_prompt, **self._options)

    @staticmethod
    def _behind(before: list[int], prompt: ChatLayout, whole: ChatLayout) -> tuple[list[int], Sequence[int]]:
        """The ids behind the prompt's, and which of them stand in ``{% generation %}`` blocks."""
        encoded = whole.encode()
        if encoded.token_ids[: len(before)] == before:
            return encoded.token_ids[len(before) :], encoded.assistant_mask[len(before) :]
        tail = whole.encode(len(prompt.rendered))  # a token would stretch across the border, where serving has one
        return tail.token_ids, tail.assistant_mask

    def _found(
        self, prompt: ChatLayout, whole: ChatLayout, messages: Sequence[Message], place: int
    ) -> tuple[list[int], Sequence[int]]:
        """The answer where the template shows what is before it in another way once it is answered: Mistral's leaves out the
        system's message, that of DeepSeek-R1 the opening of a thought.

        :raises UsageError: it cannot be told where the answer begins.
        """
        other = self._laid_out([*messages[:place], {"role": "assistant", "content": _OTHER_ANSWER}])
        differs = _common_length(whole.rendered, other.rendered)
        start = _end_of_prompt(prompt.rendered, whole.rendered, differs)
        bridge: list[int] = []
        if start is None and (bare := _without_open_thought(prompt.rendered)) is not None:
            start = _end_of_prompt(bare, whole.rendered, differs)
            thought = next((str(messages[place][name]) for name in REASONING_NAMES if messages[place].get(name)), "")
            bridge = self._tokenizer.encode(thought) + self._tokenizer.encode(_THOUGHT_END, special=True)
        if start is None:
            raise UsageError(
                f"the chat template lets the model answer behind {_quoted(prompt.rendered[-_SHOWN:])}, but an answer stands "
                f"behind {_quoted(whole.rendered[:differs][-_SHOWN:])}; use a template that shows an answer as it is written"
            )
        tail = whole.encode(start)
        return bridge + tail.token_ids, [1] * len(bridge) + list(tail.assistant_mask)

    def _ended(self, answer: list[int], mask: Sequence[int]) -> tuple[list[int], list[bool]]:
        """The answer up to the token that ends it, which is learned; what the template writes behind that is not there."""
        said = max((place for place, value in enumerate(mask) if value), default=-1)
        if said < 0:
            return answer, [False] * len(answer)
        end = self._end_place(answer, said)
        if end is None:
            answer, mask = answer[: said + 1] + self._end_of_text, [*mask[: said + 1], *(1 for _ in self._end_of_text)]
            return answer, [bool(value) for value in mask]
        return answer[: end + 1], [*(bool(value) for value in mask[:end]), True]

    def _end_place(self, answer: list[int], said: int) -> int | None:
        """Index of the end nearest to the last thing said, only blanks between; ``said`` is the last token of the answer."""
        place = said
        while place >= 0 and (answer[place] in self._stops or self._is_blank(answer[place])):
            place -= 1
        for after in range(place + 1, len(answer)):
            if answer[after] in self._stops:
                return after
            if after > said and not self._is_blank(answer[after]):
                break
        return None

    def _is_blank(self, token_id: int) -> bool:
        return not self._tokenizer.token_bytes(token_id).strip()


def _end_of_prompt(prompt: str, whole: str, differs: int) -> int | None:
    """Where in a whole conversation the prompt's end stands, at most :data:`_LONGEST_LEAD` characters before the place where
    answers begin to differ: what lies between begins every answer."""
    best, longest = None, min(_LEAST_MATCH, len(prompt)) - 1
    backwards = prompt[-_LONGEST_MATCH:][::-1]
    for end in range(differs, max(differs - _LONGEST_LEAD, 0) - 1, -1):
        length = _common_length(backwards, whole[max(end - _LONGEST_MATCH, 0) : end][::-1])
        if length > longest:
            best, longest = end, length
    return best


def _without_open_thought(prompt: str) -> str | None:
    """A prompt without the thought that it opens at its end, None if it opens none."""
    return prompt[: prompt.rindex(_OPEN_THOUGHT)] if prompt.rstrip().endswith(_OPEN_THOUGHT) else None


def _common_length(first: str, second: str) -> int:
    length = min(len(first), len(second))
    return next((place for place in range(length) if first[place] != second[place]), length)


def _quoted(text: str) -> str:
    return repr(text)
