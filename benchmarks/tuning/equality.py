"""The first steps of full supervised tuning in float32: ours and transformers' losses on the same chats in the same order."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from report import console, print_table

from owngpt.errors import DataError
from tuning.rows import Rows
from tuning.side import Chats, TuneSpec, opened

LIMIT = 1e-3
"""Nats that two losses may lie apart."""


def equality(ours: TuneSpec, theirs: TuneSpec, chats: Chats, steps: int) -> dict[str, Any]:
    """Each side encodes the chats by its own means; what they encode must be the same, and is what both learn from.

    :raises DataError: there are fewer chats than the steps take.
    """
    wanted = steps * ours.batch_size
    if len(chats) < wanted:
        raise DataError(f"{steps} steps of {ours.batch_size} need {wanted} chats, the file has {len(chats)}; give another file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batches.npz"
        encoded, losses = {}, {}
        for spec in (ours, theirs):
            console.print(f"[dim]equality: {spec.name}, {steps} steps[/]", highlight=False)
            with opened(spec) as side:
                encoded[spec.name] = side.ask("encode", chats=chats[:wanted])
                if not path.exists():
                    sequences = encoded[spec.name]
                    size = spec.batch_size
                    Rows.write(path, [Rows.of(sequences[start : start + size]) for start in range(0, wanted, size)])
                losses[spec.name] = side.ask("learn", path=str(path))
    same = sum(one == other for one, other in zip(*encoded.values(), strict=True))
    apart = [abs(one - other) for one, other in zip(*losses.values(), strict=True)]
    met = max(apart) <= LIMIT and same == wanted
    rows = [
        (str(step + 1), *(f"{values[step]:.6f}" for values in losses.values()), f"{apart[step]:.1e}")
        for step in sorted({0, 1, 4, 9, 14, steps - 1})
        if step < steps
    ]
    notes = (
        f"largest difference of {steps} losses: {max(apart):.1e} ({'met' if met else 'NOT met'}: at most {LIMIT:g})",
        f"encoded alike, ids and what is learned: {same} of {wanted} chats",
    )
    title = f"Full tuning in {ours.dtype}, {ours.batch_size} chats a step, AdamW at {ours.learning_rate:g}"
    print_table(title, ("step", *losses, "apart"), rows, notes)
    return {"steps": steps, "losses": losses, "largest": max(apart), "encoded_alike": same, "chats": wanted, "met": met}
