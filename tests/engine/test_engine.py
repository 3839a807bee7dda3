"""Many requests at once: the same texts as alone, on either runner, and no block lost whatever happens."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable

import pytest
import torch
from tests.engine.plain import plain

from owngpt.config.generation import GenerationConfig
from owngpt.engine.engine import Engine
from owngpt.engine.pace import LARGEST_PIECE
from owngpt.engine.packing import pack_model, recordable
from owngpt.engine.request import Failed, Piece, Request, Stream
from owngpt.engine.runner import PackedRunner, Part, Runner
from owngpt.engine.torch_runner import TorchRunner
from owngpt.errors import EngineError, UsageError
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.model.rotary import RotaryScaling
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

CONTEXT = 256
GREEDY = GenerationConfig(max_new_tokens=24, temperature=0.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    text = "the quick brown fox jumps over the lazy dog, and 你好 世界 too. " * 40
    return plain(train_tokenizer([text], kind="bpe", vocab_size=400))


def shape(tokenizer: Tokenizer, **changes: object) -> GPTConfig:
    plain: dict[str, object] = {
        "vocab_size": tokenizer.vocab_size, "context_length": CONTEXT, "hidden_size": 96, "layers": 2, "heads": 3,
        "key_value_heads": 1, "head_size": 32, "intermediate_size": 160, "attention_windows": (0, 40),
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


def plain_greedy(model: GPT, prompt: tuple[int, ...], count: int) -> list[int]:
    """The forward pass in float32, all of it again for each token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def prompts(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    generator = random.Random(seed)
    return [
        tuple(generator.randrange(16, tokenizer.vocab_size) for _ in range(generator.choice((1, 5, 33, 70))))
        for _ in range(count)
    ]


def test_greedy_texts_equal_the_plain_forward_pass(tokenizer: Tokenizer) -> None:
    config = shape(tokenizer)
    model = model_of(config)
    with Engine(TorchRunner(copy.deepcopy(model), 64), tokenizer, context_length=CONTEXT) as engine:
        asked = [Request(prompt, GREEDY, end_ids=frozenset()) for prompt in prompts(tokenizer, 8)]
        answers = [stream.result()[0] for stream in [engine.submit(request) for request in asked]]
    for request, answer in zip(asked, answers, strict=True):
        assert list(answer.token_ids) == plain_greedy(model, request.prompt_ids, 24)


def test_logits_of_both_runners_agree_with_the_plain_forward_pass_in_any_pieces(tokenizer: Tokenizer) -> None:
    config = shape(tokenizer, query_key_norm=False, head_size=64, heads=5, attention_windows=(33, 0))
    model = model_of(config)
    texts = [list(prompt) for prompt in prompts(tokenizer, 6, seed=3)]
    for runner in runners(config, 64):
        generator = random.Random(5)
        done = [0] * len(texts)
        while any(done[i] < len(text) for i, text in enumerate(texts)):
            parts, rows = [], []
            for i, text in enumerate(texts):
                count = min(len(text) - done[i], generator.choice((1, 1, 7, 40)))
                if count:
                    parts.append(Part(text[done[i] : done[i] + count], done[i], [1 + 4 * i, 2 + 4 * i, 3 + 4 * i, 4 + 4 * i]))
                    done[i] += count
                    rows.append(i)
            logits = runner.run(parts).clone()
            for row, i in zip(logits, rows, strict=True):
                with torch.inference_mode():
                    expected = model.logits(torch.tensor([texts[i][: done[i]]]))[0, -1]
                largest = float(expected.abs().max())
                tolerance = 1e-4 if isinstance(runner, TorchRunner) else 0.03 * largest
                assert float((row - expected).abs().max()) < tolerance


@pytest.mark.parametrize("blocks", [200, 12])
def test_random_schedules_lose_no_block_and_change_no_text(tokenizer: Tokenizer, blocks: int) -> None:
    config = shape(tokenizer)
    generator = random.Random(blocks)
    settings = [
        GenerationConfig(max_new_tokens=30, temperature=0.0),
        GenerationConfig(max_new_tokens=8, temperature=0.9, seed=4),
        GenerationConfig(max_new_tokens=20, temperature=0.7, top_p=0.9, seed=5, num_return_sequences=3),
    ]
    for runner in runners(config, blocks):
        with Engine(runner, tokenizer, context_length=CONTEXT) as engine:
            asked = [
                Request(prompt, generator.choice(settings), end_ids=frozenset()) for prompt in prompts(tokenizer, 16, seed=2)
            ]
            streams: list[Stream] = []
            for request in asked:
                streams.append(engine.submit(request))
                if generator.random() < 0.3:
                    time.sleep(0.005)
                if generator.random() < 0.2:
                    generator.choice(streams).cancel()
                engine.check()
            together = [stream.result() for stream in streams]
            engine.check()
            stats = engine.stats()
            assert stats.running == stats.waiting == 0
            assert stats.free_blocks == stats.blocks == blocks - 1
            for request, texts in zip(asked, together, strict=True):
                if len(texts) == request.config.num_return_sequences and isinstance(runner, TorchRunner):
                    assert texts == engine.submit(request).result()


def test_texts_under_dynamic_scaling_do_not_turn_each_other(tokenizer: Tokenizer) -> None:
    """What a text is does not depend on longer texts beside it, on pieces of its prompt, or on what was computed before."""
    scaling = RotaryScaling("dynamic", 4.0, original_context_length=32)
    model = model_of(shape(tokenizer, context_length=1024, rotary_scaling=scaling, attention_windows=()))
    long = tuple(random.Random(1).randrange(16, tokenizer.vocab_size) for _ in range(LARGEST_PIECE + 90))
    asked = [long[:20], long, long[:70], long[: LARGEST_PIECE + 40]]
    config = GenerationConfig(max_new_tokens=6, temperature=0.0, log_probabilities=0)

    def scores(engine: Engine, prompt: tuple[int, ...]) -> Stream:
        return engine.submit(Request(prompt, config, end_ids=frozenset()))

    with Engine(TorchRunner(model, 90), tokenizer, context_length=1024) as engine:
        together = [score_of(stream) for stream in [scores(engine, prompt) for prompt in asked]]
    for prompt, actual in zip(asked, together, strict=True):
        with Engine(TorchRunner(model, 90), tokenizer, context_length=1024) as engine:
            assert actual == pytest.approx(score_of(scores(engine, prompt)), abs=1e-4)
        with torch.inference_mode():
            expected = model.logits(torch.tensor([prompt]))[0, -1].log_softmax(-1).max().item()
        assert actual[0] == pytest.approx(expected, abs=1e-4)


def score_of(stream: Stream) -> list[float]:
    """Log-probabilities of the tokens that were chosen."""
    return [event.score.log_probability for event in stream if isinstance(event, Piece) and event.score is not None]


def test_a_prompt_seen_before_is_not_computed_again(tokenizer: Tokenizer) -> None:
    runner = TorchRunner(model_of(shape(tokenizer)), 64)
    computed: list[int] = []
    plain_run = runner.run

    def counting(parts: list[Part]) -> torch.Tensor:
        computed.append(sum(len(part.token_ids) for part in parts))
        return plain_run(parts)

    runner.run = counting  # type: ignore[method-assign,assignment]
    prompt = tuple(range(16, 16 + 150))
    with Engine(runner, tokenizer, context_length=CONTEXT) as engine:
        first = engine.submit(Request(prompt, GREEDY, end_ids=frozenset())).result()
        before = sum(computed)
        assert engine.submit(Request(prompt, GREEDY, end_ids=frozenset())).result() == first
        assert sum(computed) - before == 150 - 4 * 32 + 23  # the last, unfinished block, and each new token but the last
        changed = (17, *prompt[1:])
        computed.clear()
        engine.submit(Request(changed, GREEDY, end_ids=frozenset())).result()
        assert computed[0] == 150


def test_a_fault_in_one_request_ends_only_that_one_and_changes_no_other(tokenizer: Tokenizer) -> None:
    for runner in runners(shape(tokenizer), 64):
        plain_run = runner.run

        def failing(parts: list[Part], plain_run: Callable[[list[Part]], torch.Tensor] = plain_run) -> torch.Tensor:
            if any(part.before == 0 and part.token_ids[0] == 99 for part in parts):
                raise RuntimeError("this text breaks the model")
            return plain_run(parts)

        with Engine(runner, tokenizer, context_length=CONTEXT) as engine:
            asked = [Request((20, 21 + i), GREEDY, end_ids=frozenset()) for i in range(4)]
            alone = [engine.submit(request).result() for request in asked]
            runner.run = failing  # type: ignore[method-assign,assignment]
            with engine._lock:  # all in one step
                good = [engine.submit(request) for request in asked[:3]]
                bad = engine.submit(Request((99, 20), GREEDY, end_ids=frozenset()))
                good.append(engine.submit(asked[3]))
            events = list(bad)
            assert isinstance(events[-1], Failed)
            assert "this text breaks the model" in str(events[-1].error)
            assert [stream.result() for stream in good] == alone
            engine.check()
            assert engine.stats().free_blocks == 63


def test_where_one_of_several_texts_of_a_request_fails_the_texts_beside_them_go_on_as_they_would(tokenizer: Tokenizer) -> None:
    runner = TorchRunner(model_of(shape(tokenizer)), 64)
    several = Request((20, 21), GenerationConfig(max_new_tokens=9, temperature=2.0, seed=3, num_return_sequences=2), frozenset())
    beside = Request((50,), GREEDY, end_ids=frozenset())
    plain_run = runner.run
    with Engine(runner, tokenizer, context_length=CONTEXT) as engine:
        kept, spoiled = (text.token_ids for text in engine.submit(several).result())
        (alone,) = engine.submit(beside).result()
        place = next(place for place in range(8) if kept[place] != spoiled[place])

        def failing(parts: list[Part]) -> torch.Tensor:
            if any((part.before, part.token_ids) == (2 + place, [spoiled[place]]) for part in parts):
                raise RuntimeError("this text breaks the model")
            return plain_run(parts)

        runner.run = failing  # type: ignore[method-assign,assignment]
        with engine._lock:  # side by side
            streams = [engine.submit(several), engine.submit(beside)]
        with pytest.raises(EngineError, match="this text breaks the model"):
            streams[0].result()
        assert streams[1].result() == [alone]
        engine.check()
        assert engine.stats().free_blocks == 63


def test_a_fault_of_the_engine_itself_ends_every_stream(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(TorchRunner(model_of(shape(tokenizer)), 64), tokenizer, context_length=CONTEXT) as engine:
        streams = [engine.submit(Request((20, 21 + i), GREEDY, end_ids=frozenset())) for i in range(3)]
        monkeypatch.setattr(engine._scheduler, "took", lambda *_: 1 // 0)
        for stream in streams:
            with pytest.raises(EngineError, match="fault of its own"):
                stream.result()
        with pytest.raises(EngineError, match="is closed"):
            engine.submit(Request((20,), GREEDY))


def test_closing_in_the_middle_ends_every_stream_and_a_reader_that_stops_holds_up_nobody(tokenizer: Tokenizer) -> None:
    endless = GenerationConfig(max_new_tokens=10**6, temperature=0.0, on_full="roll")
    engine = Engine(TorchRunner(model_of(shape(tokenizer)), 64), tokenizer, context_length=CONTEXT, most_rows=2)
    unread = engine.submit(Request((20, 21), GREEDY, end_ids=frozenset()))
    assert len(engine.submit(Request((20, 22), GREEDY, end_ids=frozenset())).result()) == 1
    streams = [engine.submit(Request((20, 21 + i), endless, end_ids=frozenset())) for i in range(4)]  # two of them wait
    assert isinstance(next(streams[0]), Piece)
    engine.close()
    for stream in streams:
        with pytest.raises(EngineError, match="closed before the text was finished"):
            stream.result()
        stream.cancel()
    assert len(unread.result()[0].token_ids) == 24
    engine.check()
    assert engine.stats().free_blocks == 63
    engine.close()


def test_not_a_number_ends_its_request_and_does_not_spoil_its_memory(tokenizer: Tokenizer) -> None:
    config = shape(tokenizer)
    for runner in runners(config, 16):
        model = runner.model  # type: ignore[attr-defined]
        with Engine(runner, tokenizer, context_length=CONTEXT) as engine:
            expected = engine.submit(Request((20, 21), GREEDY, end_ids=frozenset())).result()
            norm = model.blocks[0].attention_norm.weight
            kept = norm.data.clone()
            norm.data.fill_(float("nan"))
            with pytest.raises(Exception, match="not a number"):
                engine.submit(Request(tuple(range(20, 100)), GREEDY, end_ids=frozenset())).result()
            norm.data.copy_(kept)
            for start in range(30, 90, 10):  # reuses every block
                engine.submit(Request(tuple(range(start, start + 80)), GREEDY, end_ids=frozenset())).result()
            assert engine.submit(Request((20, 21), GREEDY, end_ids=frozenset())).result() == expected


def test_cancel_frees_memory_within_a_step_and_ends_the_stream(tokenizer: Tokenizer) -> None:
    with Engine(TorchRunner(model_of(shape(tokenizer)), 64), tokenizer, context_length=CONTEXT) as engine:
        stream = engine.submit(Request((20, 21), GenerationConfig(max_new_tokens=200, temperature=0.0), end_ids=frozenset()))
        assert isinstance(next(stream), Piece)
        stream.cancel()
        assert len(list(stream)) < 198
        assert engine.stats().free_blocks == 63
        assert engine.stats().cancelled == 1


def test_an_idle_engine_uses_no_processor_time(tokenizer: Tokenizer) -> None:
    for runner in runners(shape(tokenizer), 16):
        with Engine(runner, tokenizer, context_length=CONTEXT) as engine:
            engine.submit(Request((20, 21), GREEDY, end_ids=frozenset())).result()
            time.sleep(0.3)  # OpenMP's own short wait
            before = time.process_time()
            time.sleep(0.5)
            assert time.process_time() - before < 0.05


def test_a_piece_of_a_prompt_has_no_logits_with_a_bias_either(tokenizer: Tokenizer) -> None:
    for runner in runners(shape(tokenizer, output_head_bias=True, tie_embeddings=False), 4):
        assert len(runner.run([Part(list(range(20, 60)), 0, (1, 2), wants_logits=0)])) == 0
        logits = runner.run([Part([60], 40, (1, 2))])
        assert logits.shape[0] == 1 and logits.isfinite().all()


def test_what_can_never_fit_is_refused_at_once(tokenizer: Tokenizer) -> None:
    with Engine(TorchRunner(model_of(shape(tokenizer)), 4), tokenizer, context_length=CONTEXT) as engine:
        with pytest.raises(UsageError, match="context of 256"):
            engine.submit(Request(tuple([20] * 256), GREEDY))
        with pytest.raises(UsageError, match="memory for 96"):
            engine.submit(Request(tuple([20] * 90), GREEDY))
        with pytest.raises(UsageError, match="outside the vocabulary"):
            engine.submit(Request((tokenizer.vocab_size,), GREEDY))
        with pytest.raises(UsageError, match="token id 9999 in end_ids is outside the vocabulary"):
            engine.submit(Request((20,), GREEDY, end_ids=frozenset({9999})))
