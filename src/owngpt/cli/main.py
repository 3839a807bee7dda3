"""The ``owngpt`` command: which verbs there are, and how a failure is told.

A verb prints its result for people on stdout; with ``--json`` it returns a dictionary instead, which is printed here as
the only thing on stdout. Verbs are imported when they are called, so that ``owngpt --help`` never waits for torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from owngpt import __version__
from owngpt.cli import output
from owngpt.errors import OwnGPTError, UsageError

EPILOGUE = (
    "`owngpt VERB --help` tells what a verb takes. Results go to stdout, progress to stderr. "
    "`--debug`, anywhere, shows the traceback of a failure."
)

VERBS = {
    "demo": "Train a small model on text that this computer already has: no network, no account.",
    "doctor": "What this machine has, what it can do at most, and what fits in some minutes.",
    "train": (
        "Train a GPT on your text, in the time you name.\n\n"
        "`owngpt train books/ --minutes 10` ends in ten minutes, everything included. "
        "Without --minutes, --steps or --tokens it takes ten. "
        "What a run needs and is not given is chosen for this machine and this text; --dry-run shows it."
    ),
    "finetune": (
        "Teach a model your task, from examples of it.\n\n"
        "`owngpt finetune MODEL rows.jsonl -o DIR --minutes 10` ends in ten minutes or sooner, with an adapter and a report of "
        "what was gained and what was forgotten. Rows are conversations, prompts and completions, texts, preferences or labels; "
        "--show 3 prints some as the model will read them, --dry-run the plan."
    ),
    "pull": "Bring a model here from a hub, a package index or an address: checked, and gone on with when it was interrupted.",
    "export": "Write a model for other programs: a Hugging Face folder, a GGUF file for llama.cpp, or what Ollama takes.",
    "eval": "Score a model on text it never saw, in bits per byte (comparable across tokenizers) and perplexity.",
    "bench": "How fast a model reads and writes here, alone and in batches, and beside other programs.",
    "generate": "Let a model write, shown as it writes.",
    "chat": (
        "Talk to a model in the terminal; one without a chat template continues your text instead.\n\n"
        "/reset starts over, /quit or Ctrl-D leaves, Ctrl-C stops an answer."
    ),
}
"""Help texts; the first line is what `owngpt --help` shows without importing the verb."""
GROUPS = {
    "data": (
        "Clean, split and tokenize text.",
        {
            "prepare": "Clean, de-duplicate, split and tokenize text into shards that training reads.",
            "report": "What was kept, what was removed and why, from a folder that `data prepare` or `train` made.",
            "sets": "The names of public texts to train on, and of public examples to fine-tune on.",
        },
    ),
    "tokenizer": (
        "Train and judge tokenizers.",
        {
            "train": "Learn a vocabulary from text.",
            "report": "How well a tokenizer fits text: bytes and characters per token by language, unused tokens, byte fallback.",
        },
    ),
}


def build_app() -> App:
    """The command with all its verbs, none of them imported yet."""
    app = App(
        name="owngpt",
        help="Turn a folder of text into a GPT that you own.",
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        version=__version__,
        default_parameter=Parameter(negative=()),
        suppress_keyboard_interrupt=False,
    )
    for position, (verb, text) in enumerate(VERBS.items()):
        function = "evaluate" if verb == "eval" else verb
        app.command(f"owngpt.cli.{function}:{function}", name=verb, help=text, sort_key=position)
    for name, (summary, verbs) in GROUPS.items():
        group = App(name=name, help=summary, sort_key=len(VERBS))
        for verb, text in verbs.items():
            group.command(f"owngpt.cli.{name}:{verb}", name=verb, help=text)
        app.command(group)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    output.tolerate_narrow_encodings()
    try:
        command, positional, named = _parsed(tokens)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OwnGPTError as error:
        return _fail(str(error), error.exit_code)
    return _guarded(lambda: _run(command, positional, named), debug=debug)


def _parsed(tokens: list[str]) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The verb with its arguments.

    :raises UsageError: they are not as the verb wants them.
    """
    try:
        command, bound, _ = build_app().parse_args(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UsageError(f"{_sentence(error)} See `{' '.join(['owngpt', *(error.command_chain or ())])} --help`.") from error
    return command, bound.args, bound.kwargs


def _run(command: Callable[..., Any], positional: tuple[Any, ...], named: dict[str, Any]) -> int:
    """Call the verb; under ``--json`` whatever else is printed on the way goes to stderr."""
    as_json = bool(named.get("json"))
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        result = command(*positional, **named)
    if as_json and result is not None:  # nothing comes back where another process of the same run speaks
        output.print_json(result)
    sys.stdout.flush()
    return 0


def _guarded(work: Callable[[], int], *, debug: bool) -> int:
    """Turn every failure into one sentence on stderr and an exit code; ``debug`` lets the traceback through."""
    try:
        return work()
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", 130)
    except BrokenPipeError:
        output.abandon_stdout()
        return 1
    except OwnGPTError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except OSError as error:
        if debug:
            raise
        place = f" ({error.filename})" if error.filename else ""
        return _fail(f"the system refused: {error.strerror or error}{place}", 1)
    except Exception as error:
        if debug:
            raise
        detail = " ".join(str(error).split()) or "no message"
        return _fail(f"a fault of OwnGPT itself: {type(error).__name__}: {detail}; run again with --debug to see where", 1)


def _sentence(error: CycloptsError) -> str:
    """The parser's complaint as one line, without the details that only a developer wants."""
    error.verbose = False
    text = " ".join(str(error).split())
    return text if text.endswith((".", "?", "!")) else text + "."


def _fail(message: str, code: int) -> int:
    sys.stdout.flush()
    print(f"owngpt: {message}", file=sys.stderr)
    return code
