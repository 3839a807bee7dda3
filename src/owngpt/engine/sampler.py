"""From logits to the next token: penalties, truncation, and one draw from a generator of the sequence's own."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

import torch
from torch import Tensor

from owngpt.config.generation import GenerationConfig
from owngpt.errors import ModelFolderError


def penalize(logits: Tensor, used: Iterable[int], penalty: float) -> Tensor:
    """Make tokens that were already used less likely (CTRL, arXiv 1909.05858, section 4.1).

    The paper divides logits by the penalty; as in common practice a negative logit is multiplied instead, so that a
    penalty above 1 always lowers it.

    :param logits: (V,) float.
    :param used: ids of the prompt and of what was written.
    :returns: (V,), a new tensor, or ``logits`` itself when the penalty is 1.
    """
    if penalty == 1.0:
        return logits
    ids = torch.tensor(sorted(set(used)), dtype=torch.int64)
    chosen = logits[ids]
    return logits.index_copy(0, ids, torch.where(chosen > 0, chosen / penalty, chosen * penalty))


def candidates(logits: Tensor, config: GenerationConfig) -> tuple[Tensor, Tensor]:
    """The tokens that may be drawn and their probabilities under temperature, top-k, top-p and min-p, in this order.

    Top-p (arXiv 1904.09751) keeps the fewest likeliest tokens whose sum reaches ``top_p``; min-p (arXiv 2407.01082) keeps
    tokens with at least ``min_p`` times the probability of the likeliest. The likeliest token always stays.

    :param logits: (V,) float; ``config.temperature`` must be above 0.
    :returns: (N,) float64 probabilities that sum to 1, and (N,) int64 token ids.
    """
    logits = logits.double() / config.temperature
    if not config.top_k and config.top_p >= 1.0 and not config.min_p:
        return logits.softmax(0), torch.arange(len(logits))
    count = min(config.top_k or len(logits), len(logits))
    values, ids = logits.topk(count) if count < len(logits) else logits.sort(descending=True, stable=True)
    probabilities = values.softmax(0)
    before = probabilities.cumsum(0) - probabilities  # what likelier tokens hold together
    keep = (before < config.top_p) & (probabilities >= config.min_p * probabilities[0])
    keep[0] = True
    kept = probabilities[keep]
    return kept / kept.sum(), ids[keep]


class Sampler:
    """Draws the tokens of one sequence. Owns its generator: no other sequence changes what this one draws."""

    def __init__(self, config: GenerationConfig, index: int = 0) -> None:
        """:param index: which of the sequences of one request this is; each gets a stream of its own from the seed."""
        self._config = config
        seed = secrets.randbits(63) if config.seed is None else config.seed
        self._generator = torch.Generator().manual_seed(_stream_seed(seed, index))

    def pick(self, logits: Tensor, used: Iterable[int]) -> int:
        """Choose the next token.

        :param logits: (V,) float32 on the CPU; minus infinity for what may not be chosen.
        :param used: ids of the prompt and of what was written, for the repetition penalty.
        :raises ModelFolderError: when the model's output is not a number.
        """
        logits = penalize(logits, used, self._config.repetition_penalty)
        if not torch.isfinite(logits.max()):
            raise ModelFolderError("the model's output is not a number: its weights are damaged or its training diverged")
        if self._config.temperature == 0.0:
            return int(logits.argmax())
        probabilities, ids = candidates(logits, self._config)
        return int(ids[self._draw(probabilities)])

    def _draw(self, probabilities: Tensor) -> int:
        """Index drawn by inverting the cumulative distribution: exactly one random number a token."""
        cumulative = probabilities.cumsum(0)
        point = torch.rand(1, generator=self._generator, dtype=torch.float64) * cumulative[-1]
        index = int(torch.searchsorted(cumulative, point, right=True))
        # `point` can round up to the total; then the last token that has any probability is meant.
        return min(index, int(probabilities.nonzero()[-1]))


def _stream_seed(seed: int, index: int) -> int:
    """A seed for sequence ``index``: hashed, so that seed 7's second sequence is not seed 8's first."""
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
