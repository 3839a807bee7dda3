"""Turns of the assistant: the ids that serving reads before each, then those that the model is to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from owngpt.errors import UsageError
from owngpt.finetune.examples.example import Message
from owngpt.finetune.rendering.encoded_text import EncodedText
from owngpt.finetune.rendering.spans import Span, join_turns
from owngpt.text.conversation import ChatLayout, Conversation
from owngpt.text.messages import REASONING_NAMES
from owngpt.text.tokenizer import Tokenizer

_OPEN_THOUGHT = "<think>"
_THOUGHT_END = "\n</think>\n\n"
_OTHER_ANSWER = "\u2042"
"""No answer begins with it: shows where in a rendering answers begin."""
_LONGEST_LEAD = 64
"""Characters that a template may write before every answer, such as a blank or an empty thought."""
_LEAST_MATCH, _LONGEST_MATCH = 4, 256
"""Characters by which the end of a prompt is known again."""
MOST_TOKENS = 1 << 22
"""Of a conversation's answers, each with everything before it."""
_SHOWN = 40
"""Characters of a text that a message quotes."""


class TurnEncoder:
    """Encodes the assistant's turns of one conversation."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        options: Mapping[str, Any],
        stop_ids: frozenset[int],
        end_of_text: Sequence[int],
    ) -> None:
        """
        :param options: what :class:`owngpt.text.conversation.Conversation` takes beside the messages.
        :param stop_ids: tokens that end an answer.
        :param end_of_text: put behind a turn that the template leaves without an end; may be empty.
        """
        self._tokenizer, self._messages, self._options = tokenizer, messages, options
        self._stops, self._end_of_text = stop_ids, list(end_of_text)
        self._conversation = Conversation(tokenizer, messages, **options)

    def encode(self, places: Sequence[int]) -> list[Span]:
        """The turns at these places in as few sequences as show each behind what serving reads before it.

        :raises UsageError: the template refuses the conversation, leaves out what a turn does, or writes it so that it does
            not go on from what serving reads before it.
        """
        if not places:
            return []
        together = self._together(places)
        return [together] if together is not None else join_turns(self._apart(places))

    def _layouts(self, place: int) -> tuple[ChatLayout, ChatLayout]:
        """What serving reads before the turn ``messages[place]``, and that with the turn."""
        prompt = self._conversation.layout(place, add_generation_prompt=True)
        return prompt, self._conversation.layout(place + 1)

    # --- all at once ---

    def _together(self, places: Sequence[int]) -> Span | None:
        """All turns in the tokens of the whole conversation, encoded once; None where that is not what serving reads, or
        cannot be told."""
        whole = self._conversation.layout(places[-1] + 1)
        if whole.has_marks:
            return None
        tokens = EncodedText(self._tokenizer, whole)
        learned = [False] * len(tokens.ids)
        end = 0
        for place in places:
            prompt, said = self._layouts(place)
            if not said.rendered.startswith(prompt.rendered) or not whole.rendered.startswith(said.rendered):
                return None
            start, stop = tokens.length_of(prompt.rendered), tokens.index_at(len(said.rendered))
            if start is None or stop is None:
                return None
            answer = tokens.ids[start:stop]
            kept, answer_learned = self._ended(answer, tokens.mask[start:stop] if whole.spans else [1] * len(answer))
            if kept != answer[: len(kept)]:
                return None  # an end of text was put behind it
            end = start + len(kept)
            learned[start:end] = answer_learned
        return Span(tokens.ids[:end], learned[:end])

    # --- one by one ---

    def _apart(self, places: Sequence[int]) -> Iterator[Span]:
        """Each turn with everything before it.

        :raises UsageError: they are too long together: the template may show each in a form of its own.
        """
        total = 0
        for place in places:
            span = self._alone(place)
            total += len(span.token_ids)
            if total > MOST_TOKENS:
                raise UsageError(
                    f"a conversation of {len(places):,} answers takes more than {MOST_TOKENS:,} tokens, since the chat template "
                    "shows it otherwise at each; cut it into shorter ones"
                )
            yield span

    def _alone(self, place: int) -> Span:
        prompt, said = self._layouts(place)
        before = prompt.encode().token_ids
        if said.rendered.startswith(prompt.rendered):
            answer, mask = self._behind(before, prompt, said)
        else:
            answer, mask = self._found(prompt, said, place)
        answer, learned = self._ended(answer, mask if said.spans else [1] * len(answer))
        return Span(before + answer, [False] * len(before) + learned)

    @staticmethod
    def _behind(before: list[int], prompt: ChatLayout, whole: ChatLayout) -> tuple[list[int], Sequence[int]]:
        """The ids behind the prompt's, and which of them stand in ``{% generation %}`` blocks."""
        encoded = whole.encode()
        if encoded.token_ids[: len(before)] == before:
            return encoded.token_ids[len(before) :], encoded.assistant_mask[len(before) :]
        tail = whole.encode(len(prompt.rendered))  # a token would stretch across the border, where serving has one
        return tail.token_ids, tail.assistant_mask

    def _found(self, prompt: ChatLayout, whole: ChatLayout, place: int) -> tuple[list[int], Sequence[int]]:
        """The answer where the template shows what is before it in another way once it is answered: Mistral's leaves out the
        system's message, that of DeepSeek-R1 the opening of a thought.

        :raises UsageError: it cannot be told where the answer begins.
        """
        message = self._messages[place]
        others = [*self._messages[:place], {"role": "assistant", "content": _OTHER_ANSWER}]
        other = Conversation(self._tokenizer, others, **self._options).layout()
        differs = _common_length(whole.rendered, other.rendered)
        start = _end_of_prompt(prompt.rendered, whole.rendered, differs)
        bridge: list[int] = []
        if start is None and (bare := _without_open_thought(prompt.rendered)) is not None:
            start = _end_of_prompt(bare, whole.rendered, differs)
            thought = next((str(message[name]) for name in REASONING_NAMES if message.get(name)), "")
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
