"""``owngpt export``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from owngpt.cli.options import Json
from owngpt.cli.output import say


def export(
    model: str,
    /,
    *,
    format: Literal["hf", "gguf", "ollama"],
    output: Annotated[Path, Parameter(alias="-o")],
    dtype: Annotated[str | None, Parameter(show_default=False)] = None,
    force: Annotated[bool, Parameter(show_default=False)] = False,
    json: Json = False,
) -> dict[str, Any] | None:
    """Write a model for other programs.

    Parameters
    ----------
    model
        A model folder, a .gguf file or the name of a pulled model.
    format
        hf: a folder that transformers and vLLM open; gguf: one file for llama.cpp; ollama: a GGUF with its Modelfile.
    output
        A folder; for gguf a file that ends in .gguf.
    dtype
        hf: float32, bfloat16 or float16 (default: as it is); gguf and ollama: float32, float16, bfloat16, q8_0 (default) or q4_0.
    force
        Replace what is there.
    """
    from owngpt import api

    written = api.export(model, format=format, output=output, dtype=dtype, force=force)
    if json:
        return {"model": model, "format": format, "output": output, "dtype": written.dtype, "files": written.files,
                "notes": written.notes}  # fmt: skip
    for note in written.notes:
        say(note)
    for file in written.files:
        print(f"{file} ({file.stat().st_size:,} bytes)")
    if format == "ollama":
        say(f"now: ollama create NAME -f {output / 'Modelfile'}")
    return None
