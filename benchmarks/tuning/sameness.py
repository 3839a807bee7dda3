"""The same step cut in other ways: pass by pass instead of at once, packed into one row instead of in rows of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from report import console, print_table

from tuning.side import Chats, TuneSpec, opened

LIMIT = 1e-5
WAYS = {"passes": "pass by pass", "packed": "packed into one row"}


def sameness(ours: TuneSpec, chats: Chats, rows: int) -> dict[str, Any]:
    """Gradients in float32, of the full model and of adapters; each against ``rows`` rows at once."""
    results: dict[str, Any] = {}
    table = []
    for name, spec in (("full", replace(ours, rank=0)), ("LoRA", replace(ours, rank=16))):
        console.print(f"[dim]sameness: {name}[/]", highlight=False)
        with opened(spec) as side:
            results[name] = side.ask("sameness", chats=chats[:rows])
        table += [
            (f"{name}, {words}", f"{results[name][way]['largest']:.1e}", f"{results[name][way]['share']:.1e}")
            for way, words in WAYS.items()
        ]
    met = all(max(apart.values()) <= LIMIT for ways in results.values() for apart in ways.values())
    note = f"{'met' if met else 'NOT met'}: at most {LIMIT:g}"
    columns = ("gradients of", "largest difference", "difference, share of the gradient")
    print_table(f"One step of {rows} chats, float32, against all of them at once", columns, table, (note,))
    return {"rows": rows, "apart": results, "met": met}
