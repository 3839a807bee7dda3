"""What Ollama needs beside a GGUF: a Modelfile with the chat template in Go's words, stop texts and a system prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from owngpt.config.files import atomic_write_text, make_folder
from owngpt.errors import ModelFolderError, UsageError
from owngpt.formats.gguf.vocabulary import adds_begin
from owngpt.text.chat import ChatTemplate
from owngpt.text.tokenizer import Tokenizer

MODEL_FILE = "model.gguf"
MODELFILE = "Modelfile"
Messages = Sequence[Mapping[str, str]]
PROBES: tuple[Messages, ...] = (
    ({"role": "user", "content": "[u1]"},),
    ({"role": "user", "content": "[u1]"}, {"role": "assistant", "content": "[a1]"}, {"role": "user", "content": "[u2]"}),
    ({"role": "system", "content": "[s]"}, {"role": "user", "content": "[u1]"}),
)
"""Conversations on which a layout must agree with the model's own template."""


@dataclass(frozen=True)
class Layout:
    """One way to lay out a conversation: what stands before and after what each role says."""

    name: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    merged: bool = False
    """The system prompt is the start of the first user turn, which then has no beginning of its own."""

    def render(self, messages: Messages) -> str:
        """What the template says of a conversation that the assistant is to answer, without the begin-of-text token."""
        text, after_system = "", False
        for message in messages:
            before, after = {"system": self.system, "user": self.user, "assistant": self.assistant}[message["role"]]
            text += ("" if after_system and self.merged else before) + message["content"] + after
            after_system = message["role"] == "system"
        return text + self.assistant[0]

    def in_go(self) -> str:
        """The same as a template of Go's text/template, as Ollama fills it in. Nothing in it trims spaces: they are meant."""
        begin = f"{{{{ if not (and $.System (eq $i 1)) }}}}{self.user[0]}{{{{ end }}}}" if self.merged else self.user[0]
        parts = (
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
            '{{ if eq .Role "system" }}', f"{self.system[0]}{{{{ .Content }}}}{self.system[1]}",
            '{{ else if eq .Role "user" }}', f"{begin}{{{{ .Content }}}}{self.user[1]}",
            '{{ else if eq .Role "assistant" }}',
            f"{self.assistant[0]}{{{{ .Content }}}}{{{{ if not $last }}}}{self.assistant[1]}{{{{ end }}}}",
            '{{ end }}{{ if and $last (ne .Role "assistant") }}', self.assistant[0], "{{ end }}{{ end }}",
        )  # fmt: skip
        return "".join(parts)


def _same_for_all(name: str, before: str, after: str, assistant: str = "assistant") -> Layout:
    """A layout in which the role is named in the same place of every turn."""
    roles = ("system", "user", assistant)
    system, user, answer = ((before.format(role), after) for role in roles)
    return Layout(name, system, user, answer)


_GEMMA_USER = ("<start_of_turn>user\n", "<end_of_turn>\n")
LAYOUTS: tuple[Layout, ...] = (
    _same_for_all("ChatML", "<|im_start|>{}\n", "<|im_end|>\n"),
    _same_for_all("Llama 3", "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
    Layout("Gemma", (_GEMMA_USER[0], "\n\n"), _GEMMA_USER, ("<start_of_turn>model\n", "<end_of_turn>\n"), merged=True),
    _same_for_all("Zephyr", "<|{}|>\n", "</s>\n"),
    _same_for_all("Phi-3", "<|{}|>\n", "<|end|>\n"),
    Layout("Mistral", ("[INST] ", "\n\n"), ("[INST] ", " [/INST]"), ("", "</s>"), merged=True),
    Layout("Mistral v3", ("[INST] ", "\n\n"), ("[INST] ", "[/INST]"), ("", "</s>"), merged=True),
    Layout("Mistral v7", ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"), ("[INST]", "[/INST]"), ("", "</s>")),
)


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says."""

    template: str | None
    """In Go; None where the model's template is none that we can say in Go."""
    system: str | None
    """The system prompt that the model's template uses when none is given."""
    stops: tuple[str, ...]

    def text(self) -> str:
        """The file."""
        lines = [f"FROM ./{MODEL_FILE}"]
        if self.template is not None:
            lines.append(f'TEMPLATE """{self.template}"""')
        if self.system is not None:
            lines.append(f'SYSTEM """{self.system}"""')
        lines += [f'PARAMETER stop "{stop}"' for stop in self.stops]
        return "\n".join(lines) + "\n"


def modelfile_of(tokenizer: Tokenizer) -> Modelfile:
    """The Modelfile of a model with this tokenizer."""
    stops = tuple(sorted(tokenizer.token(index) for index in tokenizer.stop_ids))
    if tokenizer.chat_template is None:
        return Modelfile("{{ .Prompt }}", None, stops)
    layout, system = _recognised(tokenizer)
    return Modelfile(layout.in_go() if layout else None, system, stops)


def write_modelfile(folder: Path, tokenizer: Tokenizer) -> tuple[Path, list[str]]:
    """Write the Modelfile beside the model.

    :returns: the file, and what is not quite as asked, in sentences.
    """
    content = modelfile_of(tokenizer)
    for text in (content.template, content.system):
        if text is not None and '"""' in text:
            raise ModelFolderError('its chat template or system prompt has """, which a Modelfile cannot hold; use --format gguf')
    file = make_folder(folder) / MODELFILE
    atomic_write_text(file, content.text())
    if content.template is not None:
        return file, []
    names = ", ".join(layout.name for layout in LAYOUTS)
    return file, [f"the model's chat template is none that can be said in Ollama's language ({names}); Ollama will look for one "
                  "itself, by the template in the GGUF"]  # fmt: skip


def _recognised(tokenizer: Tokenizer) -> tuple[Layout | None, str | None]:
    """The layout that agrees with the model's own template, and the system prompt that the template adds by itself."""
    texts = [_rendered(tokenizer, probe) for probe in PROBES]
    for layout in LAYOUTS:
        system = _added_system(layout, texts[0])
        if all(
            text is None or text == layout.render(_with_system(probe, system))
            for text, probe in zip(texts, PROBES, strict=True)
        ) and any(text is not None for text in texts):  # fmt: skip
            return layout, system
    return None, None


def _rendered(tokenizer: Tokenizer, messages: Messages) -> str | None:
    """The model's own template on a conversation, less the begin-of-text token, which Ollama adds; None where it refuses."""
    try:
        text = ChatTemplate.of(tokenizer).render(messages, add_generation_prompt=True)
    except (ModelFolderError, UsageError):
        return None
    begin = tokenizer.begin_of_text_id
    return text.removeprefix(tokenizer.token(begin)) if begin is not None and adds_begin(tokenizer) else text


def _added_system(layout: Layout, text: str | None) -> str | None:
    before, _, after = layout.render(({"role": "system", "content": "\0"}, *PROBES[0])).partition("\0")
    if text is None or not (text.startswith(before) and text.endswith(after)) or len(text) < len(before) + len(after):
        return None
    found = text[len(before) : len(text) - len(after)]
    return found if found and layout.render(PROBES[0]) != text else None


def _with_system(messages: Messages, system: str | None) -> Messages:
    if system is None or messages[0]["role"] == "system":
        return messages
    return ({"role": "system", "content": system}, *messages)
