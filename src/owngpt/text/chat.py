"""Chat templates: a conversation laid out as the text that a model was taught to answer, with transformers' semantics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from owngpt.errors import ModelFolderError, UsageError
from owngpt.text.budget import BUDGET, SECONDS, Budget, BudgetError, spending
from owngpt.text.messages import cut_at_tag, plain, plain_messages, tag_last
from owngpt.text.sandbox import BoundedSandbox, GenerationBlocks, generation_listener, paid_filter
from owngpt.text.schema import function_schema

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

LONGEST_SOURCE = 1 << 16
"""Characters; the longest published templates have about 30,000."""
BUDGET_PER_WEIGHT, SECONDS_PER_WEIGHT = 20, 1e-6
"""A long conversation may cost more than a short one."""
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
DEFAULT_TEMPLATE, TOOL_TEMPLATE = "default", "tool_use"


class Rendering(NamedTuple):
    """A conversation as text."""

    text: str
    spans: list[tuple[int, int]]
    """Where, [start, stop) in characters, the ``{% generation %}`` blocks stand: what the assistant said, which is what
    fine-tuning learns."""


class ChatTemplate:
    """A compiled template. It may be shared by threads."""

    def __init__(self, source: str, **names: Any) -> None:
        """Compile.

        :param source: Jinja source, as in a model's ``chat_template.jinja``.
        :param names: what the template may use by name beside the conversation: ``bos_token``, ``eos_token``, ….
        :raises ModelFolderError: the source is not a template.
        """
        self.source, self._names = source, names
        self._template = _compiled(source)

    @classmethod
    def of(cls, tokenizer: Tokenizer, name: str | None = None, tools: Sequence[Any] | None = None) -> ChatTemplate:
        """The tokenizer's template, with the tokens that it may use by name.

        :param name: which one, where the model has several; by default its template for tools if there are ``tools``
            and it has one, else its default.
        :raises UsageError: the model has none.
        """
        values = {key: tokenizer.settings.get(key) for key in SPECIAL_NAMES}
        names = {key: value["content"] if isinstance(value, dict) else value for key, value in values.items() if value}
        return cls(_chosen_source(tokenizer, name, tools), **names)

    def render(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        *,
        documents: Sequence[Any] | None = None,
        continue_final_message: bool | str = False,
        **extra: Any,
    ) -> str:
        """The conversation as text.

        :param messages: ``{"role": …, "content": …}`` each, oldest first.
        :param tools: functions that the model may call: JSON schemas, or Python functions with type hints and a docstring.
        :param add_generation_prompt: end with what makes the model answer.
        :param documents: ``{"title": …, "text": …}`` each, for templates that read them.
        :param continue_final_message: leave the last message open, so that the model goes on with it; a string names the
            field to go on with ("reasoning_content", say) instead of "content".
        :param extra: anything else that the template reads, such as ``enable_thinking``.
        :raises UsageError: the template refuses the conversation (roles that do not alternate, say).
        :raises ModelFolderError: the template runs without end or makes a text without bound.
        """
        values = self.values(messages, tools, add_generation_prompt, documents=documents, **extra)
        return self.render_values(values, continue_final_message).text

    def render_with_spans(
        self, messages: Sequence[Any], tools: Sequence[Any] | None = None, add_generation_prompt: bool = False, **extra: Any
    ) -> Rendering:
        """Like :meth:`render`, and where the assistant speaks."""
        return self.render_values(self.values(messages, tools, add_generation_prompt, **extra))

    def values(
        self,
        messages: Sequence[Any],
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
        *,
        documents: Sequence[Any] | None = None,
        **extra: Any,
    ) -> dict[str, Any]:
        """What the template is given, rebuilt of plain JSON types; see :meth:`render`."""
        if documents is not None and not all(isinstance(document, Mapping) for document in documents):
            raise UsageError('a document is not a dict; give {"title": …, "text": …} for each')
        schemas = None if tools is None else [function_schema(tool) if callable(tool) else tool for tool in tools]
        if schemas is not None and not all(isinstance(schema, Mapping) for schema in schemas):
            raise UsageError("a tool is neither a JSON schema nor a function; give a dict or a function with a docstring")
        return {
            **self._names,
            **plain(extra),
            "messages": plain_messages(messages),
            "tools": plain(schemas),
            "documents": plain(documents),
            "add_generation_prompt": add_generation_prompt,
        }

    def render_values(self, values: dict[str, Any], continue_final_message: bool | str = False) -> Rendering:
        """Render what :meth:`values` returned; see :meth:`render`."""
        final = None
        if continue_final_message:
            if values["add_generation_prompt"]:
                raise UsageError("a message is either continued or answered: leave out add_generation_prompt")
            values, final = tag_last(values, continue_final_message, self.source)
        try:
            rendering = self._run(values)
        except BudgetError as error:
            raise ModelFolderError(f"the chat template was cut off: {error.message}") from error
        except Exception as error:  # a template may fail in every way that Python knows
            raise UsageError(f"the chat template refuses this conversation: {_reason(error)}") from error
        return rendering if final is None else rendering._replace(text=cut_at_tag(rendering.text, final))

    def _run(self, values: dict[str, Any]) -> Rendering:
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        written = 0

        def note(length: int) -> None:
            spans.append((written, written + length))

        budget = _budget_for(values)
        token = generation_listener.set(note)
        try:
            with spending(budget):
                for piece in self._template.generate(**values):
                    pieces.append(piece)
                    written += len(piece)
        finally:
            generation_listener.reset(token)
        return Rendering("".join(pieces), spans)


def _chosen_source(tokenizer: Tokenizer, name: str | None, tools: Sequence[Any] | None) -> str:
    sources = dict(tokenizer.named_chat_templates)
    if tokenizer.chat_template:
        sources[DEFAULT_TEMPLATE] = tokenizer.chat_template
    if not sources:
        raise UsageError("this model has no chat template, so it continues text but cannot chat; use generate")
    wanted = name or (TOOL_TEMPLATE if tools is not None and TOOL_TEMPLATE in sources else DEFAULT_TEMPLATE)
    if wanted not in sources:
        raise UsageError(f"this model has no chat template named {wanted!r}; it has: {', '.join(sorted(sources))}")
    return sources[wanted]


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > LONGEST_SOURCE:
        raise ModelFolderError(f"the chat template has {len(source):,} characters; at most {LONGEST_SOURCE:,} are read")
    try:
        with spending(Budget()):
            return _environment().from_string(source)
    except Exception as error:  # its nesting may be too deep for jinja's parser or for Python's compiler, each in its own way
        raise ModelFolderError(f"the chat template cannot be read: {_reason(error)}") from error


def _environment() -> BoundedSandbox:
    environment = BoundedSandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationBlocks])
    environment.filters["tojson"] = paid_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


def _budget_for(values: dict[str, Any]) -> Budget:
    weight = Budget(characters=1 << 40).weigh(values)
    return Budget(BUDGET + BUDGET_PER_WEIGHT * weight, SECONDS + SECONDS_PER_WEIGHT * weight)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is; jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().strftime(str(pattern)[:100])


def _reason(error: BaseException) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError | MemoryError) else str(error) or type(error).__name__
