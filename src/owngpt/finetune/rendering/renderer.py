"""From examples to token ids: what serving will read before each answer, then the answer, and what of it is learned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from owngpt.errors import DataError, ModelFolderError, UsageError
from owngpt.finetune.examples.example import (
    Chat,
    Completion,
    Example,
    Labelled,
    Message,
    Origin,
    PlainText,
    Preference,
)
from owngpt.finetune.rendering.chosen_template import choose_template
from owngpt.finetune.rendering.spans import Span, make_encoded
from owngpt.finetune.rendering.turn import TurnEncoder
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.text.chat import ChatTemplate
from owngpt.text.conversation import encode_chat
from owngpt.text.messages import REASONING_NAMES
from owngpt.text.tokenizer import Tokenizer

MOST_REFUSED_KEPT = 100


class Renderer:
    """Encodes examples for one model. What it does to a chat is what serving does to it, by the same code.

    ``notes`` holds, in sentences, what was chosen without being asked; ``refused`` the rows left out by :meth:`encode_all`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        template: ChatTemplate | None = None,
        system: str | None = None,
        labels: Sequence[str] | None = None,
        stop_ids: Iterable[int] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """
        :param template: by default the tokenizer's own; if it has none, the first chat makes one be chosen, see
            :meth:`ensure_template`.
        :param system: said at the beginning of every chat that has no such message.
        :param labels: the classes, in the order of their indices.
        :param stop_ids: what ends an answer when the model is served; by default the tokenizer's.
        :param variables: what the template reads beside, such as ``{"enable_thinking": False}``; serving must give the same.
        """
        self.tokenizer, self.template, self.system = tokenizer, template, system
        self.labels = None if labels is None else {label: index for index, label in enumerate(labels)}
        self.stop_ids = frozenset(stop_ids) if stop_ids is not None else tokenizer.stop_ids
        self.variables = dict(variables or {})
        self.notes: list[str] = []
        self.refused: list[str] = []
        self.refused_count = 0
        self.separate_turns = 0
        """Sequences beyond the first that chats needed, because their template shows earlier turns otherwise."""

    def ensure_template(self) -> Tokenizer:
        """The tokenizer with a chat template, which is chosen now, and noted, if there is none yet; save this one.

        :raises ModelFolderError: the vocabulary has no token that could end an answer.
        """
        if self.template is None and not self.tokenizer.chat_template and not self.tokenizer.named_chat_templates:
            source, note = choose_template(self.tokenizer)
            self.tokenizer = self.tokenizer.with_chat_template(source)
            self.note(note)
        return self.tokenizer

    # --- examples ---

    def encode_all(self, examples: Iterable[Example], *, skip_bad: bool = False) -> Iterator[Encoded]:
        """Every example's sequences, one after the other.

        :param skip_bad: leave out what the template refuses, and note it in ``refused``.
        :raises DataError: an example cannot be rendered, unless ``skip_bad``.
        """
        for example in examples:
            try:
                encoded = self.encode(example)
            except DataError as error:
                self.refuse(error, skip_bad=skip_bad)
                continue
            yield from encoded

    def refuse(self, error: DataError, *, skip_bad: bool) -> None:
        """Count and note an example that is left out.

        :raises DataError: the error, unless ``skip_bad``.
        """
        if not skip_bad:
            raise error
        self.refused_count += 1
        if len(self.refused) < MOST_REFUSED_KEPT:
            self.refused.append(str(error))

    def settings(self) -> dict[str, Any]:
        """What makes another renderer like this one, beside tokenizer and template; plain values, for JSON."""
        labels = None if self.labels is None else list(self.labels)
        return {"system": self.system, "labels": labels, "stop_ids": sorted(self.stop_ids), "variables": self.variables}

    def encode(self, example: Example) -> list[Encoded]:
        """The sequences of one example.

        A chat is one sequence (of which nothing is learned where no turn is the assistant's); where its template shows earlier
        turns otherwise than they were said (thoughts taken out, say), one for every form, so that each answer is learned
        behind what serving shows before it. A preference is two, chosen and rejected, with the same prompt.

        :raises DataError: it cannot be rendered; the message names its file and line.
        """
        try:
            return self._encode(example)
        except UsageError as error:
            raise DataError(f"{example.origin}: {error}") from error

    def _encode(self, example: Example) -> list[Encoded]:
        if isinstance(example, Chat):
            return self._chat(example)
        if isinstance(example, Completion):
            return [self._completion(example.prompt, example.completion, example.origin)]
        if isinstance(example, PlainText):
            return [self._text(example.text, example.origin)]
        if isinstance(example, Preference):
            return self._preference(example)
        return [self._labelled(example)]

    def prompt_ids(self, example: Example) -> list[int]:
        """What serving reads before the last thing that is learned of an example: the ids that ``Model.chat`` or
        ``Model.generate`` gives to the model.

        :raises DataError: as :meth:`encode`.
        """
        if isinstance(example, Chat):
            return self.chat_prompt(self._before_answer(example), example.tools)
        if isinstance(example, Preference):
            if isinstance(example.prompt, str):
                return self.tokenizer.encode_prompt(example.prompt)
            return self.chat_prompt(example.prompt, example.tools)
        if isinstance(example, Completion):
            return self.tokenizer.encode_prompt(example.prompt)
        return self.tokenizer.encode_prompt(example.text)

    def chat_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """What serving reads before it answers these messages (the renderer's system message added)."""
        options = self._options(tools)
        return encode_chat(self.tokenizer, self._with_system(messages), add_generation_prompt=True, **options).token_ids

    # --- kinds ---

    def _chat(self, example: Chat) -> list[Encoded]:
        messages = self._with_system(example.messages)
        added = len(messages) - len(example.messages)
        spans = self._turns(messages, [place + added for place in _answers(example.messages)], example.tools, example.origin)
        if not spans:  # the store counts it as one in which nothing is learned
            ids = encode_chat(self.tokenizer, messages, **self._options(example.tools)).token_ids
            spans = [Span(ids, [False] * len(ids))]
        if len(spans) > 1:
            self.separate_turns += len(spans) - 1
            self.note(
                "the chat template shows earlier turns otherwise than they were said, so answers are learned in sequences of "
                "their own, each behind what serving shows before it"
            )
        return [make_encoded(span, example.origin) for span in spans]

    def _completion(self, prompt: str, completion: str, origin: Origin) -> Encoded:
        before = self.tokenizer.encode_prompt(prompt)
        ids = before + self._continuation(before, prompt, completion) + self._end()
        return make_encoded(Span(ids, [False] * len(before) + [True] * (len(ids) - len(before))), origin)

    def _text(self, text: str, origin: Origin) -> Encoded:
        ids = self.tokenizer.encode_prompt(text) + self._end()
        return make_encoded(Span(ids, [True] * len(ids)), origin)

    def _preference(self, example: Preference) -> list[Encoded]:
        return [self._answer(example, answer) for answer in (example.chosen, example.rejected)]

    def _answer(self, example: Preference, answer: str | Sequence[Message]) -> Encoded:
        if isinstance(example.prompt, str) and isinstance(answer, str):
            return self._completion(example.prompt, answer, example.origin)
        if isinstance(example.prompt, str) or isinstance(answer, str):
            raise DataError(f"{example.origin}: prompt and answers are of two kinds; give texts or messages for all three")
        prompt = self._with_system(example.prompt)
        messages = [*prompt, *self._with_system(answer)[-len(answer) :]]
        places = [len(prompt) + place for place, message in enumerate(answer) if _is_learned(message)]
        spans = self._turns(messages, places, example.tools, example.origin)
        if len(spans) != 1:
            raise DataError(
                f"{example.origin}: an answer has {len(spans)} turns that the chat template shows in {len(spans)} ways; "
                "give answers of one assistant turn"
                if spans
                else f"{example.origin}: an answer holds no assistant turn; end it with one"
            )
        return make_encoded(spans[0], example.origin)

    def _labelled(self, example: Labelled) -> Encoded:
        if self.labels is None:
            raise UsageError("a row has a label, but no labels were given; use the method classify")
        if example.label not in self.labels:
            known = ", ".join(list(self.labels)[:10])
            raise UsageError(f"unknown label {example.label!r}; the training rows have: {known}")
        ids = self.tokenizer.encode_prompt(example.text)  # as transformers' pipelines read it: the class shows at the last token
        return make_encoded(Span(ids, [False] * len(ids)), example.origin, self.labels[example.label])

    # --- parts ---

    def _turns(
        self, messages: Sequence[Message], places: Sequence[int], tools: Sequence[Mapping[str, Any]], origin: Origin
    ) -> list[Span]:
        """The assistant's turns at these places, each behind what serving reads before it."""
        options = self._options(tools)
        self._check_shown(messages, tools, options["template"].source)
        try:
            return TurnEncoder(self.tokenizer, messages, options, self.stop_ids, self._end()).encode(places)
        except (UsageError, ModelFolderError) as error:
            raise DataError(f"{origin}: {error}") from error

    def _options(self, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """What the conversation is laid out with."""
        self.ensure_template()
        given = list(tools) or None
        return {"tools": given, "template": self.template or ChatTemplate.of(self.tokenizer, tools=given), **self.variables}

    def _check_shown(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], source: str) -> None:
        """:raises UsageError: the template leaves out calls of tools, so that an empty answer would be learned."""
        if "tool_call" not in source and any(message.get("tool_calls") for message in messages):
            raise UsageError(
                "the conversation calls a tool, which the chat template does not show; use a model whose template knows "
                "tools, or leave these rows out"
            )
        if tools and "tools" not in source:
            self.note("the chat template does not show the tools that rows describe")
        if "thinking" not in source and "reasoning" not in source and any(_thought(message) for message in messages):
            self.note("the chat template does not show the thoughts that rows hold, so they are not learned")

    def note(self, sentence: str) -> None:
        """Remember what a person should know, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _with_system(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with the system's, as they go to the template: weights are for us."""
        shown: list[Message] = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
        if self.system is None or (messages and messages[0].get("role") == "system"):
            return shown
        return [{"role": "system", "content": self.system}, *shown]

    def _before_answer(self, example: Chat) -> tuple[Message, ...]:
        places = _answers(example.messages)
        return example.messages[: places[-1]] if places else example.messages

    def _end(self) -> list[int]:
        try:
            return [self.tokenizer.end_of_text_id]
        except ModelFolderError:
            self.note("the vocabulary has no end-of-text token, so the model cannot learn where to stop")
            return []

    def _continuation(self, before: list[int], prompt: str, completion: str) -> list[int]:
        """The tokens of a completion behind those of its prompt, which stay as serving has them."""
        whole = self.tokenizer.encode_prompt(prompt + completion)
        if whole[: len(before)] == before:
            return whole[len(before) :]
        # A token stretches across the border. Encoded behind a line's end, no blank is put before the completion.
        head, joined = self.tokenizer.encode("\n"), self.tokenizer.encode("\n" + completion)
        return joined[len(head) :] if joined[: len(head)] == head else self.tokenizer.encode(completion)


def _answers(messages: Sequence[Message]) -> list[int]:
    """Indices of the assistant's messages that are learned; not of one that opens a conversation, which answers nobody."""
    opening = next((index for index, message in enumerate(messages) if message.get("role") != "system"), len(messages))
    return [index for index, message in enumerate(messages) if index > opening and _is_learned(message)]


def _is_learned(message: Message) -> bool:
    """Whether it is the assistant's, and not given the weight 0 as in OpenAI's files."""
    return message.get("role") == "assistant" and message.get("weight", 1) != 0


def _thought(message: Message) -> bool:
    return any(message.get(name) for name in REASONING_NAMES)
