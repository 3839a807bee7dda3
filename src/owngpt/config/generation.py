"""How the next token is chosen, and when writing stops."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral
from typing import Any, Literal, get_type_hints

from owngpt.config.checks import at_least, of_type, option, within
from owngpt.errors import UsageError

MAX_SEED = 2**63 - 1
MOST_LOG_PROBABILITIES = 20
MOST_BIASES = 1024
MOST_STOPS = 256
MOST_CHOICES = 1024
MOST_GRAMMAR_CHARACTERS = 2**17
"""Of a schema, an expression, a grammar, or all choices together."""
MOST_NUMBER = 2**31 - 1
"""Of tokens, or an id: what the kernels count in."""
CONSTRAINTS = ("json_schema", "regex", "choices", "grammar")
"""Fields that say what a text must look like; at most one is given."""


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling settings, named as transformers names them. Every value is checked when the record is made."""

    max_new_tokens: int = 256
    """Most tokens to write."""
    temperature: float = 0.8
    """Divides the logits before sampling; lower is safer, 0 always takes the likeliest token."""
    top_k: int = 0
    """Sample among the k likeliest tokens only; 0 is no limit."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that together reach this probability (nucleus sampling, arXiv 1904.09751)."""
    min_p: float = 0.0
    """Drop tokens below this share of the likeliest token's probability (arXiv 2407.01082)."""
    typical_p: float = 1.0
    """Sample among the tokens whose information is nearest to what is expected, up to this probability (arXiv 2202.00666)."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that were already used become less likely (arXiv 1909.05858); 1 is off."""
    presence_penalty: float = 0.0
    """Taken once from the logits of tokens that were written, the prompt's not counted; below 0 it favours them."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit each time that it was written, the prompt's not counted."""
    no_repeat_ngram_size: int = 0
    """Never write that many tokens in a row twice, the prompt's counted; 0 is off."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Added to the logits of single tokens, by id: -100 all but forbids one, 100 all but forces it."""
    num_return_sequences: int = 1
    """How many texts to write."""
    num_beams: int = 1
    """Above 1, beam search of that width instead of sampling."""
    length_penalty: float = 1.0
    """Beams compare by their log-probability divided by their length to this power: above 0 favours longer texts."""
    stop: tuple[str, ...] = ()
    """Stop before this text; may be given several times."""
    stop_token_ids: tuple[int, ...] = ()
    """Stop before this token; may be given several times."""
    on_full: Literal["stop", "roll"] = "stop"
    """When the text fills the model's context: stop it, or roll: write on with its first tokens and its latest half in sight."""
    ignore_end: bool = False
    """Write on after a token that ends the text, until another limit."""
    log_probabilities: int | None = None
    """Also tell the log-probability of each token, and of this many of the likeliest, of the model's own distribution."""
    json_schema: str | None = None
    """Write JSON that this JSON schema allows."""
    regex: str | None = None
    """Write a text that this regular expression matches as a whole."""
    choices: tuple[str, ...] = ()
    """Write one of these texts."""
    grammar: str | None = None
    """Write a text of this Lark grammar."""
    seed: int | None = None
    """Same seed, same text on the same machine; none draws a fresh one."""

    def __post_init__(self) -> None:
        for name, kind, unit in (("stop", str, "texts"), ("choices", str, "texts"), ("stop_token_ids", Integral, "token ids")):
            object.__setattr__(self, name, _several(name, getattr(self, name), kind, unit))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if isinstance(self.json_schema, Mapping | bool):
            object.__setattr__(self, "json_schema", json.dumps(self.json_schema, ensure_ascii=False))
        self._check_kinds()
        self._check_sampling()
        self._check_penalties()
        self._check_ends()
        self._check_constraint()

    @property
    def constrained(self) -> str | None:
        """The field that says what the text must look like, if any."""
        return next((name for name in CONSTRAINTS if getattr(self, name) not in (None, ())), None)

    def _check_kinds(self) -> None:
        for name, hint in _single_values().items():
            object.__setattr__(self, name, of_type(name, getattr(self, name), hint))
        for name in ("max_new_tokens", "top_k", "no_repeat_ngram_size"):
            _at_most(name, getattr(self, name), MOST_NUMBER)
        for token_id in (*self.stop_token_ids, *self.logit_bias):
            _at_most("stop_token_ids" if token_id in self.stop_token_ids else "logit_bias", token_id, MOST_NUMBER)

    def _check_sampling(self) -> None:
        at_least("max_new_tokens", self.max_new_tokens, 1)
        at_least("temperature", self.temperature, 0)
        at_least("top_k", self.top_k, 0)
        within("top_p", self.top_p, 0, 1, low_open=True)
        within("min_p", self.min_p, 0, 1)
        within("typical_p", self.typical_p, 0, 1, low_open=True)
        within("num_return_sequences", self.num_return_sequences, 1, 1024)
        within("num_beams", self.num_beams, 1, 256)
        within("length_penalty", self.length_penalty, -10, 10)
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise UsageError(
                f"--num-return-sequences {self.num_return_sequences} is more than --num-beams {self.num_beams}; "
                f"use --num-beams {self.num_return_sequences} or fewer sequences"
            )
        if self.log_probabilities is not None:
            within("log_probabilities", self.log_probabilities, 0, MOST_LOG_PROBABILITIES)
        if self.seed is not None:
            within("seed", self.seed, 0, MAX_SEED)

    def _check_penalties(self) -> None:
        within("repetition_penalty", self.repetition_penalty, 0, 100, low_open=True)
        within("presence_penalty", self.presence_penalty, -2, 2)
        within("frequency_penalty", self.frequency_penalty, -2, 2)
        at_least("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        _at_most("logit_bias", len(self.logit_bias), MOST_BIASES, "tokens")
        for token_id, bias in self.logit_bias.items():
            at_least("logit_bias", token_id, 0)
            within("logit_bias", bias, -100, 100)

    def _check_ends(self) -> None:
        if self.on_full == "roll" and self.num_beams > 1:
            raise UsageError(
                f"--on-full is roll and --num-beams is {self.num_beams}; beams cannot roll: use --on-full stop or --num-beams 1"
            )
        _at_most("stop", len(self.stop), MOST_STOPS, "texts")
        _at_most("stop_token_ids", len(self.stop_token_ids), MOST_STOPS, "tokens")
        if any(not text for text in self.stop):
            raise UsageError("--stop is an empty text, which would stop at once; leave it out or name the text to stop before")
        for token_id in self.stop_token_ids:
            at_least("stop_token_ids", token_id, 0)

    def _check_constraint(self) -> None:
        given = [name for name in CONSTRAINTS if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            raise UsageError(f"{option(given[0])} and {option(given[1])} are both given; a text can follow only one of them")
        _at_most("choices", len(self.choices), MOST_CHOICES, "texts")
        if any(not text for text in self.choices):
            raise UsageError("--choices has an empty text; leave it out or name the texts to choose from")
        for name in given:
            value = getattr(self, name)
            _at_most(name, sum(map(len, value)), MOST_GRAMMAR_CHARACTERS, "characters")
            if not value:
                raise UsageError(f"{option(name)} is empty; leave it out or say what the text must look like")


@cache
def _single_values() -> dict[str, Any]:
    """Types of the fields that are no collections."""
    several = ("stop", "stop_token_ids", "choices", "logit_bias")
    return {name: hint for name, hint in get_type_hints(GenerationConfig).items() if name not in several}


def _biases(biases: Mapping[Any, float]) -> dict[int, float]:
    """Ids as numbers: in JSON, keys are texts."""
    try:
        if any(isinstance(token_id, float) for token_id in biases):
            raise ValueError("an id is a whole number")
        return {int(token_id): float(bias) for token_id, bias in biases.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"--logit-bias must give a number for each token id; this does not: {biases!r:.100}") from error


def _several(name: str, given: Any, kind: type, unit: str) -> tuple[Any, ...]:
    """One or more of a kind, as they may be given."""
    values = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Iterable) else ()
    if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values) or not isinstance(given, Iterable):
        raise UsageError(f"{option(name)} is {given!r:.100}, but must be {unit}")
    return values


def _at_most(name: str, count: int, limit: int, unit: str = "") -> None:
    if count > limit:
        has, have = (f"has {count} {unit}", "have") if unit else (f"is {count}", "be")
        raise UsageError(f"{option(name)} {has}, but must {have} at most {limit}")
