"""The next token of many texts from their logits: the likeliest, or one drawn from the truncated distribution.

Settings of a text are the numbers of :data:`SETTINGS`, in that order. A temperature of 0 takes the likeliest token, the lowest
id among equals. Otherwise top-k, top-p, min-p and typical-p apply one after the other, each to what the one before left, and
``point``, a number from 0 to below 1, chooses by the cumulative distribution of what is left, in the order of ids.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import chain
from types import MappingProxyType

import torch
from torch import Tensor

from owngpt.kernels import library

SETTINGS = ("temperature", "top_k", "top_p", "min_p", "typical_p", "point")
NO_NUMBER = -1
"""In place of a token: the row holds not-a-number, or nothing finite."""
NO_MEMORY = -2
LIKELIEST = 1024
"""Tokens the PyTorch path looks at before it sorts all."""


def choose(
    logits: Tensor, settings: Sequence[Sequence[float]], instead: Mapping[int, Tensor] = MappingProxyType({})
) -> list[int]:
    """Choose a token for each row.

    :param logits: (R, V) float32 on the CPU, each row contiguous; minus infinity for what may not be chosen.
    :param settings: R times the numbers of :data:`SETTINGS`.
    :param instead: rows, (V,) each, that take the place of those in ``logits``.
    :returns: a token for each row, or :data:`NO_NUMBER`.
    """
    count, width = logits.shape
    assert logits.stride(1) == 1
    assert all(row.is_contiguous() for row in instead.values())
    assert all(tensor.dtype == torch.float32 for tensor in (logits, *instead.values()))
    if library.functions("inference") is None:
        rows = [instead.get(row, logits[row]) for row in range(count)]
        return [_choose(row, *map(float, numbers)) for row, numbers in zip(rows, settings, strict=True)]
    # Plain arrays and no view of any row: between two steps the caches hold weights, nothing of numpy, PyTorch or Python.
    first, apart = logits.data_ptr(), logits.stride(0) * 4
    addresses, chosen = array("q", [first + row * apart for row in range(count)]), array("i", [NO_NUMBER]) * count
    for row, tensor in instead.items():
        addresses[row] = tensor.data_ptr()
    numbers = array("d", chain.from_iterable(settings))
    assert len(numbers) == count * len(SETTINGS)
    places = [each.buffer_info()[0] for each in (addresses, numbers, chosen)]
    library.call("sample", *places, width, count)
    found = chosen.tolist()
    if NO_MEMORY in found:
        raise MemoryError("there is no memory to choose tokens in")
    return found


def _choose(logits: Tensor, temperature: float, top_k: float, top_p: float, min_p: float, typical_p: float, point: float) -> int:
    best = logits.max()
    if not torch.isfinite(best):
        return NO_NUMBER
    if temperature == 0.0:
        return int((logits == best).nonzero()[0])  # argmax does not promise the first among equals
    weights = ((logits.double() - best) / max(temperature, 1e-30)).exp()
    ids = None
    if 0 < top_k < len(weights) or top_p < 1.0 or min_p > 0.0:
        ids = _likeliest(logits, weights, int(top_k), top_p, min_p)
    if typical_p < 1.0:
        ids = _typical(weights, torch.arange(len(weights)) if ids is None else ids, typical_p)
    if ids is not None:
        weights = weights[ids]
    cumulative = weights.cumsum(0)
    index = int(torch.searchsorted(cumulative, point * cumulative[-1], right=True))
    index = min(index, int(weights.nonzero()[-1]))  # the product can round up to the total
    return index if ids is None else int(ids[index])


def _likeliest(logits: Tensor, weights: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Ids that top-k, top-p and min-p leave, in order."""
    total = weights.sum()
    for count in (min(LIKELIEST, len(logits)), len(logits)):
        values, ids = logits.topk(count) if count < len(logits) else logits.sort(descending=True, stable=True)
        ranked = weights[ids]
        if top_k and top_k <= count:
            enough = bool(values[-1] < values[top_k - 1])  # otherwise a tie with a lower id may be outside
        else:
            enough = top_p < 1.0 and not top_k and bool(ranked[:-1].sum() >= top_p * total) and bool(values[-1] < values[-2])
        if enough or count == len(logits):
            break
    order = torch.argsort(ids)
    order = order[torch.argsort(values[order], descending=True, stable=True)]  # among equals the lower id first
    ids, ranked = ids[order], ranked[order]
    if top_k:
        ids, ranked = ids[:top_k], ranked[:top_k]
    if top_p < 1.0:
        keep = ranked.cumsum(0) - ranked < top_p * (ranked.sum() if top_k else total)
        ids, ranked = ids[keep], ranked[keep]
    return ids[ranked >= min_p].sort().values


def _typical(weights: Tensor, ids: Tensor, share: float) -> Tensor:
    """Of these ids, those whose information is nearest to its mean, up to a share of their probability."""
    probabilities = weights[ids] / weights[ids].sum()
    information = -probabilities.log()
    mean = (probabilities * information).nan_to_num().sum()
    order = (information - mean).abs().argsort(stable=True)
    ranked = probabilities[order]
    return ids[order[ranked.cumsum(0) - ranked < share]].sort().values
