"""Tuning takes the same way as a loop around transformers' model with torch's AdamW: step by step, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.finetune.tiny_tuning import VOCABULARY, answers_store, pairs_store
from torch import Tensor
from torch.nn import functional

from owngpt.data.batches import Batch
from owngpt.finetune.objectives.preference import Preference, PreferenceSettings
from owngpt.finetune.objectives.preference_batches import PreferenceBatches, held_out_pairs
from owngpt.finetune.objectives.reference import reference_log_probabilities
from owngpt.finetune.objectives.supervised import Supervised
from owngpt.finetune.sequences.batches import ExampleBatches
from owngpt.formats.folder import load_config, load_weights
from owngpt.model.gpt import GPT
from owngpt.train.optimizer import OptimizerSettings
from owngpt.train.step import TrainModule

STEPS = 20
RATE = 2e-3
SETTINGS = OptimizerSettings(
    kind="adamw", matrix_rate=RATE, embedding_rate=RATE, head_rate=RATE, vector_rate=RATE, betas=(0.9, 0.999), epsilon=1e-8
)
LLAMA = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
CLASSIC = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
BASES: dict[str, Any] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "qwen2 tied": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**CLASSIC, **STILL)),
}


def both(folder: Path, name: str) -> tuple[GPT, Any, torch.optim.AdamW]:
    """One model, opened by us and by transformers, with theirs' optimizer."""
    torch.manual_seed(0)
    theirs = BASES[name]().train()
    theirs.save_pretrained(folder)
    ours = load_weights(folder, load_config(folder))
    return ours, theirs, torch.optim.AdamW(theirs.parameters(), lr=RATE, weight_decay=0.0)


def documents(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of each packed sequence, taken apart by where they start."""
    starts = torch.zeros_like(batch.inputs) if batch.starts is None else batch.starts
    parts = []
    for inputs, targets, begins in zip(batch.inputs, batch.targets, starts, strict=True):
        for start in begins.unique().tolist():
            here = begins == start
            if bool((targets[here] >= 0).any()):
                parts.append((inputs[here], targets[here]))
    return parts


def take_step(theirs: Any, optimizer: torch.optim.AdamW, loss: Tensor) -> float:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", BASES)
def test_twenty_steps_of_supervised_tuning_have_the_same_losses(tmp_path: Path, name: str) -> None:
    store = answers_store(tmp_path / "data", 30)
    ours, theirs, optimizer = both(tmp_path / "base", name)
    module = TrainModule(ours, SETTINGS, objective=Supervised())
    batches = ExampleBatches(store, context_length=40, batch_size=2, seed=0)
    mine, wanted = [], []
    for _ in range(STEPS):
        micro = [batches.next(), batches.next()]
        mine.append(module.run(micro, 1.0).loss)
        total, count = torch.zeros(()), 0
        for inputs, targets in (part for batch in micro for part in documents(batch)):
            logits = theirs(inputs[None]).logits[0]
            total = total + functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
            count += int((targets >= 0).sum())
        wanted.append(take_step(theirs, optimizer, total / count))
    assert mine == pytest.approx(wanted, abs=1e-4)
    assert min(wanted[-5:]) < 0.8 * wanted[0]


def their_log_probabilities(model: Any, store: Any, units: list[int]) -> Tensor:
    """(P, 2) with gradient, one sequence at a time."""
    sums = []
    for index in (2 * unit + side for unit in units for side in (0, 1)):
        sequence = store.example(index)
        ids = torch.from_numpy(sequence.token_ids)
        values = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        sums.append(values[torch.from_numpy(sequence.learned)[1:]].sum())
    return torch.stack(sums).view(-1, 2)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_twenty_steps_of_dpo_have_the_same_losses(tmp_path: Path, name: str) -> None:
    """The reference is a frozen second model there, and precomputed here."""
    store = pairs_store(tmp_path / "data", 8)
    ours, theirs, optimizer = both(tmp_path / "base", name)
    frozen = both(tmp_path / "again", name)[1].eval()
    reference = reference_log_probabilities(ours, held_out_pairs(store, context_length=40, batch_size=3), 8)
    module = TrainModule(ours, SETTINGS, objective=Preference(PreferenceSettings("dpo", beta=0.2)))
    batches = PreferenceBatches(store, context_length=40, batch_size=2, seed=4, reference=reference)
    mine, wanted = [], []
    for step in range(STEPS):
        mine.append(module.run([batches.next()], 1.0).loss)
        order = torch.tensor([batches._unit(number) for number in (2 * step, 2 * step + 1)]).tolist()
        policy = their_log_probabilities(theirs, store, order)
        with torch.no_grad():
            before = their_log_probabilities(frozen, store, order)
        margin = (policy - before)[:, 0] - (policy - before)[:, 1]
        wanted.append(take_step(theirs, optimizer, -functional.logsigmoid(0.2 * margin).mean()))
    assert mine == pytest.approx(wanted, abs=1e-4)
    assert wanted[-1] < 0.5 * wanted[0]
