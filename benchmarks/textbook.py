"""The plain baseline: a textbook character-level GPT, trained with AdamW in float32 for a given time.

The recipe is the one that every introduction to GPTs walks through, with its usual small settings for a CPU: 4 layers, 4 heads,
128 wide, 64 characters of context, 12 sequences a step, learning rate 1e-3 falling to 1e-4 along a cosine.

    python benchmarks/textbook.py --train plays/ --held hamlet.txt --seconds 145
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from owngpt.data.sources import documents

UNICODE_CHARACTERS = 0x110000 - 2048
"""Code points that can occur in text: all but the surrogates."""
IGNORED = -100
SCORED_WINDOWS = 256
"""Windows in one forward pass while scoring."""


@dataclass(frozen=True)
class Recipe:
    """The textbook's settings."""

    layers: int = 4
    heads: int = 4
    width: int = 128
    context_length: int = 64
    batch_size: int = 12
    peak_rate: float = 1e-3
    floor_rate: float = 1e-4
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    clip: float = 1.0


class Alphabet:
    """The characters of the training text as token ids, with an escape for all others.

    An unknown character is coded as an escape and then as one of the remaining Unicode characters, all alike. The escape's
    probability is Good and Turing's estimate from the training text: the share of characters that occur only once.
    """

    def __init__(self, text: str) -> None:
        self.codes, counts = np.unique(_code_points(text), return_counts=True)
        self.filler = int(counts.argmax())
        """What the model reads where a character is unknown: the most frequent one."""
        escape = (1 + int((counts == 1).sum())) / (2 + int(counts.sum()))
        self.escape_bits = -math.log2(escape) + math.log2(UNICODE_CHARACTERS - len(self.codes))
        self.known_bits = -math.log2(1 - escape)
        """What a known character costs on top, because the escape has a share of the probability."""

    def __len__(self) -> int:
        return len(self.codes)

    def encode(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids (N,) int64, unknown (N,) bool), one for each character."""
        points = _code_points(text)
        places = np.searchsorted(self.codes, points).clip(max=len(self.codes) - 1)
        known = self.codes[places] == points
        return np.where(known, places, self.filler).astype(np.int64), ~known


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.heads = recipe.heads
        self.attention_norm, self.mlp_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_output = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)"""
        B, T, C = x.shape
        heads = self.query_key_value(self.attention_norm(x)).view(B, T, 3, self.heads, C // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_output(mixed.transpose(1, 2).reshape(B, T, C))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))


class TextbookGPT(nn.Module):
    """GPT-2's layout without biases, embedding and head tied."""

    def __init__(self, vocabulary: int, recipe: Recipe, generator: torch.Generator) -> None:
        super().__init__()
        self.recipe = recipe
        self.embedding = nn.Embedding(vocabulary, recipe.width)
        self.positions = nn.Embedding(recipe.context_length, recipe.width)
        self.blocks = nn.ModuleList(Block(recipe) for _ in range(recipe.layers))
        self.final_norm = nn.LayerNorm(recipe.width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("attention_output.weight", "down.weight"))
                nn.init.normal_(parameter, 0.0, 0.02 / (math.sqrt(2 * recipe.layers) if residual else 1.0), generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) int64 → logits (B, T, V)"""
        x = self.embedding(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.final_norm(x), self.embedding.weight)


@dataclass(frozen=True)
class Run:
    """A finished training; seconds are those of training alone, without reading and scoring."""

    model: TextbookGPT
    steps: int
    seconds: float


def train(
    ids: Tensor, vocabulary: int, seconds: float, *, recipe: Recipe | None = None, seed: int = 0,
    watch: Callable[[TextbookGPT, float], bool] | None = None, every: float = 10.0,
) -> Run:  # fmt: skip
    """Train on (N,) int64 ids for ``seconds``.

    ``watch`` is called about every ``every`` seconds with the model and the seconds trained; the clock stands still
    meanwhile, and True ends the training.
    """
    recipe = recipe or Recipe()
    if len(ids) < recipe.context_length + 2:
        raise SystemExit(
            f"the training text has {len(ids)} characters, fewer than one context of {recipe.context_length}; give more text"
        )
    generator = torch.Generator().manual_seed(seed)
    model = TextbookGPT(vocabulary, recipe, generator)
    optimizer = _optimizer(model, recipe)
    step, elapsed, next_watch = 0, 0.0, every
    while elapsed < seconds:
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = _rate(recipe, step, elapsed / seconds)
        _step(model, optimizer, ids, recipe, generator)
        step, elapsed = step + 1, elapsed + time.perf_counter() - began
        if watch and elapsed >= next_watch:
            next_watch += every
            if watch(model, elapsed):
                break
    return Run(model, step, elapsed)


def _optimizer(model: TextbookGPT, recipe: Recipe) -> torch.optim.AdamW:
    """Only matrices decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=recipe.betas)


