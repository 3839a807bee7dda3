"""Texts longer than the context: they stop, or roll with their first and latest tokens in sight; windows give memory back."""

from __future__ import annotations

import random

import pytest
import torch
from tests.engine.plain import plain

from owngpt.config.generation import GenerationConfig
from owngpt.engine.engine import Engine
from owngpt.engine.packing import pack_model, recordable
from owngpt.engine.request import Request
from owngpt.engine.runner import PackedRunner, Runner
from owngpt.engine.scheduler import SINKS
from owngpt.engine.speculation import Speculation
from owngpt.engine.torch_runner import TorchRunner
from owngpt.errors import UsageError
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.training import train_tokenizer

TOKENIZER = plain(train_tokenizer([], kind="byte"))
PROMPT = tuple(range(30, 60))


def shape(**changes: object) -> GPTConfig:
    plain: dict[str, object] = {
        "vocab_size": TOKENIZER.vocab_size, "context_length": 64, "hidden_size": 64, "layers": 2, "heads": 2,
        "key_value_heads": 1, "head_size": 32, "intermediate_size": 96,
    }  # fmt: skip
    return GPTConfig(**{**plain, **changes})  # type: ignore[arg-type]


def model_of(config: GPTConfig) -> GPT:
    """Random weights that have strong opinions, so that rounding does not change the likeliest token."""
    model = GPT(config, generator=torch.Generator().manual_seed(1)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 6
    return model


def runners(config: GPTConfig, blocks: int) -> list[Runner]:
    found: list[Runner] = [TorchRunner(model_of(config), blocks)]
    if recordable(model_of(config)) is None:
        found.append(PackedRunner(pack_model(model_of(config), "bf16"), blocks))
    return found


def greedy(tokens: int, on_full: str = "roll", prompt: tuple[int, ...] = PROMPT) -> Request:
    config = GenerationConfig(max_new_tokens=tokens, temperature=0.0, on_full=on_full)  # type: ignore[arg-type]
    return Request(prompt, config, end_ids=frozenset())


def rolled_by_hand(model: GPT, prompt: tuple[int, ...], count: int, context: int) -> list[int]:
    """The plain forward pass over the tokens in sight, for each token anew."""
    seen, written = list(prompt), []
    with torch.inference_mode():
        while len(written) < count:
            if len(seen) > context:
                seen = seen[:SINKS] + seen[SINKS - context // 2 :]
            written.append(int(model.logits(torch.tensor([seen]))[0, -1].argmax()))
            seen.append(written[-1])
    return written


@pytest.mark.parametrize("changes", [{}, {"positions": "learned"}, {"attention_windows": (20, 20)}])
def test_a_rolling_text_is_that_of_the_tokens_in_sight(changes: dict[str, object]) -> None:
    config = shape(**changes)
    expected = rolled_by_hand(model_of(config), PROMPT, 150, 64)
    for speculation in (None, Speculation()):
        runner = TorchRunner(model_of(config), 5)
        with Engine(runner, TOKENIZER, context_length=64, speculation=speculation) as engine:
            (generation,) = engine.submit(greedy(150)).result()
            assert list(generation.token_ids) == expected
            assert generation.stop_reason == "length"
            engine.check()
            assert engine.stats().free_blocks == 4


def test_rolling_texts_share_a_small_memory_on_both_runners() -> None:
    for runner in runners(shape(), 6):
        with Engine(runner, TOKENIZER, context_length=64) as engine:
            alone = [engine.submit(greedy(90, prompt=PROMPT[:length])).result()[0] for length in (1, 20, 30)]
            streams = [engine.submit(greedy(90, prompt=PROMPT[:length])) for length in (1, 20, 30)]
            together = [stream.result()[0] for stream in streams]
            assert all(len(text.token_ids) == 90 for text in together)
            if isinstance(runner, TorchRunner):
                assert together == alone
            engine.check()
            assert engine.stats().free_blocks == 5


def test_without_rolling_a_full_context_ends_the_text_and_says_so() -> None:
    with Engine(TorchRunner(model_of(shape()), 5), TOKENIZER, context_length=64) as engine:
        (generation,) = engine.submit(greedy(150, "stop")).result()
        assert (len(generation.token_ids), generation.stop_reason) == (64 - 30, "context")


def test_what_cannot_roll_is_refused_and_limits_of_positions_are_said() -> None:
    runner = TorchRunner(model_of(shape()), 8)
    with pytest.raises(UsageError, match="context_length 65 is more than the 64 positions"):
        Engine(runner, TOKENIZER, context_length=65)
    with Engine(runner, TOKENIZER, context_length=12) as engine, pytest.raises(UsageError, match="it takes 16"):
        engine.submit(greedy(10, prompt=(30,)))
    with Engine(runner, TOKENIZER, context_length=64) as engine:
        with pytest.raises(UsageError, match="must be one of: stop, roll"):
            greedy(10, "fall")
        with pytest.raises(UsageError, match="beams cannot roll"):
            GenerationConfig(max_new_tokens=4, num_beams=2, on_full="roll")
        with pytest.raises(UsageError, match="leaves room for at most 63"):
            engine.submit(greedy(10, prompt=PROMPT * 3))


def test_where_every_layer_has_a_window_a_long_text_needs_little_memory() -> None:
    config = shape(context_length=2048, attention_windows=(40, 33))
    prompt = tuple(random.Random(1).randrange(16, TOKENIZER.vocab_size) for _ in range(700))
    expected: list[int] = []
    for runner in runners(config, 24):  # 23 blocks are 736 tokens
        with Engine(runner, TOKENIZER, context_length=2048) as engine:
            stream = engine.submit(greedy(130, "stop", prompt))
            free = []
            for count, _ in enumerate(stream):
                if count % 50 == 40:
                    free.append(engine.stats().free_blocks)
                    engine.check()
            assert min(free) >= 23 - 3
            engine.check()
            assert engine.stats().free_blocks == 23
            short = engine.submit(greedy(40, "stop", prompt)).result()[0].token_ids
            again = [stream.result()[0].token_ids for stream in [engine.submit(greedy(40, "stop", prompt)) for _ in range(3)]]
            if isinstance(runner, TorchRunner):
                with torch.inference_mode():
                    for _ in range(12):
                        logits = runner.model.logits(torch.tensor([[*prompt, *expected]]))[0, -1]
                        expected.append(int(logits.argmax()))
                assert again == [short] * 3
                assert list(short[:12]) == expected
            else:
                assert list(short[:10]) == expected[:10]
