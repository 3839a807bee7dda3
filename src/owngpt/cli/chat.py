"""``owngpt chat``: a conversation with models that have a chat template; those that have none continue a text."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from owngpt.cli import output
from owngpt.cli.options import AdapterFolder, Draft, DType, Quantize, Speculate, options_of, quantize_for
from owngpt.config.generation import GenerationConfig
from owngpt.errors import OwnGPTError, UsageError
from owngpt.kernels.startup import hasten
from owngpt.text.turns import latest_turns

ChatOptions = options_of(GenerationConfig, leave_out=("num_return_sequences", "num_beams"))

COMMANDS = {
    "/help": "this list",
    "/system TEXT": "how the model should behave from here on; without TEXT, no longer",
    "/save FILE": "write the conversation as one line of JSON, as chat data is written",
    "/reset": "start over",
    "/quit": "leave",
}
BLOCK = '"""'
HINT = f"/help lists the commands, {BLOCK} begins and ends several lines, Ctrl-C stops an answer, Ctrl-D or /quit leaves."


def chat(
    model: str,
    /,
    *,
    system: str | None = None,
    options: ChatOptions = None,
    adapter: AdapterFolder = None,
    quantize: Quantize = "auto",
    dtype: DType = "auto",
    speculate: Speculate = False,
    draft: Draft = None,
) -> None:
    """Talk to a model.

    Parameters
    ----------
    model
        A model folder, an adapter's folder, a .gguf file, or the name of a pulled model.
    system
        How the model should behave, for models with a chat template.
    quantize
        Weights to write with: none, int8, int4, or auto, the fastest that write nearly as well.
    dtype
        What to compute in: auto, float32 (exact), bfloat16, float16.
    """
    options = options or {}
    GenerationConfig(**options)

    hasten("inference")
    from owngpt import api

    loaded = api.load(
        model, adapter=adapter, quantize=quantize_for(quantize, dtype), dtype=dtype, speculate=speculate, draft=draft
    )
    Conversation(loaded, options, system).run()


class Conversation:
    """Reads from the terminal until it ends, and streams an answer to each message."""

    def __init__(self, model: Any, options: dict[str, Any], system: str | None) -> None:
        self.model = model
        self.options = options
        self.templated = bool(model.tokenizer.chat_template)
        self.messages: list[dict[str, Any]] = []
        self._forgotten = 0  # turns that no longer fit the model's context
        self._set_system(system)

    def run(self) -> None:
        """Until the input ends or the person leaves."""
        if sys.stdin.isatty() and find_spec("readline"):
            import_module("readline")  # gives input() its history and editing
        output.say(f"Running on {self.model.engine.setup}.")
        kind = "It talks." if self.templated else "It has no chat template, so it continues each text that you give it."
        output.say(f"{kind} {HINT}")
        while (text := self._read()) is not None:
            if text.startswith("/"):
                if not self._obey(*text.split(maxsplit=1)):
                    return
            elif text.strip():
                self._answer(text)

    def _read(self) -> str | None:
        """A line, several between triple quotes or with a backslash at their ends, or None at the end of the input."""
        lines: list[str] = []
        in_block = False
        while True:
            try:
                line = input(("... " if lines or in_block else "> ") if sys.stdin.isatty() else "")
            except EOFError:
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                output.say("\nCtrl-D or /quit leaves.")
                lines, in_block = [], False
                continue
            except UnicodeDecodeError as error:
                output.say(f"What came in is not {error.encoding} text; it is left out.")
                lines, in_block = [], False
                continue
            if not in_block and not lines and line.startswith(BLOCK):
                in_block, line = True, line.removeprefix(BLOCK)
                if not line:
                    continue
            if in_block:
                if line.rstrip().endswith(BLOCK):
                    return "\n".join([*lines, line.rstrip().removesuffix(BLOCK)]).rstrip("\n")
                lines.append(line)
            elif line.endswith("\\"):
                lines.append(line.removesuffix("\\"))
            else:
                return "\n".join([*lines, line])

    def _obey(self, command: str, argument: str = "") -> bool:
        """Do what a command says. :returns: whether to go on."""
        if command in ("/quit", "/exit", "/bye"):
            return False
        if command == "/reset":
            self.messages = [message for message in self.messages if message["role"] == "system"]
            self._forgotten = 0
            output.say("Started over.")
        elif command == "/system":
            self._set_system(argument.strip())
        elif command == "/save":
            self._save(argument.strip())
        else:
            if command not in ("/help", "/?"):
                output.say(f"There is no command {command}.")
            for name, meaning in COMMANDS.items():
                output.say(f"  {name:<14}{meaning}")
        return True

    def _set_system(self, text: str | None) -> None:
        if text and not self.templated:
            output.say("A model without a chat template takes no system prompt; it is left out.")
            return
        self.messages = [message for message in self.messages if message["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def _save(self, name: str) -> None:
        if not name:
            output.say("Name a file: /save FILE")
            return
        try:
            with Path(name).expanduser().open("x", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except FileExistsError:
            output.say(f"{name} exists already; name another file")
        except OSError as error:
            output.say(f"{name} cannot be written: {error.strerror}")
        else:
            output.say(f"Saved {len(self.messages)} messages to {name}.")

    def _answer(self, text: str) -> None:
        before = list(self.messages)
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            stream = self._stream(text)
            for piece in stream:
                pieces.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
            self._note_end(stream.generation.stop_reason)
        except KeyboardInterrupt:
            output.say(" [stopped]")
            if not pieces:  # before the first word: as if nothing had been asked
                self.messages = before
                return
        except UsageError as error:
            self.messages = before
            output.say(f"{error}; /reset starts over")
            return
        except OwnGPTError as error:
            self.messages = before
            output.say(str(error))
            return
        sys.stdout.write("\n")
        sys.stdout.flush()
        self.messages.append({"role": "assistant", "content": "".join(pieces)})

    def _stream(self, text: str) -> Any:
        """A templated model answers the conversation; a base model continues this text alone."""
        if self.templated:
            return self.model.chat(self._latest(), stream=True, **self.options)
        stream = self.model.stream(text, **self.options)  # refuses a text that does not fit before anything is shown
        sys.stdout.write(text)
        return stream

    def _latest(self) -> list[Mapping[str, Any]]:
        """The conversation without its oldest turns, where the context would have no room for an answer."""
        context = self.model.config.context_length
        answer = min(self.options.get("max_new_tokens", GenerationConfig.max_new_tokens), context // 4)
        kept, forgotten = latest_turns(
            self.messages,
            lambda messages: len(self.model.encode_chat(messages).token_ids) + answer <= context,
            at_least=self._forgotten,
        )
        if forgotten > self._forgotten:
            turns = "turn no longer fits" if forgotten == 1 else f"{forgotten} turns no longer fit"
            output.say(f"[the oldest {turns} the model's context of {context}: it does not read them any more]")
        self._forgotten = forgotten
        return kept

    def _note_end(self, reason: str) -> None:
        if reason == "length":
            output.say(" [cut at --max-new-tokens]")
        elif reason == "context":
            output.say(f" [the model's context of {self.model.config.context_length} is full]")
