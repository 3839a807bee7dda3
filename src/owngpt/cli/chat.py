"""``owngpt chat``: a conversation with models that have a chat template, a shared page with those that have none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from owngpt.cli import output
from owngpt.cli.options import options_of
from owngpt.config.generation import GenerationConfig
from owngpt.errors import UsageError

ChatOptions = options_of(GenerationConfig, leave_out=("num_return_sequences", "num_beams"))


def chat(model: str, /, *, system: str | None = None, options: ChatOptions = None) -> None:
    """Talk to a model.

    Parameters
    ----------
    model
        A model folder, a .gguf file, or the name of a model that was pulled.
    system
        How the model should behave, for models with a chat template.
    """
    options = options or {}
    GenerationConfig(**options)

    from owngpt import api

    Conversation(api.load(model), options, system).run()


class Conversation:
    """Reads lines from the terminal until it ends, and streams an answer to each."""

    def __init__(self, model: Any, options: dict[str, Any], system: str | None) -> None:
        self.model = model
        self.options = options
        self.start: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.start)
        self.templated = bool(model.tokenizer.chat_template)

    def run(self) -> None:
        if sys.stdin.isatty() and find_spec("readline"):
            import_module("readline")  # gives input() its history and editing
        kind = "It talks." if self.templated else "It has no chat template, so it continues your text."
        output.say(f"{kind} /reset starts over, /quit leaves, Ctrl-C stops an answer.")
        while (line := self._read()) is not None:
            if line in ("/quit", "/exit"):
                return
            if line == "/reset":
                self.messages = list(self.start)
                output.say("Started over.")
            elif line.strip():
                self._answer(line)

    def _read(self) -> str | None:
        """One line, or None at the end of the input."""
        while True:
            try:
                return input("> " if sys.stdin.isatty() else "")
            except EOFError:
                return None
            except KeyboardInterrupt:
                output.say("\nCtrl-D or /quit leaves.")

    def _answer(self, line: str) -> None:
        self.messages.append({"role": "user", "content": line})
        pieces: list[str] = []
        try:
            for piece in self._pieces(line):
                pieces.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            output.say(" [stopped]")
        except UsageError as error:  # what was said so far, or this line, is longer than the context
            self.messages.pop()
            output.say(f"{error}; /reset starts over")
            return
        sys.stdout.write("\n")
        self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _pieces(self, line: str) -> Iterator[str]:
        """A templated model answers the conversation; a base model continues this text alone."""
        if self.templated:
            return self.model.chat(self.messages, stream=True, **self.options)
        pieces = self.model.stream(line, **self.options)
        sys.stdout.write(line)
        return pieces  # type: ignore[no-any-return]
