"""A constrained text always is what it must be, whatever the model would rather write."""

from __future__ import annotations

import gc
import json
import re
import time
import weakref
from collections.abc import Iterator

import jsonschema
import pytest
import torch

from owngpt.config.generation import GenerationConfig
from owngpt.engine.constraint import compile_constraint, fill_masks
from owngpt.engine.engine import Engine
from owngpt.engine.request import Request
from owngpt.engine.torch_runner import TorchRunner
from owngpt.errors import UsageError
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["猫", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "kind", "age", "tags"],
    "additionalProperties": False,
}
CALCULATION = """
start: sum "=" NUMBER
sum: NUMBER ("+" NUMBER)*
NUMBER: /[0-9]{1,3}/
"""
AMBIGUOUS = "start: " + " ".join(f"a{i}" for i in range(300)) + "".join(f'\na{i}: "x" | a{i} a{i} | ""' for i in range(300))
CHOICES = ("yes", "no", 'a "quoted" \\ text\n', "你好 🐦", "yes!")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the quick brown fox jumps over the lazy dog, and 你好 世界 too. " * 40], kind="bpe", vocab_size=400)


@pytest.fixture(scope="module")
def engine(tokenizer: Tokenizer) -> Iterator[Engine]:
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size + 7, context_length=256, hidden_size=32, layers=1, heads=2, key_value_heads=1,
        head_size=16, intermediate_size=32,
    )  # fmt: skip
    model = GPT(config, generator=torch.Generator().manual_seed(1)).eval()
    with Engine(TorchRunner(model, 200), tokenizer, context_length=256) as found:
        yield found


def fits(settings: dict[str, object], text: str) -> bool:
    """Whether a text is what was asked for, by other means than the library's."""
    if "json_schema" in settings:
        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    if "choices" in settings:
        return text in CHOICES
    pattern = settings.get("regex", r"[0-9]{1,3}(\+[0-9]{1,3})*=[0-9]{1,3}")
    return re.fullmatch(str(pattern), text) is not None


KINDS: list[dict[str, object]] = [
    {"json_schema": SCHEMA},
    {"json_schema": json.dumps(SCHEMA)},
    {"regex": "(春|Then: )[a-z]{2,6}。[0-9]+!"},
    {"choices": CHOICES},
    {"grammar": CALCULATION},
]


