"""What speed costs: perplexity of packed weights against the plain forward pass in float32, and whether greedy texts agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from owngpt.bench.open import open_weights
from owngpt.config.generation import GenerationConfig
from owngpt.engine.load import PreparedEngine
from owngpt.engine.request import Request
from owngpt.engine.runner import Part, Runner
from owngpt.errors import DataError
from owngpt.formats.folder import open_model
from owngpt.formats.locate import locate
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

ROWS, LENGTH = 16, 256
"""Windows of the text that are scored side by side, and tokens of each."""
GREEDY_PROMPTS, GREEDY_PROMPT, GREEDY_NEW = 5, 24, 32
ALONE = 48
"""Tokens for which a text is compared alone and among others."""


def quality(
    model: str | Path,
    text: str,
    *,
    weights: Sequence[str] = ("bf16", "int8", "int4"),
    quick: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare the engine with the plain forward pass of the same model in float32.

    :param model: a folder, a .gguf file or the name of a pulled model.
    :param text: is cut into windows, each scored from its own beginning.
    :returns: for each kind of weights the perplexity and its rise over float32, the prompts whose greedy text is the same, and
        the largest difference of a log-probability between a text written alone and among others (nats).
    :raises DataError: the text is too short.
    """
    path = locate(model)
    plain, tokenizer, _ = open_model(path, dtype=torch.float32)
    windows = _windows(tokenizer, text, *((4, 48) if quick else (ROWS, LENGTH)), plain.config.context_length)
    prompts = _prompts(windows, 2 if quick else GREEDY_PROMPTS)
    new = min(8 if quick else GREEDY_NEW, plain.config.context_length - len(prompts[0]) - 1)
    say("float32: the plain forward pass")
    reference = _plain_loss(plain, windows)
    wanted = [_plain_greedy(plain, prompt, new) for prompt in prompts]
    result: dict[str, Any] = {
        "tokens": windows.numel() - len(windows), "windows": len(windows), "window": windows.shape[1],
        "perplexity_float32": math.exp(reference), "greedy_prompts": len(prompts), "greedy_tokens": new, "weights": {},
    }  # fmt: skip
    del plain
    for kind in ("float32", *weights):
        say(f"{kind}: the engine")
        result["weights"][kind] = _kind(path, kind, windows, prompts, wanted, reference)
    return result


def _kind(
    path: Path, kind: str, windows: Tensor, prompts: Sequence[list[int]], wanted: Sequence[list[int]], reference: float
) -> dict[str, Any]:
    engine = open_weights(path, kind, len(windows))
    with engine:
        scores = _runner_scores(engine.runner, windows)
        alone = _runner_scores(engine.runner, windows[:1, : min(ALONE, windows.shape[1])])
        written = _engine_greedy(engine, prompts, len(wanted[0]))
    loss = -float(scores.double().mean())
    return {
        "runs": str(engine.setup),
        "perplexity": math.exp(loss),
        "rise": math.exp(loss - reference) - 1,
        "greedy_same": sum(ours == theirs for ours, theirs in zip(written, wanted, strict=True)),
        "alone_to_batch": float((alone[0] - scores[0, : alone.shape[1]]).abs().max()),
    }


def _windows(tokenizer: Tokenizer, text: str, rows: int, length: int, context_length: int) -> Tensor:
    length = min(length, context_length)
    ids = tokenizer.encode(text)
    rows = min(rows, len(ids) // length)
    if rows < 1 or length < 16:
        raise DataError(f"the text is {len(ids)} tokens; measuring quality needs {max(length, 16)} or more")
    return torch.tensor(ids[: rows * length]).view(rows, length)


def _prompts(windows: Tensor, count: int) -> list[list[int]]:
    length = min(GREEDY_PROMPT, windows.shape[1] // 2)
    return [row[:length].tolist() for row in windows[:count]]


def _plain_loss(model: GPT, windows: Tensor) -> float:
    """Mean negative log-probability of all tokens but the first of each window, in nats."""
    total = 0.0
    with torch.inference_mode():
        for row in windows:
            scores = log_softmax(model.logits(row[None, :-1])[0].float(), dim=-1)
            total -= float(scores.gather(1, row[1:, None]).double().sum())
    return total / (windows.numel() - len(windows))


def _plain_greedy(model: GPT, prompt: Sequence[int], new: int) -> list[int]:
    """The likeliest tokens, each from a forward pass over everything before it."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(new):
            ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def _runner_scores(runner: Runner, windows: Tensor) -> Tensor:
    """Log-probability of each token but the first, (R, T - 1), as decoding computes it: token by token, all rows at once."""
    rows, length = windows.shape
    size = -(-length // runner.block_size)
    blocks = [list(range(1 + row * size, 1 + (row + 1) * size)) for row in range(rows)]
    scores = torch.empty(rows, length - 1)
    with torch.inference_mode():
        for index in range(length - 1):
            parts = [Part([int(windows[row, index])], index, blocks[row]) for row in range(rows)]
            logits = runner.run(parts).float()
            scores[:, index] = log_softmax(logits, dim=-1).gather(1, windows[:, index + 1, None])[:, 0]
    return scores


def _engine_greedy(engine: PreparedEngine, prompts: Sequence[list[int]], new: int) -> list[list[int]]:
    config = GenerationConfig(max_new_tokens=new, temperature=0.0, ignore_end=True)
    requests = (Request(tuple(prompt), config, end_ids=frozenset()) for prompt in prompts)
    return [list(engine.submit(request).result()[0].token_ids) for request in requests]
