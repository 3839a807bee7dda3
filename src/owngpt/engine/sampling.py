"""From logits to the next token of every text that is due, many texts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from owngpt.config.generation import GenerationConfig
from owngpt.engine import sampler
from owngpt.engine.request import TokenScore
from owngpt.errors import ModelFolderError, OwnGPTError
from owngpt.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Choice:
    """The next token of a text."""

    token_id: int
    score: TokenScore | None = None
    top: tuple[TokenScore, ...] = ()


class Sampler:
    """How one text's tokens are chosen: its settings and its own random numbers."""

    def __init__(self, config: GenerationConfig, tokenizer: Tokenizer, index: int) -> None:
        """:param index: which of the request's texts; each has a random sequence of its own."""
        self.config, self.vocabulary = config, tokenizer.vocab_size
        self.draw = sampler.Sampler(config, index)


def pick(logits: Tensor, samplers: Sequence[Sampler], token_ids: Sequence[Sequence[int]]) -> list[Choice | OwnGPTError]:
    """Choose a token for each row.

    :param logits: (R, V) float32 on the CPU; ids beyond the tokenizer's vocabulary are never chosen.
    :param token_ids: per row its prompt and what was written.
    """
    choices: list[Choice | OwnGPTError] = []
    logits = logits[:, : samplers[0].vocabulary]
    best, greedy = logits.max(dim=1)
    finite = torch.isfinite(best).tolist()
    likeliest = greedy.tolist()
    for row, one in enumerate(samplers):
        if not finite[row]:
            choices.append(
                ModelFolderError("the model's output is not a number: its weights are damaged or its training diverged")
            )
        elif one.config.temperature == 0.0 and one.config.repetition_penalty == 1.0:
            choices.append(Choice(likeliest[row]))
        else:
            choices.append(Choice(one.draw.pick(logits[row], token_ids[row])))
    return choices
