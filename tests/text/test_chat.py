"""Chat templates say what transformers makes them say, and a hostile one is cut off."""

from __future__ import annotations

import pytest

from owngpt.errors import ModelFolderError, UsageError
from owngpt.text.chat import CHATML, ChatTemplate
from owngpt.text.training import train_tokenizer

CONVERSATION = [
    {"role": "system", "content": "Be brief. {{ 7 * 7 }}"},
    {"role": "user", "content": "你好 <b>"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye"},
]
TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "int"}}}}}
]

ALTERNATING = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if loop.first and system is defined %}[{{ system }}]{% endif %}
    {%- if loop.last %}{{ '<last>' }}{% endif %}
    {{- '[' ~ message.role ~ ']' + message.content.strip() }}{% if not loop.last %}{{ eos_token }}{% endif %}

{% endfor %}{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}
{%- for word in ['a', 'b', 'c'] %}{% if word == 'b' %}{% continue %}{% endif %}{{ word }}{% endfor %}
{%- set state = namespace(found=false, count=0) %}
{%- for message in messages if message.role == 'user' %}{% set state.count = state.count + loop.length %}{% endfor %}
{%- macro twice(text) %}{{ text * 2 }}{% endmacro %}
{{- twice('x') }} {{ state.count }} {{ messages | map(attribute='role') | join(', ') }} {{ messages | length }}
{{- messages | selectattr('role', 'equalto', 'user') | list | tojson }}
"""


def test_chatml_and_where_the_assistant_speaks() -> None:
    template = ChatTemplate(CHATML)
    text, spans = template.render_with_spans(CONVERSATION, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n")
    assert text.startswith("<|im_start|>system\nBe brief. {{ 7 * 7 }}<|im_end|>\n")
    assert [text[start:stop] for start, stop in spans] == ["Hello!<|im_end|>"]


@pytest.mark.parametrize("source", [CHATML, ALTERNATING])
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize("prompt", [True, False])
def test_same_text_as_transformers(source: str, tools: list[dict] | None, prompt: bool) -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    messages = CONVERSATION if source == CHATML else CONVERSATION[1:]
    theirs, spans = utilities.render_jinja_template(
        [messages], tools=tools, chat_template=source, add_generation_prompt=prompt, return_assistant_tokens_mask=True, **names
    )
    ours = ChatTemplate(source, **names).render_with_spans(messages, tools, prompt)
    assert ours == (theirs[0], [tuple(span) for span in spans[0]])


def test_a_template_knows_the_tokens_of_its_tokenizer() -> None:
    tokenizer = train_tokenizer([], kind="byte").with_chat_template("{{ bos_token }}{{ messages[0].content }}{{ pad_token }}")
    assert ChatTemplate.of(tokenizer).render([{"role": "user", "content": "hi"}]) == "<|endoftext|>hi<|pad|>"
    with pytest.raises(UsageError, match="no chat template"):
        ChatTemplate.of(train_tokenizer([], kind="byte"))


def test_refusals_are_one_sentence() -> None:
    with pytest.raises(UsageError, match="roles must alternate"):
        ChatTemplate(ALTERNATING).render([{"role": "assistant", "content": "I begin"}])
    with pytest.raises(UsageError, match="message is a str"):
        ChatTemplate(CHATML).render(["hi"])  # type: ignore[list-item]
    with pytest.raises(ModelFolderError, match="cannot be read"):
        ChatTemplate("{{ open")


@pytest.mark.parametrize(
    "source", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ cycler.__init__.__globals__ }}"]
)
def test_there_is_no_way_out(source: str) -> None:
    with pytest.raises(UsageError, match="unsafe"):
        ChatTemplate(source).render(CONVERSATION)


def test_objects_with_methods_do_not_reach_the_template() -> None:
    class Thing:
        def remove(self) -> str:
            raise AssertionError("called")

    assert ChatTemplate("{{ messages[0].content }}").render([{"role": "user", "content": Thing()}]) == "<Thing>"
    with pytest.raises(UsageError):
        ChatTemplate("{{ messages[0].content.remove() }}").render([{"role": "user", "content": Thing()}])


def test_a_namespace_and_a_dict_work_as_in_jinja() -> None:
    source = (
        "{% set n = namespace(a=1, self=2) %}{% set n.b = dict(x=3) %}{{ n.a }}{{ n.self }}{{ n.b.x }}{{ dict([('k', 4)]).k }}"
    )
    assert ChatTemplate(source).render(CONVERSATION) == "1234"


def test_nothing_that_is_missing_reaches_the_template() -> None:
    template = ChatTemplate("{{ messages[0].keys() | list | join(',') }}")
    assert template.render([{"role": "user", "content": None, "tool_calls": None}]) == "role"
    with pytest.raises(UsageError, match="empty"):
        template.render([])
    with pytest.raises(UsageError, match="document"):
        template.render(CONVERSATION, documents=["text"])
    with pytest.raises(UsageError, match="tool"):
        template.render(CONVERSATION, tools=[3])
    with pytest.raises(UsageError, match="continued or answered"):
        template.render(CONVERSATION, add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(UsageError, match="to continue"):
        ChatTemplate(CHATML).render([{"role": "assistant", "content": None}], continue_final_message=True)
    with pytest.raises(UsageError, match="leaves out"):
        ChatTemplate("{{ messages[0].content[:2] }}").render([{"role": "user", "content": "long"}], continue_final_message=True)
