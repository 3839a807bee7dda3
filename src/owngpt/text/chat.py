"""Chat templates: a conversation laid out as the text that a model was taught to answer, with transformers' semantics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import jinja2

from owngpt.errors import ModelFolderError, UsageError
from owngpt.text.sandbox import BoundedSandbox, Budget, BudgetError, GenerationBlocks, generation_listener, spending

if TYPE_CHECKING:
    from owngpt.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template of the models that we fine-tune."""

LONGEST_SOURCE = 1 << 18
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class ChatTemplate:
    """A compiled template. It may be shared by threads."""

    def __init__(self, source: str, **names: Any) -> None:
        """Compile.

        :param source: Jinja source, as in a model's ``chat_template.jinja``.
        :param names: what the template may use by name beside the conversation: ``bos_token``, ``eos_token``, ….
        :raises ModelFolderError: the source is not a template.
        """
        if len(source) > LONGEST_SOURCE:
            raise ModelFolderError(f"the chat template has {len(source):,} characters; at most {LONGEST_SOURCE:,} are read")
        self.source, self._names = source, names
        environment = _environment()
        try:
            with spending(Budget()):
                self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelFolderError(f"the chat template cannot be read: {_reason(error)}") from error

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The tokenizer's template, with the tokens that it may use by name.

        :raises UsageError: the model has none.
        """
        if not tokenizer.chat_template:
            raise UsageError("this model has no chat template, so it continues text but cannot chat; use generate")
        values = {name: tokenizer.settings.get(name) for name in SPECIAL_NAMES}
        names = {name: value["content"] if isinstance(value, dict) else value for name, value in values.items() if value}
        return cls(tokenizer.chat_template, **names)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **extra: Any,
    ) -> str:
        """The conversation as text.

        :param messages: ``{"role": …, "content": …}`` each, oldest first.
        :param tools: JSON schemas of the functions that the model may call.
        :param add_generation_prompt: end with what makes the model answer.
        :param extra: anything else that the template reads, such as ``enable_thinking``.
        :raises UsageError: the template refuses the conversation (roles that do not alternate, say).
        :raises ModelFolderError: the template runs without end or makes a text without bound.
        """
        return self.render_with_spans(messages, tools, add_generation_prompt, **extra)[0]

    def render_with_spans(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **extra: Any,
    ) -> tuple[str, list[tuple[int, int]]]:
        """Like :meth:`render`, and where in the text, [start, stop) in characters, the ``{% generation %}`` blocks stand:
        what the assistant said, which is what fine-tuning learns."""
        for message in messages:
            if not isinstance(message, Mapping):
                raise UsageError(f'a message is a {type(message).__name__}; it must be a dict with "role" and "content"')
        values = {
            **self._names,
            **_plain(extra),
            "messages": [_with_reasoning(_plain(message)) for message in messages],
            "tools": _plain(tools),
            "documents": _plain(extra.get("documents")),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._run(values)
        except BudgetError as error:
            raise ModelFolderError(f"the chat template was cut off: {error.message}") from error
        except (jinja2.TemplateError, RecursionError, TypeError, ValueError, KeyError, ArithmeticError, AttributeError) as error:
            raise UsageError(f"the chat template refuses this conversation: {_reason(error)}") from error

    def _run(self, values: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []

        def note(length: int) -> None:
            start = sum(map(len, pieces))
            spans.append((start, start + length))

        token = generation_listener.set(note)
        try:
            with spending(Budget(Budget().left + 50 * _weight(values))):
                for piece in self._template.generate(**values):
                    pieces.append(piece)
        finally:
            generation_listener.reset(token)
        return "".join(pieces), spans


def _environment() -> BoundedSandbox:
    environment = BoundedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationBlocks])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is; jinja's own filter escapes for HTML."""
    if indent is not None and (not isinstance(indent, int) or indent > 16):
        raise jinja2.TemplateError(f"tojson with an indent of {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(str(pattern)[:100])


def _plain(value: Any) -> Any:
    """The value rebuilt of plain JSON types, so that a template meets no object with methods of its own."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message's thoughts under the names that templates read them by."""
    thoughts = next((message[name] for name in REASONING_NAMES if message.get(name) is not None), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def _weight(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_weight, value.values()))
    return sum(map(_weight, value)) if isinstance(value, list) else 1


def _reason(error: BaseException) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
