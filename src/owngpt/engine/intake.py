"""A request that was taken becomes the texts it asked for: each a task, with what chooses its tokens."""

from __future__ import annotations

from owngpt.engine.beam import BeamSearch
from owngpt.engine.branches import Branches
from owngpt.engine.request import Request, Stream
from owngpt.engine.sampling import Sampler
from owngpt.engine.scheduler import Task
from owngpt.engine.sequence import TextSequence
from owngpt.text.tokenizer import Tokenizer


class Intake:
    """Makes the texts of one model's requests."""

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        """:param context_length: longest text in tokens, prompt included."""
        self._tokenizer, self._context_length = tokenizer, context_length

    def samplers(self, request: Request, prompt_tokens: int) -> list[Sampler]:
        """One for each text; a beam search has one, which it forks.

        :raises UsageError: an option does not fit the vocabulary, or a constraint cannot be used.
        """
        config, end_ids = request.config, self._end_ids(request)
        first = Sampler(config, self._tokenizer, prompt_tokens=prompt_tokens, end_ids=end_ids)
        count = 1 if config.num_beams > 1 else config.num_return_sequences
        return [first, *(first.fork(index) for index in range(1, count))]

    def task(
        self, request: Request, stream: Stream, index: int, sampler: Sampler, prompt: list[int], arrival: int, root: object
    ) -> Task:
        """The request's text number ``index``, or its search.

        :param arrival: of the request among others.
        :param root: what the cache's content depends on beside the tokens.
        """
        task = Task(request, stream, index, self._text(request, len(prompt)), list(prompt), arrival, root)
        if request.config.num_beams > 1:
            task.branches = self._search(request, sampler, list(prompt))
        return task

    def _search(self, request: Request, sampler: Sampler, prompt: list[int]) -> Branches:
        most = self._context_length - len(prompt)
        search = BeamSearch(
            request.config, lambda: self._text(request, len(prompt)), self._end_ids(request), prompt, sampler, most
        )
        return Branches(search, prompt)

    def _end_ids(self, request: Request) -> frozenset[int]:
        if request.config.ignore_end:
            return frozenset()
        return self._tokenizer.stop_ids if request.end_ids is None else request.end_ids

    def _text(self, request: Request, prompt_tokens: int) -> TextSequence:
        rolls = request.config.on_full == "roll"
        limit = request.config.max_new_tokens if rolls else self._context_length - prompt_tokens
        return TextSequence(self._tokenizer, request.config, self._end_ids(request), limit)
