"""``owngpt generate``"""

from __future__ import annotations

import sys
from typing import Annotated, Any

from cyclopts import Parameter

from owngpt.cli.options import AdapterFolder, Draft, DType, Json, Quantize, Speculate, options_of, quantize_for
from owngpt.config.generation import GenerationConfig
from owngpt.errors import UsageError
from owngpt.kernels.startup import hasten

GenerationOptions = options_of(GenerationConfig)
MOST_CHARACTERS = 2**24
"""Of a prompt that is piped in; far more than any context holds."""


def generate(
    model: str,
    /,
    *,
    prompt: Annotated[str | None, Parameter(alias="-p", show_default=False)] = None,
    options: GenerationOptions = None,
    adapter: AdapterFolder = None,
    quantize: Quantize = "auto",
    dtype: DType = "auto",
    speculate: Speculate = False,
    draft: Draft = None,
    json: Json = False,
) -> dict[str, Any] | None:
    """Let a model write, token by token as it thinks.

    Parameters
    ----------
    model
        A model folder, an adapter's folder, a .gguf file, or the name of a model that was pulled.
    prompt
        The text to continue; without it, what is piped in.
    quantize
        Weights to write with: none, int8, int4, or auto, the fastest that write nearly as well.
    dtype
        What to compute in: auto, float32 (exact), bfloat16, float16.
    """
    options = options or {}
    settings = GenerationConfig(**options)
    text = _prompt(prompt)

    hasten("inference")
    from owngpt import api

    loaded = api.load(
        model, adapter=adapter, quantize=quantize_for(quantize, dtype), dtype=dtype, speculate=speculate, draft=draft
    )
    if json:
        return {"model": model, "prompt": text, "generations": loaded.generations(text, **options)}
    if settings.num_return_sequences > 1 or settings.num_beams > 1:
        _print_several(text, _texts(loaded.generate(text, **options)))
        return None
    pieces = loaded.stream(text, **options)  # a prompt that does not fit is refused before anything is shown
    sys.stdout.write(text)
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return None


def _prompt(prompt: str | None) -> str:
    if prompt is not None:
        return prompt
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError('there is nothing to continue: give --prompt "…" or pipe a text in')
    try:
        text = sys.stdin.read(MOST_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"what is piped in is not {error.encoding} text (byte {error.object[error.start]:#x}): convert it, as iconv does"
        ) from error
    if len(text) > MOST_CHARACTERS:
        raise UsageError(
            f"what is piped in has more than {MOST_CHARACTERS:,} characters, more than any model reads; pipe in less"
        )
    return text


def _texts(generated: str | list[str]) -> list[str]:
    return [generated] if isinstance(generated, str) else list(generated)


def _print_several(prompt: str, texts: list[str]) -> None:
    for number, text in enumerate(texts, start=1):
        if len(texts) > 1:
            print(f"--- {number} of {len(texts)}")
        print(prompt + text)