def _rate(recipe: Recipe, step: int, progress: float) -> float:
    """Linear warm-up, then half a cosine over the time given."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return min(1.0, (step + 1) / recipe.warmup_steps) * (recipe.floor_rate + cosine * (recipe.peak_rate - recipe.floor_rate))


def _step(model: TextbookGPT, optimizer: torch.optim.AdamW, ids: Tensor, recipe: Recipe, generator: torch.Generator) -> None:
    T = recipe.context_length
    starts = torch.randint(len(ids) - T, (recipe.batch_size, 1), generator=generator)
    rows = ids[starts + torch.arange(T + 1)]
    loss = functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()


def bits_per_byte(model: TextbookGPT, alphabet: Alphabet, texts: Iterable[str]) -> tuple[float, int]:
    """(bits per byte, UTF-8 bytes) of documents, with a window that moves on by half the context.

    That is `owngpt eval`'s way. A document's first character has nothing to be predicted from and costs log2 V bits.
    """
    bits, size = 0.0, 0
    for text in texts:
        ids, unknown = alphabet.encode(text)
        if not len(ids):
            continue
        size += len(text.encode("utf-8"))
        bits += unknown.sum() * alphabet.escape_bits + (~unknown).sum() * alphabet.known_bits
        bits += math.log2(len(alphabet)) * float(not unknown[0])
        bits += _nats(model, torch.from_numpy(ids), torch.from_numpy(unknown)) / math.log(2)
    if not size:
        raise SystemExit("the held-out files hold no text")
    return bits / size, size


@torch.no_grad()
def _nats(model: TextbookGPT, ids: Tensor, unknown: Tensor) -> float:
    """Sum of -ln P over all known characters but the first, each seen by exactly one window."""
    T = model.recipe.context_length
    stride = T // 2
    count = 1 + max(0, math.ceil((len(ids) - 1 - T) / stride))
    length = T + (count - 1) * stride + 1
    inputs, targets = torch.zeros(length, dtype=torch.int64), torch.full((length,), IGNORED)
    inputs[: len(ids)] = ids
    targets[: len(ids)] = torch.where(unknown, IGNORED, ids)
    input_rows, target_rows = inputs.unfold(0, T + 1, stride)[:, :-1], targets.unfold(0, T + 1, stride)[:, 1:].clone()
    target_rows[1:, : T - stride] = IGNORED
    total = 0.0
    for rows, wanted in zip(input_rows.split(SCORED_WINDOWS), target_rows.split(SCORED_WINDOWS), strict=True):
        logits = model(rows).flatten(0, 1)
        total += float(functional.cross_entropy(logits, wanted.flatten(), ignore_index=IGNORED, reduction="sum"))
    return total


def read(paths: Iterable[Path]) -> list[str]:
    """The documents of files and folders, read by the same code as `owngpt eval` reads them."""
    return [document.text for document in documents(list(paths))]


def main() -> None:
    """Train, score, print; with ``--every`` also the score on the way."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", nargs="+", type=Path, required=True, help="files and folders to train on")
    parser.add_argument("--held", nargs="+", type=Path, required=True, help="files and folders to score")
    parser.add_argument("--seconds", type=float, default=145.0, help="of training; reading and scoring come on top")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, help="log the held-out score each time so many seconds were trained")
    parser.add_argument("--until", type=float, help="stop once the score is at or below this; needs --every")
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    alphabet, ids = _prepared(read(options.train))
    held = read(options.held)
    curve: list[tuple[float, float]] = []

    def watch(model: TextbookGPT, elapsed: float) -> bool:
        curve.append((elapsed, bits_per_byte(model, alphabet, held)[0]))
        print(f"{elapsed:7.1f} s  {curve[-1][1]:.4f} bits per byte", flush=True)
        return options.until is not None and curve[-1][1] <= options.until

    run = train(
        ids, len(alphabet), options.seconds, seed=options.seed, watch=watch if options.every else None, every=options.every or 1.0
    )
    score, size = bits_per_byte(run.model, alphabet, held)
    print(f"{score:.4f} bits per byte on {size:,} held-out bytes after {run.seconds:.1f} s and {run.steps:,} steps")
    if options.json:
        result: dict[str, Any] = {
            "bits_per_byte": score,
            "bytes": size,
            "steps": run.steps,
            "seconds": run.seconds,
            "vocabulary": len(alphabet),
        }
        result |= {"curve": curve, "recipe": asdict(Recipe()), "train_characters": len(ids)}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def _prepared(texts: list[str]) -> tuple[Alphabet, Tensor]:
    text = "\n".join(texts)
    if not text:
        raise SystemExit("the training files hold no text")
    alphabet = Alphabet(text)
    return alphabet, torch.from_numpy(alphabet.encode(text)[0])


if __name__ == "__main__":
    main()
