"""``owngpt eval``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from owngpt.cli import output
from owngpt.cli.options import AdapterFolder, DType, Json
from owngpt.config.checks import at_least


def evaluate(
    model: str,
    /,
    *,
    data: Annotated[list[Path], Parameter(consume_multiple=True, negative_iterable=())],
    context_length: int | None = None,
    stride: int | None = None,
    adapter: AdapterFolder = None,
    dtype: DType = "float32",
    json: Json = False,
) -> dict[str, Any] | None:
    """Score a model on text it never saw, in bits per byte (comparable across tokenizers) and perplexity.

    Parameters
    ----------
    model
        A model folder, an adapter's folder, a .gguf file, or the name of a model that was pulled.
    data
        Files or folders to score, as many as there are.
    context_length
        Tokens the model sees at most; without it, as many as it was made for.
    stride
        Tokens by which the window moves on; smaller gives tokens more context and takes longer. Without it, half the context.
    dtype
        What to compute in: float32 is exact; bfloat16 is faster where the processor has it; auto is as the model is stored.
    """
    for name, value in (("context_length", context_length), ("stride", stride)):
        if value is not None:
            at_least(name, value, 1)

    from owngpt import api

    with output.counter("tokens scored") as progress:
        score = api.evaluate(
            model, data=data, context_length=context_length, stride=stride, dtype=dtype, adapter=adapter, progress=progress
        ).to_dict()
    if json:
        return score
    output.print_pairs({name.replace("_", " "): _shown(value) for name, value in score.items()})
    return None


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
