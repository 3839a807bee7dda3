"""How much of what was learned is kept: no more than general text bears, no less than held-out examples need."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.finetune.small_runs import chats, write_base, write_rows
from tests.finetune.tiny_tuning import answers_store, make_model

from owngpt.errors import UsageError
from owngpt.families import family_named
from owngpt.finetune.adapter.lora import LoraSettings, attach
from owngpt.finetune.report.forgetting import general_losses
from owngpt.finetune.report.losses import SequenceLoss, window_nats, window_of
from owngpt.finetune.report.measure import Measurement
from owngpt.finetune.start import finetune
from owngpt.finetune.strength import PART, WEAKEST, Losses, choose, chosen
from owngpt.formats.folder import load_model
from owngpt.formats.locate import locate
from owngpt.formats.peft import load_adapter
from owngpt.text.training import train_tokenizer

IDS = torch.arange(2, 22)[None]


def forgets(rise: float, *, best: float = 1.0, loss: float = 3.0):
    """A model whose general text suffers with the square of the strength, and whose held-out loss is least at ``best``."""

    def at(strength: float) -> Losses:
        drop = (4.0 - loss) / best**2
        return Losses(loss + drop * (strength - best) ** 2, 20.0 * math.exp(math.log1p(rise) * strength**2))

    return at


@pytest.mark.parametrize(
    ("at", "strength"),
    [
        (forgets(0.0), 1.0),
        (forgets(0.0099), 1.0),
        (forgets(0.015), 0.81),
        (forgets(0.0, best=0.75), 0.75),
        (forgets(0.015, best=0.75), 0.75),
        (forgets(0.5), 0.69),
        (lambda s: Losses(4.0 - s, 20.0 * (1 + 0.2 * s)), 0.9),
        (lambda s: Losses(4.0 + s, 20.0), WEAKEST),
        (lambda s: Losses(3.0, math.nan if s else 20.0), 1.0),
    ],
    ids=[
        "nothing forgotten", "little", "more", "too strong", "too strong and forgetful", "very much", "held-out examples need it",
        "held-out examples suffer", "not a number",
    ],
)  # fmt: skip
def test_the_strength_that_answers_best_and_forgets_little_is_chosen(at, strength: float):
    assert chosen(at(0.0), at(PART), at(1.0)).chosen == pytest.approx(strength, abs=0.011)


def test_the_reason_has_both_sides_of_the_choice():
    at = forgets(0.015)
    assert chosen(at(0.0), at(PART), at(1.0)).reason == (
        "81% of what was learned: general text about +1.0% in perplexity instead of +1.5%, held-out loss 3.036 instead of 3.000"
    )


@pytest.mark.parametrize("dora", [False, True])
def test_choosing_leaves_the_adapter_and_weakening_goes_from_all_to_nothing(tmp_path: Path, dora: bool):
    tokenizer = train_tokenizer([], kind="byte")
    model = make_model(vocab_size=tokenizer.vocab_size)
    base = model.logits(IDS)
    lora = attach(model, LoraSettings(rank=4, dora=dora), family_named("llama"), seed=0)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    learned, model = model.logits(IDS), lora.model.train()
    assert not torch.allclose(learned, base, atol=0.1)
    assert choose(lora, answers_store(tmp_path / "held out"), tokenizer, ("English",)).chosen >= WEAKEST
    assert model.training and torch.equal(model.eval().logits(IDS), learned)
    lora.weaken(1.0)
    assert torch.allclose(model.logits(IDS), learned, atol=1e-5)
    lora.weaken(0.0)
    assert torch.allclose(model.logits(IDS), base, atol=1e-4)


def test_what_was_measured_of_the_base_before_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = train_tokenizer([], kind="byte")
    model, store = make_model(vocab_size=tokenizer.vocab_size), answers_store(tmp_path / "held out")
    windows = [window_of(store.example(index)) for index in range(len(store))]
    nats = dict(window_nats(model, windows, None))
    losses = [SequenceLoss(place, nats[place], sum(target >= 0 for target in windows[place].targets)) for place in nats]
    general = tuple(general_losses(model, tokenizer, None))
    before = Measurement("chat", len(store), tuple(losses), general, (), (), answer_limit=0, seconds=0.0)
    lora = attach(model, LoraSettings(rank=4), family_named("llama"), seed=0)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    anew = choose(lora, store, tokenizer, ("English",))

    def switched_off():
        raise AssertionError("the base was measured again")

    monkeypatch.setattr(lora, "off", switched_off)
    assert choose(lora, store, tokenizer, ("English",), before=before) == anew
    for part in (replace(before, losses=before.losses[1:]), replace(before, general=general[4:])):
        with pytest.raises(AssertionError, match="measured again"):
            choose(lora, store, tokenizer, ("English",), before=part)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base") / "base")


def run(base: Path, folder: Path, **options: object):
    rows = write_rows(folder.with_suffix(".jsonl"), chats(24))
    return finetune(base, rows, output=folder, steps=6, learning_rate=1e-2, quiet=True, context_length=64, **options)


def test_a_strength_that_is_given_scales_what_is_saved_and_is_told(base: Path, tmp_path: Path):
    folders = {strength: tmp_path / str(strength) for strength in (1.0, 0.25)}
    results = {strength: run(base, folder, strength=strength) for strength, folder in folders.items()}
    config = load_model(base)[0].config
    whole, part = (load_adapter(folders[strength], config) for strength in (1.0, 0.25))
    name = next(iter(whole))
    assert torch.allclose(part[name].up, whole[name].up * 0.25, rtol=2e-2)
    assert results[0.25].training["strength"] == 0.25
    assert "- strength: 25% of what was learned, as given" in (folders[0.25] / "report.md").read_text(encoding="utf-8")


def test_without_one_it_is_chosen_and_the_report_says_why(base: Path, tmp_path: Path):
    result = run(base, tmp_path / "out")
    assert WEAKEST <= result.training["strength"] <= 1.0
    numbers = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert numbers["plan"]["strength"] == result.training["strength"]
    assert any(reason.startswith("strength: ") for reason in numbers["plan"]["reasons"])


def test_a_whole_model_has_no_strength(base: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="--strength is of adapters, and --full trains the model itself"):
        run(base, tmp_path / "out", lora=False, strength=0.5)
    with pytest.raises(UsageError, match="strength is 0.0, but must be more than 0 to 1"):
        run(base, tmp_path / "out", strength=0.0)
    assert "strength" not in run(locate(base), tmp_path / "whole", lora=False).training
