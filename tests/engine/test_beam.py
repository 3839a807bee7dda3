"""Beam search finds likelier texts than greedy decoding, and the likeliest where that can be checked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from tests.engine import poem
from tests.engine.test_generate import PROMPT, REST, wild_model, write
from tests.engine.writing import generate

from owngpt.config.generation import GenerationConfig
from owngpt.engine.beam import normalized
from owngpt.engine.engine import Engine
from owngpt.engine.request import Finished, Piece, Request
from owngpt.engine.torch_runner import TorchRunner
from owngpt.errors import UsageError
from owngpt.formats.folder import load_model
from owngpt.model.gpt import GPT


def log_probability(model: GPT, prompt: list[int], written: tuple[int, ...]) -> float:
    ids = torch.tensor([[*prompt, *written]])
    with torch.inference_mode():
        scores = model.logits(ids)[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return float(scores.gather(1, torch.tensor(written)[:, None]).sum())


def test_a_wide_beam_finds_the_likeliest_text_of_two_tokens() -> None:
    model, prompt = wild_model(), poem.plain_tokenizer().encode("q")
    V = model.config.vocab_size
    with torch.inference_mode():
        first = model.logits(torch.tensor([prompt]))[0, -1].double().log_softmax(-1)
        pairs = torch.tensor([[*prompt, token] for token in range(V)])
        both = first[:, None] + model.logits(pairs)[:, -1].double().log_softmax(-1)
    best = both.flatten().topk(3).indices
    config = GenerationConfig(max_new_tokens=2, num_beams=200, num_return_sequences=3)
    found = [generation.token_ids for generation in generate(model, poem.plain_tokenizer(), prompt, config, end_ids=())]
    assert found == [divmod(index, V) for index in best.tolist()]


def test_beams_are_no_worse_than_greedy_and_come_best_first() -> None:
    model, prompt = wild_model(), poem.plain_tokenizer().encode("q")
    (greedy,) = generate(model, poem.plain_tokenizer(), prompt, GenerationConfig(temperature=0.0, max_new_tokens=12), end_ids=())
    config = GenerationConfig(num_beams=8, num_return_sequences=8, max_new_tokens=12)
    beams = generate(model, poem.plain_tokenizer(), prompt, config, end_ids=())
    scores = [log_probability(model, prompt, beam.token_ids) for beam in beams]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] >= log_probability(model, prompt, greedy.token_ids) - 1e-4
    assert len({beam.token_ids for beam in beams}) == 8
    assert {beam.stop_reason for beam in beams} == {"length"}


def test_beams_end_at_end_of_text_and_before_stop_strings() -> None:
    assert write(PROMPT, num_beams=3)[0].text == REST
    assert write(PROMPT, num_beams=3)[0].stop_reason == "end"
    (stopped,) = write(PROMPT, num_beams=3, stop=("啼鸟",))
    assert (stopped.text, stopped.stop_reason) == (REST.split("啼鸟")[0], "stop")


def test_beams_ignore_seed_and_temperature() -> None:
    model = wild_model()
    assert write("x", model=model, num_beams=2, seed=1, max_new_tokens=8) == write(
        "x", model=model, num_beams=2, seed=2, temperature=2.0, max_new_tokens=8
    )


def test_length_normalisation_is_transformers() -> None:
    assert normalized(-6.0, 1) == normalized(-6.0, 7, 0.0) == -6.0
    assert normalized(-6.0, 3) == -2.0
    assert normalized(-6.0, 2, 2.0) == -1.5


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, GPT]:
    """A random model of transformers, and the same of ours. It is unsure, so that beams part and meet the end token."""
    config = transformers.LlamaConfig(
        vocab_size=poem.plain_tokenizer().vocab_size, hidden_size=48, intermediate_size=72, num_hidden_layers=2, eos_token_id=0,
        num_attention_heads=3, num_key_value_heads=1, max_position_embeddings=128, bos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("llama")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = transformers.LlamaForCausalLM(config).eval()
        for parameter in theirs.parameters():
            torch.nn.init.normal_(parameter, std=0.25)
    theirs.lm_head.weight.data[:1] *= 2.5  # the end is now and then likely
    theirs.save_pretrained(folder)
    poem.plain_tokenizer().save(folder)
    return theirs, load_model(folder, dtype=torch.float32)[0]


@pytest.fixture(scope="module")
def engine(pair: tuple[Any, GPT]) -> Iterator[Engine]:
    with Engine(TorchRunner(pair[1], 120), poem.plain_tokenizer(), context_length=128) as found:
        yield found


SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 4},
    {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.0},
    {"num_beams": 5, "num_return_sequences": 2, "length_penalty": 2.5},
    {"num_beams": 3, "num_return_sequences": 3, "length_penalty": -1.0},
    {"num_beams": 4, "num_return_sequences": 4, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"num_beams": 7, "num_return_sequences": 7, "ends": (0, 40, 41)},
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_engines_beams_are_transformers(pair: tuple[Any, GPT], engine: Engine, search: dict[str, Any]) -> None:
    search = dict(search)
    ends = search.pop("ends", (0,))
    for prompt in ([30, 31, 32], list(range(20, 55)), list(range(60, 92)), [99]):
        with torch.inference_mode():
            rows = pair[0].generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), max_new_tokens=16,
                do_sample=False, eos_token_id=list(ends), pad_token_id=0, **search,
            )  # fmt: skip
        expected = []
        for row in rows[:, len(prompt) :].tolist():
            end = next((place for place, token_id in enumerate(row) if token_id in ends), len(row))
            expected.append(tuple(row[:end]))
        config = GenerationConfig(max_new_tokens=16, **search)
        found = engine.submit(Request(tuple(prompt), config, end_ids=frozenset(ends))).result()
        assert [text.token_ids for text in found] == expected


def test_searches_among_other_texts_lose_no_block_and_change_no_text(pair: tuple[Any, GPT]) -> None:
    generator = random.Random(3)
    settings = [
        GenerationConfig(max_new_tokens=30, num_beams=4, num_return_sequences=2),
        GenerationConfig(max_new_tokens=40, num_beams=3, repetition_penalty=1.3),
        GenerationConfig(max_new_tokens=50, temperature=0.0),
        GenerationConfig(max_new_tokens=20, temperature=1.0, seed=1, num_return_sequences=3),
    ]
    asked = [
        Request(tuple(generator.randrange(16, 200) for _ in range(generator.choice((1, 20, 33, 64)))), settings[i % 4])
        for i in range(9)
    ]
    for blocks in (17, 120):  # 17 are just enough for the largest search alone: everything else is stopped and computed again
        with Engine(TorchRunner(pair[1], blocks), poem.plain_tokenizer(), context_length=128) as crowded:
            streams = [crowded.submit(request) for request in asked]
            streams[5].cancel()
            together = [stream.result() for stream in streams]
            crowded.check()
            stats = crowded.stats()
            assert (stats.running, stats.waiting, stats.free_blocks) == (0, 0, blocks - 1)
            assert stats.preemptions > 0 or blocks > 17
            alone = [crowded.submit(request).result() for request in asked]
            assert together[:5] + together[6:] == alone[:5] + alone[6:]


def test_a_search_tells_its_tokens_and_their_log_probabilities_at_the_end(pair: tuple[Any, GPT], engine: Engine) -> None:
    prompt = [30, 31, 32]
    config = GenerationConfig(max_new_tokens=10, num_beams=3, num_return_sequences=2, log_probabilities=2)
    events = list(engine.submit(Request(tuple(prompt), config, end_ids=frozenset())))
    for index in (0, 1):
        pieces = [event for event in events if isinstance(event, Piece) and event.index == index]
        (finished,) = [event for event in events if isinstance(event, Finished) and event.index == index]
        assert "".join(piece.text for piece in pieces) == finished.generation.text
        assert tuple(piece.token_id for piece in pieces) == finished.generation.token_ids
        assert finished.usage.prompt_tokens == 3
        total = sum(piece.score.log_probability for piece in pieces if piece.score)
        assert total == pytest.approx(log_probability(pair[1], prompt, finished.generation.token_ids), abs=1e-3)
        assert all(len(piece.top) == 2 for piece in pieces)


def test_a_search_that_can_never_fit_is_refused_with_its_width(engine: Engine) -> None:
    with pytest.raises(UsageError, match="num_beams 40.*memory for"):
        engine.submit(Request((20,), GenerationConfig(max_new_tokens=120, num_beams=40)))
