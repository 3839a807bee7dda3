"""Writing: the cache changes nothing, text comes in whole characters, and every ending says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.engine import poem
from tests.engine.writing import engine_of, generate

from owngpt.config.generation import GenerationConfig
from owngpt.engine import texts
from owngpt.engine.sampling import Choice, Sampler, pick
from owngpt.engine.sequence import Generation
from owngpt.engine.texts import TextStream
from owngpt.errors import UsageError
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT

PROMPT = "春眠"
REST = poem.POEM.removeprefix(PROMPT)


def wild_model(context_length: int = 64) -> GPT:
    """Random weights large enough that its next tokens are varied and hard to guess."""
    config = GPTConfig(
        vocab_size=poem.tokenizer().vocab_size, context_length=context_length, hidden_size=32, layers=2, heads=4,
        key_value_heads=2, head_size=8, intermediate_size=64, initializer_range=0.25,
    )  # fmt: skip
    return GPT(config, generator=torch.Generator().manual_seed(4)).eval()


def write(prompt: str, *, model: GPT | None = None, **options: Any) -> list[Generation]:
    ids = poem.tokenizer().encode(prompt)
    return generate(model or poem.model(), poem.tokenizer(), ids, GenerationConfig(**options))


def stream_of(model: GPT, prompt_ids: list[int], config: GenerationConfig) -> tuple[list[str], TextStream]:
    with engine_of(model, poem.tokenizer()) as engine:
        stream = texts.generate_stream(engine, prompt_ids, config)
        return list(stream), stream


def greedy_without_cache(model: GPT, prompt_ids: list[int], count: int) -> list[int]:
    ids = list(prompt_ids)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt_ids) :]


def test_greedy_with_the_cache_is_greedy_without() -> None:
    model, prompt = wild_model(), poem.plain_tokenizer().encode("To be, or")
    config = GenerationConfig(temperature=0.0, max_new_tokens=40)
    (generation,) = generate(model, poem.plain_tokenizer(), prompt, config, end_ids=())
    assert list(generation.token_ids) == greedy_without_cache(model, prompt, 40)
    assert len(set(generation.token_ids)) > 3  # not the same token forever, which would prove little


def test_a_model_that_knows_a_poem_writes_it_and_ends() -> None:
    (generation,) = write(PROMPT, temperature=0.0)
    assert generation.text == REST
    assert generation.stop_reason == "end"
    assert poem.tokenizer().decode(generation.token_ids) == REST


def test_an_empty_prompt_starts_a_new_text() -> None:
    assert write("", temperature=0.0)[0].text == poem.POEM


def test_streamed_pieces_are_whole_characters_and_make_the_same_text() -> None:
    pieces, stream = stream_of(poem.model(), poem.tokenizer().encode(PROMPT), GenerationConfig(temperature=0.0))
    assert "".join(pieces) == REST
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) == len(REST)  # each character as soon as its last byte is there
    assert stream.generation == write(PROMPT, temperature=0.0)[0]


@pytest.mark.parametrize("seed", range(3))
def test_streaming_and_generating_agree_for_a_seed_even_on_broken_bytes(seed: int) -> None:
    model, ids = wild_model(), poem.tokenizer().encode("a")
    config = GenerationConfig(temperature=1.0, max_new_tokens=40, seed=seed)
    pieces, _ = stream_of(model, ids, config)
    assert "".join(pieces) == generate(model, poem.tokenizer(), ids, config)[0].text
    assert all(pieces)
    for piece in pieces:
        piece.encode("utf-8")


@pytest.mark.parametrize("stop", ["啼鸟", "。Then", "🐦", "处"])
def test_stop_strings_end_the_text_and_never_show(stop: str) -> None:
    (generation,) = write(PROMPT, temperature=0.0, stop=("absent", stop))
    assert generation.text == REST.split(stop)[0]
    assert generation.stop_reason == "stop"
    pieces, _ = stream_of(poem.model(), poem.tokenizer().encode(PROMPT), GenerationConfig(temperature=0.0, stop=(stop,)))
    assert "".join(pieces) == REST.split(stop)[0]


def test_a_stop_string_that_never_completes_is_shown() -> None:
    (generation,) = write(PROMPT, temperature=0.0, stop=("🐦🐦",))
    assert generation.text == REST
    assert generation.stop_reason == "end"


def test_max_new_tokens_ends_with_length_and_shows_no_half_character() -> None:
    (generation,) = write(PROMPT, temperature=0.0, max_new_tokens=4)
    assert len(generation.token_ids) == 4
    assert generation.stop_reason == "length"
    assert generation.text == "不"


def test_a_full_context_ends_the_text_and_says_so() -> None:
    model = wild_model(context_length=24)
    (generation,) = generate(
        model, poem.tokenizer(), list(range(20, 30)), GenerationConfig(max_new_tokens=1000, seed=1), end_ids=()
    )
    assert generation.stop_reason == "context"
    assert len(generation.token_ids) == 14


def test_seed_fixes_the_text_and_the_first_does_not_depend_on_how_many() -> None:
    model = wild_model()
    one = write("x", model=model, seed=3, temperature=1.0, max_new_tokens=20)
    three = write("x", model=model, seed=3, temperature=1.0, max_new_tokens=20, num_return_sequences=3)
    assert one[0] == three[0]
    assert len({generation.token_ids for generation in three}) == 3
    assert three == write("x", model=model, seed=3, temperature=1.0, max_new_tokens=20, num_return_sequences=3)
    assert one != write("x", model=model, seed=4, temperature=1.0, max_new_tokens=20)


def test_sequences_of_different_lengths_are_each_what_they_would_be_alone() -> None:
    """Rows leave the cache as their texts end."""
    model = wild_model()
    ends = frozenset(range(16, 100))
    config = GenerationConfig(seed=2, temperature=1.0, max_new_tokens=30, num_return_sequences=8)
    ids = poem.tokenizer().encode("y")
    together = generate(model, poem.tokenizer(), ids, config, ends)
    assert len({len(generation.token_ids) for generation in together}) > 2
    for index, generation in enumerate(together):
        sampler, written = Sampler(config, poem.tokenizer(), index), list(ids)
        for token_id in generation.token_ids:
            with torch.inference_mode():
                logits = model.logits(torch.tensor([written]))[0, -1:]
            (choice,) = pick(logits, [sampler], [written])
            assert isinstance(choice, Choice)
            assert choice.token_id == token_id
            written.append(token_id)
        assert not ends & set(generation.token_ids)


def test_repetition_penalty_avoids_what_was_written() -> None:
    model = wild_model()
    (plain,) = write("x", model=model, temperature=0.0, max_new_tokens=40)
    (penalized,) = write("x", model=model, temperature=0.0, max_new_tokens=40, repetition_penalty=50.0)
    assert len(set(penalized.token_ids)) > len(set(plain.token_ids))


def test_ids_without_a_token_are_never_written() -> None:
    network = poem.model()
    config = GenerationConfig(temperature=100.0, max_new_tokens=100, seed=1)
    (generation,) = generate(network, poem.tokenizer(), [20], config, end_ids=())
    assert max(generation.token_ids) < poem.tokenizer().vocab_size < network.config.vocab_size


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    write("x", seed=1, max_new_tokens=5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["num_return_sequences", "num_beams"])
def test_streaming_several_texts_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is 2"):
        stream_of(poem.model(), [20], GenerationConfig(**{name: 2}))


def test_a_prompt_that_fills_the_context_is_refused_with_the_numbers() -> None:
    with pytest.raises(UsageError, match=r"prompt is 300 tokens; this model's context of 128 leaves room for at most 127"):
        write("a" * 300)


@pytest.mark.parametrize("token_id", [-1, 100_000])
def test_an_unknown_token_in_the_prompt_is_refused(token_id: int) -> None:
    with pytest.raises(UsageError, match=f"token id {token_id} "):
        generate(poem.model(), poem.tokenizer(), [token_id], GenerationConfig())


@pytest.mark.parametrize("count", range(1, 24))
def test_a_character_cut_by_the_limit_is_left_out_but_its_tokens_stay(count: int) -> None:
    config = GenerationConfig(max_new_tokens=count, temperature=0)
    (generation,) = generate(poem.model(), poem.tokenizer(), [], config)
    assert len(generation.token_ids) == count
    assert "\ufffd" not in generation.text
    assert generation.text == poem.POEM.encode("utf-8")[:count].decode("utf-8", errors="ignore")
    assert "".join(stream_of(poem.model(), [], config)[0]) == generation.text
