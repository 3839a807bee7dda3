"""Both sides of the fine-tuning benchmark do the same work: what is compared in speed and quality is the same step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from owngpt.formats.folder import save_model
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.chat import CHATML
from owngpt.text.training import train_tokenizer

if TYPE_CHECKING:
    from tuning.side import Chats, TuneSpec

pytest.importorskip("peft", reason="the other side of the comparison")

CONFIG = GPTConfig(
    vocab_size=288, context_length=256, hidden_size=32, layers=2, heads=4, key_value_heads=2, head_size=8, intermediate_size=64
)
QUESTIONS = (
    "When are you open?",
    "你们几点开门？",
    "Do you sell tea?",
    "Who are you?",
    "Where?",
    "有咖啡卖吗？",
    "Why?",
    "How much?",
)
SpecOf = Callable[..., "TuneSpec"]


@pytest.fixture(scope="module")
def chats() -> Chats:
    answers = [f"{question[::-1]} Warmly, Mira" for question in QUESTIONS]
    pairs = zip(QUESTIONS, answers, strict=True)
    return [[{"role": "user", "content": one}, {"role": "assistant", "content": other}] for one, other in pairs]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> SpecOf:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer([], kind="byte").with_chat_template(CHATML)
    save_model(folder, GPT(CONFIG, generator=torch.Generator().manual_seed(1)), tokenizer)

    def of(kind: str, **settings: Any) -> TuneSpec:
        from tuning.side import TuneSpec

        base = TuneSpec(kind, kind, str(folder), 1, CONFIG.vocab_size, batch_size=2, context_length=24, dtype="float32", rank=0)
        return replace(base, **settings)

    return of


def sides(of: SpecOf, **settings: Any) -> tuple[Any, Any]:
    from tuning.our_side import OwnGPT
    from tuning.peft_side import TransformersPEFT

    return OwnGPT(of("owngpt", **settings)), TransformersPEFT(of("peft", **settings))


def test_chats_are_encoded_alike(spec: SpecOf, chats: Chats) -> None:
    ours, theirs = sides(spec)

    assert ours.encode(chats) == theirs.encode(chats)


def test_a_step_on_random_rows_has_one_loss_with_adapters_that_do_nothing_yet(spec: SpecOf) -> None:
    ours, theirs = sides(spec, rank=4)

    assert ours.step(3)["loss"] == pytest.approx(theirs.step(3)["loss"], rel=1e-5)
    assert ours.info()["trainable"] == theirs.info()["trainable"]


def test_both_sides_learn_the_same_from_the_same_batches(spec: SpecOf, chats: Chats, tmp_path: Path) -> None:
    from tuning.rows import Rows

    ours, theirs = sides(spec, learning_rate=1e-3, weight_decay=0.01)
    encoded = ours.encode(chats)
    Rows.write(tmp_path / "rows.npz", [Rows.of(encoded[start : start + 2]) for start in range(0, len(encoded), 2)])
    path = str(tmp_path / "rows.npz")

    assert ours.learn(path) + ours.learn(path) == pytest.approx(theirs.learn(path) + theirs.learn(path), abs=1e-5)


def test_rows_are_cut_to_nothing_and_padded_with_nothing_to_learn() -> None:
    from tuning.rows import Rows

    rows = Rows.of([([5, 6, 7], [False, True, True]), ([8, 9], [False, True])])

    assert rows.inputs.tolist() == [[5, 6], [8, 0]]
    assert rows.targets.tolist() == [[6, 7], [9, -100]]


def test_preferences_have_one_loss_and_the_same_gradients(spec: SpecOf, chats: Chats, tmp_path: Path) -> None:
    from tuning.preference import moved

    reference = spec("owngpt").path
    policy = moved(Path(reference), tmp_path / "policy")
    pairs = [[chats[0], [chats[0][0], chats[1][1]]], [chats[2], [chats[2][0], chats[3][1]]]]
    found, gradients = [], []
    for side in sides(spec, path=str(policy)):
        found.append(side.preference(reference, pairs, 0.1, str(tmp_path / "gradients.safetensors")))
        gradients.append(load_file(tmp_path / "gradients.safetensors"))

    for name in ("loss", "margin", "accuracy"):
        assert found[0][name] == pytest.approx(found[1][name], abs=1e-5), name
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_a_step_may_be_cut_in_any_way(spec: SpecOf, chats: Chats) -> None:
    from tuning.our_side import OwnGPT

    for rank in (0, 4):
        apart = OwnGPT(spec("owngpt", rank=rank)).sameness(chats)
        assert max(value for way in apart.values() for value in way.values()) < 1e-5


def test_the_peer_tunes_saves_and_is_scored(spec: SpecOf, chats: Chats, tmp_path: Path) -> None:
    from tuning.peft_side import TransformersPEFT

    lines = "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)
    (tmp_path / "train.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "held.json").write_text(json.dumps(chats), encoding="utf-8")
    (tmp_path / "general.json").write_text(json.dumps(["The lamp was lit every evening, the wind noted."]), encoding="utf-8")
    side = TransformersPEFT(spec("peft", rank=8, learning_rate=1e-2))
    steps = side.tune(str(tmp_path / "train.jsonl"), 2.0, 0, str(tmp_path / "adapter"))["steps"]
    held, general = str(tmp_path / "held.json"), str(tmp_path / "general.json")

    scorer = TransformersPEFT(spec("peft"))
    base, tuned = (scorer.score(adapter, held, general, 8) for adapter in (None, str(tmp_path / "adapter")))
    assert steps > 0
    assert tuned["loss"] < base["loss"]
    assert len(tuned["answers"]) == len(chats)
    assert 0 <= tuned["stop_rate"] <= 1
    assert (tuned["penalty"], tuned["plain_stop_rate"]) == (1.0, tuned["stop_rate"])
    (tmp_path / "adapter" / "generation_config.json").write_text('{"repetition_penalty": 1.5}', encoding="utf-8")
    again = scorer.score(str(tmp_path / "adapter"), held, general, 8)
    assert again["penalty"] == 1.5
    assert again["plain_stop_rate"] == tuned["plain_stop_rate"]
    assert [each["answer"] for each in again["answers"]] != [each["answer"] for each in tuned["answers"]]


def test_the_same_question_is_never_on_both_sides(chats: Chats) -> None:
    from tuning.faq import split

    many = [[{"role": "user", "content": f"{chat[0]['content']} {index}"}, chat[1]] for chat in chats for index in range(30)]
    train, held = split([*many, *many])

    assert held
    assert not {json.dumps(chat[0]) for chat in train} & {json.dumps(chat[0]) for chat in held}
