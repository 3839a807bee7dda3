"""Beam search finds likelier texts than greedy decoding, and the likeliest where that can be checked."""

from __future__ import annotations

import torch
from tests.engine import poem
from tests.engine.test_generate import PROMPT, REST, wild_model, write

from owngpt.config.generation import GenerationConfig
from owngpt.engine.beam import normalized
from owngpt.engine.generate import generate
from owngpt.model.gpt import GPT


def log_probability(model: GPT, prompt: list[int], written: tuple[int, ...]) -> float:
    ids = torch.tensor([[*prompt, *written]])
    with torch.inference_mode():
        scores = model.logits(ids)[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    return float(scores.gather(1, torch.tensor(written)[:, None]).sum())


def test_a_wide_beam_finds_the_likeliest_text_of_two_tokens() -> None:
    model, prompt = wild_model(), poem.tokenizer().encode("q")
    V = model.config.vocab_size
    with torch.inference_mode():
        first = model.logits(torch.tensor([prompt]))[0, -1].double().log_softmax(-1)
        pairs = torch.tensor([[*prompt, token] for token in range(V)])
        both = first[:, None] + model.logits(pairs)[:, -1].double().log_softmax(-1)
    best = both.flatten().topk(3).indices
    config = GenerationConfig(max_new_tokens=2, num_beams=200, num_return_sequences=3)
    found = [generation.token_ids for generation in generate(model, poem.tokenizer(), prompt, config, end_ids=())]
    assert found == [divmod(index, V) for index in best.tolist()]


def test_beams_are_no_worse_than_greedy_and_come_best_first() -> None:
    model, prompt = wild_model(), poem.tokenizer().encode("q")
    (greedy,) = generate(model, poem.tokenizer(), prompt, GenerationConfig(temperature=0.0, max_new_tokens=12), end_ids=())
    beams = generate(
        model, poem.tokenizer(), prompt, GenerationConfig(num_beams=8, num_return_sequences=8, max_new_tokens=12), end_ids=()
    )
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


def test_length_normalisation_is_the_papers() -> None:
    assert normalized(-6.0, 1) == -6.0
    assert normalized(-6.0, 7) == -3.0
