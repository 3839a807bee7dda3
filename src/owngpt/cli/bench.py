"""``owngpt bench``"""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from owngpt.cli.options import Json
from owngpt.cli.output import print_table, say


def bench(
    model: str,
    /,
    *,
    vs: str = "",
    weights: str = "bf16",
    part: str = "all",
    rounds: int | None = None,
    quick: Annotated[bool, Parameter(show_default=False)] = False,
    llama_server: Annotated[str | None, Parameter(show_default=False)] = None,
    json: Json = False,
) -> dict[str, Any] | None:
    """How fast a model reads and writes here: alone, in batches, with a prefix seen before; and beside other programs.

    Every side runs in a process of its own, and they are asked in turn. Figures are medians, with the range of the rounds.

    Parameters
    ----------
    model
        A model folder, a .gguf file, or the name of a model that was pulled.
    vs
        Programs to measure beside it, where they are installed: transformers,llama.cpp,vllm.
    weights
        How our engine holds the weights: bf16,int8,int4, or some of them. llama.cpp gets as many bits (BF16, Q8_0, Q4_0).
    part
        What to measure: all, or some of start,prefill,decode,loads,prefix,arrival,idle,memory.
    rounds
        Measurements of each side, after one to warm up; without it three.
    quick
        Small sizes and one round: shows in a minute that everything runs.
    llama_server
        A llama-server built for this processor, instead of the one in the wheel xllamacpp.
    """
    from owngpt.bench.race import PARTS
    from owngpt.bench.run import bench as measure

    result = measure(
        model, vs=_listed(vs), weights=_listed(weights), parts=PARTS if part == "all" else _listed(part), rounds=rounds,
        quick=quick, llama_server=llama_server, say=say,
    )  # fmt: skip
    if json:
        return result
    _show(result)
    return None


def _show(result: dict[str, Any]) -> None:
    from rich.table import Table

    from owngpt.bench.tables import tables

    for side, info in result["sides"].items():
        print(f"{side}: {info.get('version', 'did not run')}; {info.get('settings', '')}")
    for title, columns, rows in tables(result):
        print(f"\n{title}")
        table = Table()
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*row)
        print_table(table)
    for failure in result["failures"]:
        say(failure)


def _listed(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())
