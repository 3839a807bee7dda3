"""The result of :func:`owngpt.bench.run.bench` as tables: a title, names of columns, rows of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]

NOTHING = "–"


def tables(result: Mapping[str, Any]) -> Iterator[Table]:
    """One table a part that was measured. Rows are sides, so that a column compares them."""
    sizes, parts = result["sizes"], result["parts"]
    sides = list(result["sides"])
    if "start" in parts:
        columns = {"caches as they are": ("warm", ".2f"), "no caches": ("cold", ".2f")}
        yield _table("Start of the process to the first token, seconds", sides, parts["start"], columns)
    if "prefill" in parts:
        yield _table(
            f"Prefill of {sizes['prefill']} tokens", sides, parts["prefill"], {"tokens/s": ("tokens_per_second", ",.0f")}
        )
    if "decode" in parts:
        title = f"Decode: tokens/s of all texts together, {sizes['decode_new']} tokens each after {sizes['decode_prompt']}"
        yield _grid(title, sides, {f"batch {name}": found for name, found in parts["decode"].items()}, "tokens_per_second")
        if "1" in parts["decode"]:
            yield _bandwidth(result)
    if "loads" in parts:
        yield _grid(
            "Requests that arrive together: output tokens/s, prompts included", sides, parts["loads"], "output_per_second"
        )
    if "prefix" in parts:
        columns = {"first, s": ("cold", ".3f"), "seen before, s": ("seen", ".3f"), "share": ("seen_to_cold", ".1%")}
        yield _table(f"A shared prefix of {sizes['prefix']} tokens, to the first token", sides, parts["prefix"], columns)
    if "arrival" in parts:
        columns = {
            "median gap before, s": ("median", ".4f"), "p99 gap while it is read, s": ("p99", ".4f"),
            "p99 / median": ("p99_to_median", ".2f"), "p99 / median meanwhile": ("p99_to_median_during", ".2f"),
            "its first token, s": ("first_token", ".2f"),
        }  # fmt: skip
        title = f"A prompt of {sizes['arriving']} tokens arrives among {sizes['streams']} texts being written"
        yield _table(title, sides, parts["arrival"], columns)
    if "idle" in parts:
        yield _table("Idle: share of one core", sides, parts["idle"], {"CPU": ("cpu", ".2%")})
    if "memory" in parts:
        load = sizes["resident"]
        shown = _scaled(parts["memory"], 1e-9)
        title = f"Memory with {load['requests']} requests of {load['prompt'] + load['new']} tokens, GB"
        yield _table(title, sides, shown, {"resident": ("resident", ".2f"), "at most": ("peak", ".2f")})


def _bandwidth(result: Mapping[str, Any]) -> Table:
    """Bytes of weights a second at one row, against what all cores read just before these sides ran."""
    rows: list[tuple[str, ...]] = []
    for side, found in result["parts"]["decode"]["1"].items():
        weight_bytes = result["sides"][side].get("weight_bytes")
        if weight_bytes and "tokens_per_second" in found:
            rate = found["tokens_per_second"]["median"] * weight_bytes
            limit = result["sides"][side]["read_bandwidth"]
            rows.append((side, f"{weight_bytes / 1e6:,.0f}", f"{rate / 1e9:.2f}", f"{limit / 1e9:.1f}", f"{rate / limit:.0%}"))
    columns = ("side", "MB a token", "GB/s", "all cores read just before", "share")
    return "Weights read at batch 1", columns, rows


def _table(title: str, sides: list[str], found: Mapping[str, Any], columns: Mapping[str, tuple[str, str]]) -> Table:
    rows = [
        (side, *(spread(found[side].get(figure), form) for figure, form in columns.values())) if side in found
        else (side, *[NOTHING] * len(columns))
        for side in sides
    ]  # fmt: skip
    return title, ("side", *columns), rows


def _grid(title: str, sides: list[str], groups: Mapping[str, Any], figure: str) -> Table:
    """Columns are batches or loads."""
    rows = [
        (side, *(spread(found.get(side, {}).get(figure), ",.0f" if _large(found) else ",.1f") for found in groups.values()))
        for side in sides
    ]
    return title, ("side", *groups), rows


def _large(found: Mapping[str, Any]) -> bool:
    medians = [numbers["median"] for figures in found.values() for numbers in figures.values()]
    return max(medians, default=0.0) >= 300


def spread(numbers: Mapping[str, Any] | None, form: str) -> str:
    """``median (min–max)``, the range only where there is one."""
    if numbers is None:
        return NOTHING
    median = format(numbers["median"], form)
    return median if len(numbers["values"]) == 1 else f"{median} ({numbers['min']:{form}}–{numbers['max']:{form}})"


def _scaled(found: Mapping[str, Any], factor: float) -> dict[str, Any]:
    def scale(numbers: Mapping[str, Any]) -> dict[str, Any]:
        return {key: [v * factor for v in value] if key == "values" else value * factor for key, value in numbers.items()}

    return {side: {name: scale(numbers) for name, numbers in figures.items()} for side, figures in found.items()}
