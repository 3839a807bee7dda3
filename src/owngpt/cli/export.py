"""``owngpt export``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from owngpt.cli.options import AdapterFolder, Json
from owngpt.cli.output import say
from owngpt.errors import UsageError


def export(
    model: str,
    /,
    *,
    output: Annotated[Path, Parameter(alias="-o")],
    format: Annotated[Literal["hf", "gguf", "ollama"] | None, Parameter(show_default=False)] = None,
    adapter: AdapterFolder = None,
    merge: Annotated[bool, Parameter(show_default=False)] = False,
    dtype: Annotated[str | None, Parameter(show_default=False)] = None,
    force: Annotated[bool, Parameter(show_default=False)] = False,
    json: Json = False,
) -> dict[str, Any] | None:
    """Write a model for other programs.

    Parameters
    ----------
    model
        A model folder, an adapter's folder, a .gguf file or the name of a pulled model.
    output
        A folder; for gguf a file that ends in .gguf.
    format
        hf: a folder that transformers and vLLM open; gguf: one file for llama.cpp; ollama: a GGUF with its Modelfile.
    merge
        Put an adapter into its base, as --format hf unless another is named: the result opens without either.
    dtype
        hf: float32, bfloat16 or float16 (default: as it is); gguf and ollama: float32, float16, bfloat16, q8_0 (default) or q4_0.
    force
        Replace what is there.
    """
    from owngpt import api

    if format is None:
        if not merge:
            raise UsageError("--format is missing: hf, gguf or ollama (or --merge, which puts an adapter into its base)")
        format = "hf"
    if merge:
        _check_adapter(model, adapter)
    written = api.export(model, format=format, output=output, dtype=dtype, force=force, adapter=adapter)
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


def _check_adapter(model: str, adapter: str | None) -> None:
    from owngpt.formats.adapted import is_adapter
    from owngpt.formats.locate import locate

    if adapter is None and not is_adapter(locate(model)):
        raise UsageError(f"--merge, but {model} is no adapter; name an adapter's folder as the model, or with --adapter")
