"""What a request must be like to be taken: checked when it is submitted, so that what was taken can finish."""

from __future__ import annotations

from owngpt.engine.request import Request
from owngpt.engine.scheduler import Scheduler
from owngpt.errors import UsageError
from owngpt.text.tokenizer import Tokenizer

SHORTEST_TO_ROLL = 16
"""Tokens of a context of which half can be kept with something behind the first ones."""


def checked_prompt(request: Request, tokenizer: Tokenizer, context_length: int, scheduler: Scheduler) -> list[int]:
    """The tokens that a request's texts begin with.

    :raises UsageError: they do not fit the context, the vocabulary or the memory, or a field of the request is out of range.
    """
    prompt = list(request.prompt_ids)
    if not prompt:
        if tokenizer.begin_of_text_id is None:
            raise UsageError("the prompt is empty and this tokenizer has no token to begin a text with; give some text")
        prompt = [tokenizer.begin_of_text_id]
    limit = context_length - 1
    if len(prompt) > limit:
        raise UsageError(
            f"the prompt is {len(prompt)} tokens; this model's context of {limit + 1} leaves room for at most {limit}: "
            "shorten the prompt"
        )
    vocabulary = tokenizer.vocab_size
    for what, ids in (("of the prompt", prompt), ("in end_ids", request.end_ids or ())):
        wrong = next((token_id for token_id in ids if not 0 <= token_id < vocabulary), None)
        if wrong is not None:
            raise UsageError(f"token id {wrong} {what} is outside the vocabulary; ids are from 0 to {vocabulary - 1}")
    _check_roll(request, context_length)
    _check_memory(request, len(prompt), context_length, scheduler)
    return prompt


def _check_roll(request: Request, context_length: int) -> None:
    if request.config.on_full == "roll" and context_length < SHORTEST_TO_ROLL:
        raise UsageError(f"on_full is roll and the context has {context_length} tokens; it takes {SHORTEST_TO_ROLL}: use stop")


def _check_memory(request: Request, prompt_tokens: int, context_length: int, scheduler: Scheduler) -> None:
    """Whether the request could finish if it were alone."""
    config, size = request.config, scheduler.pool.block_size
    longest = scheduler.longest_held(min(prompt_tokens + config.max_new_tokens, context_length))
    beams = ""
    if config.num_beams > 1:
        longest = -(-longest // size) * size * config.num_beams
        beams = f" and num_beams {config.num_beams}"
    memory = scheduler.pool.size * size
    if longest > memory:
        raise UsageError(
            f"the prompt of {prompt_tokens} tokens with max_new_tokens {config.max_new_tokens}{beams} needs room for {longest} "
            f"tokens; the engine has memory for {memory}: write fewer tokens or give the engine more memory"
        )
