"""DPO: our loss and gradients against the paper's formula written down once more over transformers' model, in float32."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from report import console, print_table
from safetensors.torch import load_file, save_file

from tuning.side import Chats, TuneSpec, opened

LIMIT = 1e-4
"""What losses and gradients may lie apart."""
BETA = 0.1
NOISE = 0.02
"""How far the policy has moved from its reference: share of each matrix's own spread. Without it all margins are zero."""


def preference(ours: TuneSpec, theirs: TuneSpec, chats: Chats, pairs: int) -> dict[str, Any]:
    """On pairs whose rejected answer is the one to another question, which is in no pair itself: else gradients would cancel."""
    chosen = chats[:pairs]
    rejected = [[*chat[:-1], other[-1]] for chat, other in zip(chosen, chats[pairs : 2 * pairs], strict=True)]
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        policy = moved(Path(ours.path), Path(temporary) / "policy")
        for spec in (ours, theirs):
            console.print(f"[dim]preference: {spec.name}, {pairs} pairs[/]", highlight=False)
            output = Path(temporary) / f"{spec.kind}.safetensors"
            with opened(TuneSpec(**{**vars(spec), "path": str(policy)})) as side:
                found[spec.name] = side.ask(
                    "preference", reference=spec.path, pairs=[list(pair) for pair in zip(chosen, rejected, strict=True)],
                    beta=BETA, output=str(output),
                )  # fmt: skip
            found[spec.name]["gradients"] = load_file(output)
    return _result(found, pairs)


def moved(folder: Path, target: Path) -> Path:
    """A copy of the model that has gone some way, the same way in every run."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name in sorted(weights):
        weight = weights[name]
        if weight.dim() > 1:
            weight += NOISE * float(weight.std()) * torch.randn(weight.shape, generator=generator)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _result(found: dict[str, dict[str, Any]], pairs: int) -> dict[str, Any]:
    (ours, one), (theirs, other) = found.items()
    alike = one.pop("encoded") == other.pop("encoded")
    mine, plain = one.pop("gradients"), other.pop("gradients")
    assert set(mine) == set(plain), sorted(set(mine) ^ set(plain))[:5]
    largest = max(float((mine[name] - plain[name]).abs().max()) for name in plain)
    length = torch.stack([(mine[name] - plain[name]).norm() for name in plain]).norm()
    share = float(length / torch.stack([each.norm() for each in plain.values()]).norm())
    loss = abs(one["loss"] - other["loss"])
    met = max(loss, largest, share) <= LIMIT and alike
    rows = [(name, f"{one[name]:.6f}", f"{other[name]:.6f}") for name in ("loss", "margin", "accuracy")]
    notes = (
        f"losses apart {loss:.1e}; gradients of {len(plain)} tensors: largest difference {largest:.1e}, length of the difference "
        f"{share:.1e} of the gradient's ({'met' if met else 'NOT met'}: at most {LIMIT:g})",
        f"token ids and what is learned of them: {'the same' if alike else 'NOT the same'}",
    )
    print_table(f"DPO, beta {BETA:g}, {pairs} pairs, full model in float32", ("", ours, theirs), rows, notes)
    return {"pairs": pairs, "beta": BETA, "sides": found, "loss_apart": loss, "gradient_apart": largest,
            "gradient_share": share, "encoded_alike": alike, "met": met}  # fmt: skip
