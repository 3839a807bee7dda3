"""What a text must look like: a JSON schema, a regular expression, one of several texts, or a Lark grammar.

The library `llguidance` follows the text byte by byte and says which tokens may come next; the others are masked out. It knows
our tokens by their bytes, so a character or a word of the grammar may be split over tokens in any way. A token that ends the
text is allowed only where the text may end. Where nothing can follow, the text is complete without one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import numpy as np
from numpy.typing import NDArray

from owngpt.config.checks import option
from owngpt.config.generation import GenerationConfig
from owngpt.errors import EngineError, UsageError
from owngpt.text.stream import BytesDecoder
from owngpt.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

COMPACT_JSON: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One blank after a comma and a colon, as Python's json writes, and none elsewhere: a model could write blanks for ever."""
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "step_max_items": 50_000, "max_lexer_states": 50_000,
    "verbose_errors": False,
}  # fmt: skip
"""Of the work for a grammar, some tens of milliseconds, and of memory, some 100 MB; what needs more is refused."""
MESSAGE_CHARACTERS = 300

_known: WeakKeyDictionary[Tokenizer, dict[frozenset[int], LLTokenizer]] = WeakKeyDictionary()
_lock = threading.Lock()


class Constraint:
    """Where one text is in its grammar."""

    def __init__(self, matcher: LLMatcher, words: int) -> None:
        """:param words: of 32 bits in a mask over the vocabulary."""
        self._matcher, self.words = matcher, words
        self.tokens = 0
        """Tokens of the text that the grammar has seen."""

    def fork(self) -> Constraint:
        """The same place in the same grammar, for another text."""
        twin = Constraint(self._matcher.deep_copy(), self.words)
        twin.tokens = self.tokens
        return twin

    def push(self, token_id: int) -> None:
        """The text has one more token."""
        self._matcher.consume_token(token_id)
        self.tokens += 1

    def take_back(self, count: int) -> None:
        """The text has lost its last tokens."""
        self._matcher.rollback(count)
        self.tokens -= count

    @property
    def complete(self) -> bool:
        """Whether the text is finished and nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def error(self) -> EngineError | None:
        """Why the text cannot go on, if so."""
        if not self._matcher.is_error():
            return None
        return EngineError(f"the constraint cannot be followed: {_short(self._matcher.get_error())}; use a simpler one")

    def fill(self, bits: NDArray[np.uint8]) -> None:
        """Which tokens may come next, a bit for each, the lowest bit first."""
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)


def fill_masks(constraints: Sequence[Constraint], width: int) -> NDArray[np.bool_]:
    """Which tokens may come next.

    :param width: V, of the logits, which may be less or more than the vocabulary; what is beyond is not allowed.
    :returns: (R, V).
    """
    words = max(-(-width // 32), *(constraint.words for constraint in constraints))
    bits = np.zeros((len(constraints), words * 4), dtype=np.uint8)
    for row, constraint in zip(bits, constraints, strict=True):
        constraint.fill(row[: constraint.words * 4])
    return np.unpackbits(bits, axis=1, count=width, bitorder="little").view(np.bool_)


def compile_constraint(config: GenerationConfig, tokenizer: Tokenizer, end_ids: Collection[int]) -> Constraint:
    """Read what a request's text must look like.

    :param end_ids: tokens that end the text; other special tokens are never allowed.
    :raises UsageError: it cannot be read, needs too much, or the tokenizer's tokens are not fixed strings of bytes.
    """
    from llguidance import LLMatcher, LLParserLimits  # not at the top: few requests need it

    name = config.constrained
    assert name is not None
    grammar, limits = _grammar(config), LLParserLimits(**LIMITS)
    tokens = _tokens(tokenizer, frozenset(end_ids))
    matcher = LLMatcher(tokens, grammar, log_level=0, limits=limits)
    if matcher.is_error():
        raise UsageError(f"{option(name)} cannot be used: {_short(matcher.get_error())}")
    return Constraint(matcher, -(-tokens.vocab_size // 32))


def _grammar(config: GenerationConfig) -> str:
    from llguidance import LLMatcher

    if config.json_schema is not None:
        try:
            schema = json.loads(config.json_schema)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--json-schema is not JSON: {error}") from error
        if not isinstance(schema, dict | bool):
            raise UsageError(f"--json-schema is a JSON {type(schema).__name__}, but must be an object")
        return LLMatcher.grammar_from_json_schema(schema if isinstance(schema, dict) else json.dumps(schema), COMPACT_JSON)
    if config.regex is not None:
        return LLMatcher.grammar_from_regex(config.regex)
    if config.choices:
        texts = [json.dumps(text, ensure_ascii=False) for text in config.choices]
        return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
    assert config.grammar is not None
    return LLMatcher.grammar_from_lark(config.grammar)


def _tokens(tokenizer: Tokenizer, end_ids: frozenset[int]) -> LLTokenizer:
    """What the library needs to know of a vocabulary; kept, since it takes a moment for a large one."""
    with _lock:
        kept = _known.setdefault(tokenizer, {})
        if end_ids not in kept:
            kept[end_ids] = _read_tokens(tokenizer, end_ids)
        return kept[end_ids]


def _read_tokens(tokenizer: Tokenizer, end_ids: frozenset[int]) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    if not isinstance(tokenizer.stream(), BytesDecoder):
        raise UsageError(
            "this model's tokens have no fixed text, which a constraint needs; use a model with a byte-level tokenizer"
        )
    ends = sorted(end_id for end_id in end_ids if end_id < tokenizer.vocab_size)
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)), eos_token=ends or [tokenizer.vocab_size])


class _Vocabulary:
    """The tokenizer as the library wants it, with one token more: the end, for texts that have no token for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        size = tokenizer.vocab_size
        known = set(tokenizer.vocabulary.values())
        self._tokenizer = ref(tokenizer)  # what is kept for a tokenizer must not keep it alive
        self.tokens = [tokenizer.token_bytes(index) if index in known else b"" for index in range(size)] + [b"<end>"]
        self.special_token_ids = [*sorted(tokenizer.special_id_set), size]
        self.bos_token_id, self.eos_token_id = None, size

    def __call__(self, text: bytes | str) -> list[int]:
        tokenizer = self._tokenizer()
        text = text if isinstance(text, str) else text.decode("utf-8", errors="replace")
        return [] if tokenizer is None else tokenizer.encode(text)


def _short(message: str) -> str:
    return " ".join(message.split())[:MESSAGE_CHARACTERS].rstrip(". ;")
