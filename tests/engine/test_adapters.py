"""Requests with different adapters, and with none, in one batch: each as with its adapter's weights merged into the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from owngpt.config.generation import GenerationConfig
from owngpt.engine.engine import Engine
from owngpt.engine.packing import pack_model, recordable
from owngpt.engine.request import Request
from owngpt.engine.runner import PackedRunner, Part, Runner
from owngpt.engine.torch_runner import TorchRunner
from owngpt.errors import ModelFolderError, UsageError
from owngpt.formats.merging import merge_adapter
from owngpt.formats.peft import load_adapter
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.training import train_tokenizer

CONTEXT = 128
TOKENIZER = train_tokenizer([], kind="byte")
CONFIG = GPTConfig(
    vocab_size=TOKENIZER.vocab_size, context_length=CONTEXT, hidden_size=96, layers=2, heads=3, key_value_heads=1, head_size=32,
    intermediate_size=160,
)  # fmt: skip
NAMES = (None, "first", "second")
PROMPTS = [tuple(range(20 + index, 20 + index + length)) for index, length in enumerate((1, 40, 7, 70, 3, 33))]


def model_of(*adapters: Path) -> GPT:
    """Random weights that have strong opinions, so that rounding does not change the likeliest token."""
    model = GPT(CONFIG, generator=torch.Generator().manual_seed(1)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 6
    for folder in adapters:
        merge_adapter(model, load_adapter(folder, CONFIG))
    return model


def write_adapter(folder: Path, seed: int, rank: int, targets: tuple[str, ...]) -> Path:
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    sizes = {"q": (96, 96), "k": (32, 96), "v": (32, 96), "o": (96, 96), "gate": (160, 96), "up": (160, 96), "down": (96, 160)}
    tensors = {}
    for layer in range(CONFIG.layers):
        for target in targets:
            room = "self_attn" if target in "qkvo" else "mlp"
            stem = f"base_model.model.model.layers.{layer}.{room}.{target}_proj.lora_"
            outputs, inputs = sizes[target]
            tensors[f"{stem}A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.2
            tensors[f"{stem}B.weight"] = torch.randn(outputs, rank, generator=generator) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    return {
        "first": write_adapter(root / "first", 1, 8, ("q", "v", "gate", "down")),
        "second": write_adapter(root / "second", 2, 5, ("k", "o", "up")),
    }


def runners() -> list[Runner]:
    found: list[Runner] = [TorchRunner(model_of(), 64)]
    if recordable(model_of()) is None:
        found.append(PackedRunner(pack_model(model_of(), "bf16"), 64))
    return found


def greedy(prompt: tuple[int, ...], adapter: str | None) -> Request:
    return Request(prompt, GenerationConfig(max_new_tokens=8, temperature=0.0), end_ids=frozenset(), adapter=adapter)


def test_a_mixed_batch_writes_what_each_merged_model_writes(folders: dict[str, Path]) -> None:
    asked = [(prompt, name) for prompt in PROMPTS for name in NAMES]
    expected = {}
    for name in NAMES:
        merged = model_of(*([] if name is None else [folders[name]]))
        with Engine(TorchRunner(merged, 64), TOKENIZER, context_length=CONTEXT) as engine:
            expected[name] = [engine.submit(greedy(prompt, None)).result()[0].token_ids for prompt in PROMPTS]
    assert expected[None] != expected["first"] != expected["second"]
    with Engine(TorchRunner(model_of(), 64), TOKENIZER, context_length=CONTEXT) as engine:
        for name, folder in folders.items():
            engine.load_adapter(name, folder)
        streams = [engine.submit(greedy(prompt, name)) for prompt, name in asked]
        together = [stream.result()[0].token_ids for stream in streams]
        alone = [engine.submit(greedy(prompt, name)).result()[0].token_ids for prompt, name in asked]
    assert together == alone == [expected[name][PROMPTS.index(prompt)] for prompt, name in asked]


def test_logits_of_mixed_parts_agree_with_merged_weights_on_both_runners(folders: dict[str, Path]) -> None:
    expected = []
    for name in NAMES:
        with torch.inference_mode():
            merged = model_of(*([] if name is None else [folders[name]]))
            expected.append([merged.logits(torch.tensor([prompt]))[0] for prompt in PROMPTS])
    for runner in runners():
        for name, folder in folders.items():
            runner.load_adapter(name, load_adapter(folder, CONFIG))
        # Prompts without their last token, then that one; adapters alternate.
        for last in (False, True):
            parts, truths = [], []
            for index, prompt in enumerate(PROMPTS):
                blocks = [1 + 3 * index, 2 + 3 * index, 3 + 3 * index]
                split = max(1, len(prompt) - 1)
                tokens, before = (prompt[split:], split) if last and len(prompt) > 1 else (prompt[:split], 0)
                parts.append(Part(tokens, before, blocks, 1, NAMES[index % 3]))
                truths.append(expected[index % 3][index][before + len(tokens) - 1])
            for row, truth in zip(runner.run(parts).clone(), truths, strict=True):
                tolerance = 1e-4 if isinstance(runner, TorchRunner) else 0.05
                assert float((row - truth).abs().max()) < tolerance * float(truth.abs().max())


def test_logits_of_several_positions_come_in_the_order_of_the_parts(folders: dict[str, Path]) -> None:
    for runner in runners():
        runner.load_adapter("first", load_adapter(folders["first"], CONFIG))
        merged = model_of(folders["first"])
        parts = [Part(PROMPTS[3], 0, [1, 2, 3], 3, "first"), Part(PROMPTS[1], 0, [4, 5], 0), Part(PROMPTS[2], 0, [6], 7)]
        with torch.inference_mode():
            truth = torch.cat(
                (merged.logits(torch.tensor([PROMPTS[3]]))[0, -3:], model_of().logits(torch.tensor([PROMPTS[2]]))[0])
            )
        logits = runner.run(parts)
        tolerance = 1e-4 if isinstance(runner, TorchRunner) else 0.05
        assert float((logits - truth).abs().max()) < tolerance * float(truth.abs().max())


def test_adapters_come_and_go_while_the_engine_runs(folders: dict[str, Path]) -> None:
    for runner in runners():
        with Engine(runner, TOKENIZER, context_length=CONTEXT) as engine:
            prompt = PROMPTS[1]
            with pytest.raises(UsageError, match="no adapter 'first'; none is loaded"):
                engine.submit(greedy(prompt, "first"))
            plain = engine.submit(greedy(prompt, None)).result()
            engine.load_adapter("first", folders["first"])
            first = engine.submit(greedy(prompt, "first")).result()
            assert first != plain == engine.submit(greedy(prompt, None)).result()
            with pytest.raises(UsageError, match="taken"):
                engine.load_adapter("first", folders["second"])
            long = Request(prompt, GenerationConfig(max_new_tokens=80, temperature=0.0), end_ids=frozenset(), adapter="first")
            stream = engine.submit(long)
            next(stream)
            with pytest.raises(UsageError, match="1 requests use"):
                engine.unload_adapter("first")
            engine.load_adapter("second", folders["second"])
            stream.cancel()
            list(stream)
            engine.unload_adapter("first")
            assert engine.adapters == ("second",)
            engine.load_adapter("first", folders["second"])  # what was cached under the name is another's
            assert engine.submit(greedy(prompt, "first")).result() == engine.submit(greedy(prompt, "second")).result() != first
            assert engine.submit(greedy(prompt, None)).result() == plain
            engine.check()


def test_an_adapter_for_another_model_is_refused_and_changes_nothing(folders: dict[str, Path]) -> None:
    other = GPTConfig(**{**CONFIG.to_dict(), "intermediate_size": 128})
    with Engine(TorchRunner(GPT(other), 8), TOKENIZER, context_length=CONTEXT) as engine:
        with pytest.raises(ModelFolderError, match="trained for another one"):
            engine.load_adapter("first", folders["first"])
        assert engine.adapters == ()
        assert len(engine.submit(greedy((20,), None)).result()) == 1
