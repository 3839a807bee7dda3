"""Preference tuning: losses and gradients as plain PyTorch has them from whole logit matrices; pairs are learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests.finetune.tiny_tuning import ADAMW, answers_store, make_model, pairs_store
from torch import Tensor
from torch.nn import functional

from owngpt.errors import DataError, UsageError
from owngpt.families import family_named
from owngpt.finetune.adapter.lora import LoraSettings, attach
from owngpt.finetune.objectives.preference import Preference, PreferenceLoss, PreferenceSettings, win_rate
from owngpt.finetune.objectives.preference_batches import PreferenceBatches, held_out_pairs
from owngpt.finetune.objectives.reference import kept_reference, reference_log_probabilities
from owngpt.finetune.sequences.store import ExampleStore
from owngpt.model.gpt import GPT
from owngpt.train.step import TrainModule

METHODS: tuple[PreferenceLoss, ...] = ("dpo", "ipo", "orpo")


def plain_log_probabilities(model: GPT, store: ExampleStore) -> tuple[Tensor, Tensor]:
    """(P, 2) sums and lengths, one sequence at a time from its whole logits."""
    sums, lengths = [], []
    for sequence in store:
        ids = torch.from_numpy(sequence.token_ids)
        log_probabilities = model.logits(ids[None])[0, :-1].log_softmax(-1)
        learned = torch.from_numpy(sequence.learned)[1:]
        sums.append(log_probabilities.gather(1, ids[1:, None])[:, 0][learned].sum())
        lengths.append(float(learned.sum()))
    return torch.stack(sums).view(-1, 2), torch.tensor(lengths).view(-1, 2)


def plain_loss(name: str, policy: Tensor, before: Tensor, lengths: Tensor, beta: float, smoothing: float) -> Tensor:
    """The mean loss as TRL's trainers document it, from sums (P, 2)."""
    chosen, rejected = policy.unbind(1)
    if name == "dpo":
        logits = (chosen - rejected) - (before[:, 0] - before[:, 1])
        return (
            -functional.logsigmoid(beta * logits) * (1 - smoothing) - functional.logsigmoid(-beta * logits) * smoothing
        ).mean()
    chosen, rejected = (policy / lengths).unbind(1)
    if name == "ipo":
        old_chosen, old_rejected = (before / lengths).unbind(1)
        return (((chosen - rejected) - (old_chosen - old_rejected) - 1 / (2 * beta)) ** 2).mean()
    odds = (chosen - rejected) - (torch.log1p(-torch.exp(chosen)) - torch.log1p(-torch.exp(rejected)))
    return (-chosen - beta * functional.logsigmoid(odds)).mean()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize(("name", "smoothing"), [("dpo", 0.0), ("dpo", 0.2), ("ipo", 0.0), ("orpo", 0.0)])
