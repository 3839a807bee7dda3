"""Write text: one prefill of the prompt, then a token at a time for every sequence that has not ended."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from owngpt.config.generation import GenerationConfig
from owngpt.engine import sampling
from owngpt.engine.beam import BeamSearch, search_alone
from owngpt.engine.cache import CachedContext
from owngpt.engine.sampler import Sampler
from owngpt.engine.sequence import Generation, TextSequence
from owngpt.errors import UsageError
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer


def generate(
    model: GPT, tokenizer: Tokenizer, prompt_ids: Sequence[int], config: GenerationConfig, end_ids: Collection[int] | None = None
) -> list[Generation]:
    """Write ``config.num_return_sequences`` continuations of a prompt.

    With ``num_beams`` above 1 they are the best of a beam search, which ignores temperature, top-k, top-p, min-p and seed.
    The same seed gives the same texts on the same machine; the first text does not depend on how many were asked for.

    :param prompt_ids: the prompt's tokens; empty starts a new document, if the tokenizer has a token for that.
    :param end_ids: tokens that end a text; by default the tokenizer's ``stop_ids``.
    :raises UsageError: when the prompt does not leave room for one token in the model's context, or names unknown ids.
    """
    writer = _Writer(model, tokenizer, prompt_ids, config, end_ids)
    if config.num_beams > 1:
        return writer.search()
    for _ in writer.write():
        pass
    return [sequence.result() for sequence in writer.sequences]


def generate_stream(
    model: GPT, tokenizer: Tokenizer, prompt_ids: Sequence[int], config: GenerationConfig, end_ids: Collection[int] | None = None
) -> TextStream:
    """Write one continuation, handing on its text as it comes; the same text as :func:`generate` with the same seed.

    :raises UsageError: as :func:`generate`, and when several sequences or beams are asked for, which cannot stream.
    """
    for name in ("num_return_sequences", "num_beams"):
        if getattr(config, name) != 1:
            raise UsageError(
                f"{name} is {getattr(config, name)}; a stream is a single text: use 1, or generate without streaming"
            )
    return TextStream(_Writer(model, tokenizer, prompt_ids, config, end_ids))


class TextStream(Iterator[str]):
    """The pieces of one text, each valid UTF-8 and not empty. Dropping it stops the work: nothing runs ahead."""

    def __init__(self, writer: _Writer) -> None:
        self._sequence = writer.sequences[0]
        self._pieces = writer.write()

    def __next__(self) -> str:
        for piece in self._pieces:
            if piece:
                return piece
        raise StopIteration

    @property
    def generation(self) -> Generation:
        """The whole text and why it ended; only after the last piece."""
        return self._sequence.result()


class _Writer:
    """One request: checked, prefilled once, then decoded."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        end_ids: Collection[int] | None,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._config = config
        self._end_ids = tokenizer.stop_ids if end_ids is None else frozenset(end_ids)
        self._prompt_ids = _checked_prompt(model, tokenizer, prompt_ids)
        self._limit = model.config.context_length - len(self._prompt_ids)
        self._context = CachedContext(model.config)
        self.sequences = [self._new_sequence() for _ in range(config.num_return_sequences)]

    def write(self) -> Iterator[str]:
        """Decode every sequence to its end; yields the pieces of the first."""
        samplers = [Sampler(self._config, index) for index in range(len(self.sequences))]
        live = list(range(len(self.sequences)))
        logits = self._extend([self._prompt_ids])
        if len(live) > 1:
            self._context.select(torch.zeros(len(live), dtype=torch.int64))
            logits = logits.expand(len(live), -1)
        while True:
            chosen = {}
            for row, index in enumerate(live):
                used = (*self._prompt_ids, *self.sequences[index].token_ids) if self._config.repetition_penalty != 1.0 else ()
                chosen[index] = samplers[index].pick(logits[row], used)
                piece = self.sequences[index].push(chosen[index])
                if index == 0:
                    yield piece
            rows = [row for row, index in enumerate(live) if self.sequences[index].stop_reason is None]
            if not rows:
                return
            if len(rows) < len(live):
                self._context.select(torch.tensor(rows))
                live = [live[row] for row in rows]
            logits = self._extend([[chosen[index]] for index in live])

    def search(self) -> list[Generation]:
        """Beam search instead of sampling."""
        sampler = sampling.Sampler(self._config, self._tokenizer, prompt_tokens=len(self._prompt_ids), end_ids=self._end_ids)
        search = BeamSearch(self._config, self._new_sequence, self._end_ids, self._prompt_ids, sampler, self._limit)
        return search_alone(search, self._context, self._extend, self._prompt_ids)

    def _new_sequence(self) -> TextSequence:
        return TextSequence(self._tokenizer, self._config, self._end_ids, self._limit)

    def _extend(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """(rows, V) float32 logits on the CPU after the given tokens of each row; ids without a token cannot be chosen."""
        device = self._model.embedding.weight.device
        logits = self._context.extend(self._model, torch.tensor(token_ids, dtype=torch.int64, device=device)).cpu()
        beyond = torch.arange(logits.shape[1]) >= self._tokenizer.vocab_size  # the embedding may be padded beyond the tokenizer
        return logits.masked_fill(beyond, float("-inf"))


def _checked_prompt(model: GPT, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> list[int]:
    ids = list(prompt_ids)
    if not ids:
        if tokenizer.begin_of_text_id is None:
            raise UsageError("the prompt is empty and this tokenizer has no token to begin a text with; give some text")
        ids = [tokenizer.begin_of_text_id]
    wrong = [token_id for token_id in ids if not 0 <= token_id < model.config.vocab_size]
    if wrong:
        raise UsageError(
            f"token id {wrong[0]} of the prompt is outside the model's vocabulary, 0 to {model.config.vocab_size - 1}"
        )
    limit = model.config.context_length - 1
    if len(ids) > limit:
        raise UsageError(
            f"the prompt is {len(ids)} tokens; this model's context of {limit + 1} leaves room for at most {limit}: "
            "shorten the prompt"
        )
    return ids
