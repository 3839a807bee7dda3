"""Each text is sampled by its own settings: with exact probabilities, and the same alone as in a batch."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch
from tests.engine import poem
from transformers import LogitsProcessorList
from transformers.generation import logits_process as theirs

from owngpt.config.generation import GenerationConfig
from owngpt.engine.sampling import Choice, Sampler, pick
from owngpt.errors import EngineError, ModelFolderError, UsageError

V = poem.tokenizer().vocab_size
PROMPT = [30, 31, 30, 40]
DRAWS = 3_000


def sampler(index: int = 0, prompt_tokens: int = 0, **settings: object) -> Sampler:
    return Sampler(GenerationConfig(**settings), poem.tokenizer(), index, prompt_tokens=prompt_tokens)  # type: ignore[arg-type]


def logits(rows: int = 1, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    """Wider than the vocabulary, as padded embeddings are; the padding would win."""
    found = torch.randn(rows, V + 8, generator=torch.Generator().manual_seed(seed)) * spread
    found[:, V:] = 100.0
    return found


def token(choice: object) -> int:
    assert isinstance(choice, Choice), choice
    return choice.token_id


def chain(config: GenerationConfig, prompt_tokens: int = 0) -> LogitsProcessorList:
    """The same settings as transformers has them, in its order."""
    found = []
    if config.logit_bias:
        found.append(theirs.SequenceBiasLogitsProcessor({(key,): value for key, value in config.logit_bias.items()}))
    if config.repetition_penalty != 1:
        found.append(theirs.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        found.append(theirs.NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    found.append(theirs.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        found.append(theirs.TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        found.append(theirs.TopPLogitsWarper(config.top_p))
    if config.min_p:
        found.append(theirs.MinPLogitsWarper(config.min_p))
    if config.typical_p < 1:
        found.append(theirs.TypicalLogitsWarper(config.typical_p))
    return LogitsProcessorList(found)


SETTINGS = [
    {"temperature": 1.0},
    {"temperature": 2.0, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.8},
    {"temperature": 1.5, "min_p": 0.1},
    {"temperature": 1.2, "typical_p": 0.7},
    {"temperature": 1.4, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95},
    {"temperature": 1.0, "repetition_penalty": 3.0},
    {"temperature": 1.0, "logit_bias": {3: 5.0, 30: -4.0, 77: 7.5}, "top_k": 8},
    {"temperature": 0.7, "no_repeat_ngram_size": 2, "repetition_penalty": 0.5},
    {"temperature": 0.7, "no_repeat_ngram_size": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_draws_have_the_probabilities_that_transformers_computes(settings: dict[str, object]) -> None:
    config = GenerationConfig(seed=5, **settings)  # type: ignore[arg-type]
    row = logits()
    expected = chain(config)(torch.tensor([PROMPT]), row[:, :V].clone())[0].double().softmax(0)
    samplers = [Sampler(config, poem.plain_tokenizer(), index) for index in range(DRAWS)]
    counts = Counter(token(choice) for choice in pick(row.expand(DRAWS, -1), samplers, [PROMPT] * DRAWS))
    assert all(expected[token_id] > 0 for token_id in counts)
    likely = (expected * DRAWS >= 5).nonzero().flatten().tolist()
    shares = [(counts[i], DRAWS * float(expected[i])) for i in likely]
    shares.append((DRAWS - sum(count for count, _ in shares), max(DRAWS - sum(share for _, share in shares), 1e-3)))
    chi_square = sum((count - share) ** 2 / share for count, share in shares)
    freedom = len(shares)
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 10  # one in a million by chance; a wrong share is far beyond


def test_presence_and_frequency_count_what_was_written_and_not_the_prompt() -> None:
    row = torch.zeros(1, V)
    one = sampler(prompt_tokens=len(PROMPT), presence_penalty=0.5, frequency_penalty=0.25, temperature=0.0)
    changed = row[0].clone()
    one.process(changed.numpy(), [*PROMPT, 50, 51, 50, 50])
    assert {i: float(x) for i, x in enumerate(changed) if x} == {50: -1.25, 51: -0.75}


def test_what_a_sampler_counts_follows_the_text_also_when_it_is_taken_back() -> None:
    settings = {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "no_repeat_ngram_size": 3, "prompt_tokens": 4}
    generator = torch.Generator().manual_seed(1)
    follower = sampler(**settings)  # type: ignore[arg-type]
    text = list(PROMPT)
    for step in range(60):
        if step % 7 == 6:
            del text[-3:]
        else:
            text += torch.randint(30, 36, (1 + step % 3,), generator=generator).tolist()
        ours, fresh = logits()[0, :V].clone(), logits()[0, :V].clone()
        follower.process(ours.numpy(), text)
        sampler(**settings).process(fresh.numpy(), text)  # type: ignore[arg-type]
        assert torch.equal(ours, fresh)


MIXED = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 0.8, "top_p": 0.9, "seed": 4, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"temperature": 0.0, "no_repeat_ngram_size": 2},
    {"temperature": 1.5, "top_k": 4, "seed": 4, "log_probabilities": 3},
    {"temperature": 1.0, "typical_p": 0.5, "seed": 9, "logit_bias": {"7": 3}},
    {"temperature": 1.0, "seed": 2, "regex": "[a-z ]+"},
]


def test_texts_are_the_same_alone_and_in_any_batch() -> None:
    together = [sampler(prompt_tokens=len(PROMPT), **settings) for settings in MIXED]
    alone = [sampler(prompt_tokens=len(PROMPT), **settings) for settings in MIXED]
    texts = [list(PROMPT) for _ in MIXED]
    order = list(range(len(MIXED)))
    for step in range(12):
        rows = logits(len(MIXED), seed=step)
        order = order[1:] + order[:1]
        choices = pick(rows[order], [together[i] for i in order], [texts[i] for i in order])
        for place, i in enumerate(order):
            assert pick(rows[i : i + 1], [alone[i]], [texts[i]]) == [choices[place]]
        for place, i in enumerate(order):
            texts[i].append(token(choices[place]))


def test_random_numbers_follow_from_seed_index_and_position_alone() -> None:
    before = torch.get_rng_state()
    points = {sampler(index, seed=seed).point(position) for seed in (7, 8) for index in (0, 1, 2) for position in range(50)}
    assert len(points) == 300
    assert min(points) >= 0 and max(points) < 1 and abs(sum(points) / 300 - 0.5) < 0.06
    assert sampler(1, seed=7).point(9) == sampler(seed=7).fork(1).point(9)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_each_request_draws_its_own_and_forks_differ() -> None:
    flat = torch.zeros(1, V)
    one, other = sampler(temperature=1.0), sampler(temperature=1.0)
    several = [one, other, one.fork(1), one.fork(2)]
    assert len({tuple(token(pick(flat, [s], [[1] * n])[0]) for n in range(20)) for s in several}) == 4


def test_log_probabilities_are_of_the_models_own_distribution() -> None:
    row = logits()
    own = row[0, :V].log_softmax(0)
    one = sampler(temperature=0.2, top_k=1, logit_bias={9: 100.0}, log_probabilities=4)
    (choice,) = pick(row, [one], [PROMPT])
    assert token(choice) == 9 and choice.score is not None
    assert choice.score.log_probability == pytest.approx(float(own[9]), abs=1e-5)
    best = own.topk(4)
    assert [score.token_id for score in choice.top] == best.indices.tolist()
    assert [score.log_probability for score in choice.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    (choice,) = pick(row, [sampler(temperature=0.0, log_probabilities=0)], [PROMPT])
    assert choice.score is not None and choice.top == ()


def test_the_logits_that_were_given_are_not_changed() -> None:
    row = logits(2)
    kept = copy.deepcopy(row)
    pick(row, [sampler(**MIXED[2]), sampler(**MIXED[6])], [PROMPT, PROMPT])
    assert torch.equal(row, kept)


def test_a_row_of_no_numbers_and_a_row_of_no_choice_are_errors_of_their_own() -> None:
    rows = logits(3)
    rows[1] = float("nan")
    samplers = [sampler(temperature=0.0), sampler(temperature=1.0), sampler(no_repeat_ngram_size=1)]
    good, broken, empty = pick(rows, samplers, [PROMPT, PROMPT, list(range(V))])
    assert isinstance(good, Choice)
    assert isinstance(broken, ModelFolderError) and "not a number" in str(broken)
    assert isinstance(empty, EngineError) and "no token is left" in str(empty)


@pytest.mark.parametrize("settings", [{"logit_bias": {V: 1.0}}, {"stop_token_ids": (V,)}], ids=str)
def test_tokens_outside_of_the_vocabulary_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(settings))}.*{V}.*0 to {V - 1}"):
        sampler(**settings)