@pytest.mark.parametrize("untied", [False, True])
def test_loss_and_gradients_are_those_of_whole_logits(
    tmp_path: Path, name: PreferenceLoss, smoothing: float, pack: bool, untied: bool
) -> None:
    store = pairs_store(tmp_path)
    changes = {"tie_embeddings": not untied, "output_head_bias": untied}
    start, model, plain = make_model(seed=3, **changes), make_model(**changes), make_model(**changes)
    reference = reference_log_probabilities(start, held_out_pairs(store, context_length=40, batch_size=3, pack=pack), 10)
    with torch.no_grad():
        before, lengths = plain_log_probabilities(start, store)
    torch.testing.assert_close(reference, before, rtol=1e-5, atol=1e-4)

    objective = Preference(PreferenceSettings(name, 0.3, smoothing))
    batches = held_out_pairs(store, context_length=40, batch_size=4, pack=pack, reference=reference)
    assert [batch.pairs for batch in batches] == [4, 4, 2]
    loss, gradients = TrainModule(model, ADAMW, objective=objective)._gradients(batches, 1 / 10)

    wanted = plain_loss(name, plain_log_probabilities(plain, store)[0], before, lengths, 0.3, smoothing)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), abs=1e-5, rel=1e-5)
    for key, parameter in plain.named_parameters():
        torch.testing.assert_close(
            gradients[key], parameter.grad, rtol=1e-4, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_metrics_say_how_many_pairs_are_rated_right_and_then_begin_anew(tmp_path: Path) -> None:
    store = pairs_store(tmp_path)
    model = make_model()
    with torch.no_grad():
        policy, lengths = plain_log_probabilities(model, store)
    objective = Preference(PreferenceSettings("dpo", 0.5))
    reference = torch.zeros(10, 2)
    for batch in held_out_pairs(store, context_length=40, batch_size=3, reference=reference):
        objective.loss(model, batch, 1.0)
    seen = objective.metrics()
    margins = 0.5 * (policy[:, 0] - policy[:, 1])
    assert seen["accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    assert seen["margin"] == pytest.approx(float(margins.mean()), rel=1e-4)
    assert seen["chosen_log_probability"] == pytest.approx(float((policy / lengths)[:, 0].mean()), rel=1e-4)
    assert objective.metrics() == {}


@contextmanager
def nothing() -> Iterator[None]:
    yield


@pytest.mark.parametrize("name", METHODS)
def test_an_adapter_learns_preferences_against_its_own_base(tmp_path: Path, name: PreferenceLoss) -> None:
    """Switched off, the adapter is the reference: as good as one that was computed before, and accuracy rises to 1."""
    store = pairs_store(tmp_path)

    def trained(precomputed: bool) -> tuple[list[float], float, float]:
        model = make_model()
        lora = attach(model, LoraSettings(rank=8), family_named("qwen3"), seed=0)
        pairs = held_out_pairs(store, context_length=40, batch_size=4)
        before = win_rate(model, pairs)
        reference = reference_log_probabilities(model, pairs, 10) if precomputed else None
        objective = Preference(PreferenceSettings(name), reference=nothing if precomputed else lora.off)
        module = TrainModule(model, ADAMW, dtype=None, objective=objective)
        batches = PreferenceBatches(store, context_length=40, batch_size=5, seed=0, reference=reference)
        losses = [module.run([batches.next()], 1.0).loss for _ in range(30)]
        return losses, before, win_rate(model, pairs)

    losses, before, after = trained(precomputed=False)
    assert before < 1.0 and after == 1.0
    assert losses[-1] < losses[0]
    assert trained(precomputed=True)[0][:3] == pytest.approx(losses[:3], rel=1e-4)


def test_dropout_is_silent_so_that_policy_and_reference_agree_at_the_start(tmp_path: Path) -> None:
    store = pairs_store(tmp_path)
    model = make_model(dropout=0.5)
    pairs = held_out_pairs(store, context_length=40, batch_size=10)
    reference = reference_log_probabilities(model, pairs, 10)
    objective = Preference(PreferenceSettings("dpo"))
    batch = held_out_pairs(store, context_length=40, batch_size=10, reference=reference)[0]
    result = TrainModule(model, ADAMW, objective=objective).run([batch], 0.0)
    assert result.loss == pytest.approx(0.6931472, abs=1e-5)  # log 2
    assert model.training


@pytest.mark.parametrize("name", METHODS)
def test_layers_that_are_computed_twice_drop_nothing_the_second_time_either(tmp_path: Path, name: PreferenceLoss) -> None:
    """The backward pass comes when the model is in training mode again."""
    store = pairs_store(tmp_path)

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = make_model(dropout=0.5)
        model.checkpointing = checkpointing
        lora = attach(model, LoraSettings(rank=4, dropout=0.5), family_named("qwen3"), seed=0)
        objective = Preference(PreferenceSettings(name), reference=lora.off)
        module = TrainModule(model, ADAMW, dtype=None, objective=objective)
        module.run([held_out_pairs(store, context_length=40, batch_size=5)[0]], 1.0)  # away from updates of zero
        return module._gradients(held_out_pairs(store, context_length=40, batch_size=5), 1 / 10)[1]

    once, twice = gradients(False), gradients(True)
    for key, gradient in once.items():
        torch.testing.assert_close(twice[key], gradient, rtol=1e-5, atol=1e-6)


def test_every_epoch_shows_each_pair_once_and_a_resumed_stream_goes_on(tmp_path: Path) -> None:
    store = pairs_store(tmp_path, 9)
    reference = torch.arange(9.0)[:, None].expand(9, 2).contiguous()

    def stream() -> PreferenceBatches:
        return PreferenceBatches(store, context_length=40, batch_size=3, seed=5, reference=reference)

    batches = stream()
    shown = [batch.reference[:, 0].tolist() for batch in (batches.next() for _ in range(6)) if batch.reference is not None]
    epochs = [[pair for batch in part for pair in batch] for part in (shown[:3], shown[3:])]
    assert [sorted(epoch) for epoch in epochs] == [list(range(9))] * 2 and epochs[0] != epochs[1]
    assert batches.epoch == 2.0 and batches.steps_per_epoch == 3

    resumed = stream()
    resumed.load_state_dict(batches.state_dict())
    ours, theirs = resumed.next(), batches.next()
    assert torch.equal(ours.inputs, theirs.inputs) and torch.equal(ours.sequences, theirs.sequences)
    ranks = [
        PreferenceBatches(store, context_length=40, batch_size=1, seed=5, reference=reference, rank=rank, world_size=3)
        for rank in range(3)
    ]
    assert [float(each.next().reference[0, 0]) for each in ranks] == shown[0]  # type: ignore[index]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    store = pairs_store(tmp_path / "pairs", 2)
    batch = held_out_pairs(store, context_length=40, batch_size=2)[0]
    with pytest.raises(UsageError, match="no reference log-probabilities.*or use orpo"):
        Preference(PreferenceSettings("dpo")).loss(make_model(), batch, 1.0)
    with pytest.raises(DataError, match="without a rejected answer; give preferences, or use the method sft"):
        PreferenceBatches(answers_store(tmp_path / "answers"), context_length=40, batch_size=2)
    with pytest.raises(DataError, match="reference is of 3 pairs, .* holds 2"):
        PreferenceBatches(store, context_length=40, batch_size=2, reference=torch.zeros(3, 2))
    with pytest.raises(UsageError, match="more than the context of 4; use 12"):
        PreferenceBatches(store, context_length=4, batch_size=2)
    with pytest.raises(UsageError, match="of dpo, but the method is ipo"):
        PreferenceSettings("ipo", label_smoothing=0.1)


def test_the_reference_is_computed_once_and_again_when_it_is_damaged_or_of_another_run(tmp_path: Path) -> None:
    path, calls = tmp_path / "run" / "reference.safetensors", []

    def compute() -> Tensor:
        calls.append(1)
        return torch.tensor([[1.0, -2.0]])

    for _ in range(2):
        assert torch.equal(kept_reference(path, "model a, examples b", compute), torch.tensor([[1.0, -2.0]]))
    assert len(calls) == 1
    kept_reference(path, "model a, examples c", compute)
    assert len(calls) == 2
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert torch.equal(kept_reference(path, "model a, examples c", compute), torch.tensor([[1.0, -2.0]]))
    assert len(calls) == 3