@pytest.mark.parametrize("ends", [None, frozenset()], ids=["with end token", "without"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: next(iter(kind)))
def test_every_text_is_what_it_must_be(engine: Engine, kind: dict[str, object], ends: frozenset[int] | None) -> None:
    config = GenerationConfig(max_new_tokens=220, temperature=1.5, seed=1, num_return_sequences=8, **kind)  # type: ignore[arg-type]
    texts = engine.submit(Request((20, 21, 22), config, end_ids=ends)).result()
    assert {text.stop_reason for text in texts} <= {"end", "length"}
    done = [text.text for text in texts if text.stop_reason == "end"]
    assert len(done) >= 6
    assert len(set(done)) > 1
    assert all(fits(kind, text) for text in done), done


def test_constrained_and_free_texts_in_one_batch_are_those_they_are_alone(engine: Engine) -> None:
    plain = {"max_new_tokens": 32, "temperature": 1.2, "seed": 4}
    asked = [
        Request((20 + i, 30), GenerationConfig(**plain, **kind), end_ids=None if i % 2 else frozenset())  # type: ignore[arg-type]
        for i, kind in enumerate([*KINDS, {}, *KINDS])
    ]
    together = [stream.result() for stream in [engine.submit(request) for request in asked]]
    assert together == [engine.submit(request).result() for request in asked]


def test_a_text_ends_with_its_grammar_and_says_so(engine: Engine) -> None:
    config = GenerationConfig(max_new_tokens=50, temperature=0.0, choices=("the fox",), log_probabilities=1)
    stream = engine.submit(Request((20,), config, end_ids=frozenset()))
    events = list(stream)
    generation = events[-1].generation  # type: ignore[union-attr]
    assert (generation.text, generation.stop_reason) == ("the fox", "end")
    assert len(events) == len(generation.token_ids) + 1
    assert events[-1].usage.prompt_tokens == 1  # type: ignore[union-attr]


def test_beams_keep_to_the_grammar(engine: Engine) -> None:
    config = GenerationConfig(max_new_tokens=60, num_beams=6, num_return_sequences=6, choices=CHOICES)
    texts = [text.text for text in engine.submit(Request((20,), config)).result()]
    assert len(set(texts)) >= 3 and set(texts) <= set(CHOICES)
    config = GenerationConfig(max_new_tokens=120, num_beams=3, grammar=CALCULATION)
    (best,) = engine.submit(Request((20,), config)).result()
    assert best.stop_reason != "end" or fits({}, best.text)


def test_the_end_is_allowed_only_where_the_grammar_is_fulfilled_and_other_special_tokens_never(tokenizer: Tokenizer) -> None:
    ends = {tokenizer.end_of_text_id}
    constraint = compile_constraint(GenerationConfig(choices=("ye", "yes")), tokenizer, ends)
    width = tokenizer.vocab_size + 40
    seen = []
    for character in "yes":
        allowed = fill_masks([constraint], width)[0]
        assert not allowed[tokenizer.vocab_size :].any()
        assert not allowed[sorted(tokenizer.special_id_set - ends)].any()
        seen.append(bool(allowed[tokenizer.end_of_text_id]))
        constraint.push(tokenizer.encode(character)[0])
    assert seen == [False, False, True]
    assert constraint.complete
    constraint.take_back(1)
    assert not constraint.complete
    assert not fill_masks([constraint], 5).shape[1] > 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"json_schema": "{"}, ["--json-schema", "not JSON"]),
        ({"json_schema": "[1]"}, ["--json-schema", "object"]),
        ({"json_schema": {"type": "objec"}}, ["--json-schema", "objec"]),
        ({"json_schema": {"type": "object", "if": {}}}, ["--json-schema", "if"]),
        ({"json_schema": {"$ref": "https://example.com/schema.json"}}, ["--json-schema"]),
        ({"json_schema": "[" * 50_000}, ["--json-schema"]),
        ({"regex": "(a"}, ["--regex", "unclosed group"]),
        ({"regex": "(?=a)b"}, ["--regex", "look-around"]),
        ({"grammar": "start: b"}, ["--grammar", "unknown name"]),
        ({"grammar": 'begin: "a"'}, ["--grammar", "start"]),
    ],
    ids=str,
)
def test_what_cannot_be_followed_is_refused_when_it_is_submitted(engine: Engine, settings: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        engine.submit(Request((20,), GenerationConfig(**settings)))
    assert all(word in str(caught.value) for word in words), caught.value
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "settings",
    [
        {"regex": "(((((a{900}){900}){900}){900}b)*)+c"},
        {"regex": "(.*a.{60}b.*){40}"},
        {"grammar": AMBIGUOUS},
        {"json_schema": {"type": "array", "items": {"type": "string", "pattern": "(a|b|ab)*c{500}"}, "minItems": 2000}},
    ],
    ids=["nested counts", "many states", "ambiguous", "large array"],
)  # fmt: skip
def test_hostile_constraints_are_bounded_in_time_and_the_engine_goes_on(engine: Engine, settings: dict) -> None:
    began = time.process_time()
    try:
        stream = engine.submit(Request((20,), GenerationConfig(max_new_tokens=20, seed=1, **settings)))
        list(stream)  # it may fail, or write something
    except UsageError:
        pass
    assert time.process_time() - began < 20
    assert len(engine.submit(Request((20,), GenerationConfig(max_new_tokens=5, seed=1), end_ids=frozenset())).result()) == 1


def test_a_tokenizer_without_bytes_is_refused_in_words(tokenizer: Tokenizer) -> None:
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    with pytest.raises(UsageError, match="no fixed text"):
        compile_constraint(GenerationConfig(regex="a"), Tokenizer(backend), ())


def test_what_is_kept_for_a_tokenizer_goes_with_it() -> None:
    tokenizer = train_tokenizer([], kind="byte")
    compile_constraint(GenerationConfig(regex="a"), tokenizer, ())
    gone = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert gone() is None
