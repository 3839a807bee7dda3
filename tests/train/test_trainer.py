"""The loop: exact resume, ending on time, the best weights, and a way out of what goes wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import make_module, make_trainer, text

from owngpt.errors import CheckpointError, FolderBusyError, StorageError, TrainingDivergedError, UsageError
from owngpt.model.gpt import GPT
from owngpt.train import checkpoint
from owngpt.train.course import Course
from owngpt.train.interrupts import TrainingInterrupted
from owngpt.train.lock import RunLock
from owngpt.train.metrics import read_lines
from owngpt.train.trainer import Trainer

SHORT = Course(steps=40, evaluation_interval=8, checkpoint_seconds=1e9)
SAVING = Course(steps=40, evaluation_interval=8, checkpoint_seconds=0.0)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return trainer.module.weights()


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def lines(folder: Path, split: str = "train") -> list[dict[str, Any]]:
    return [record for record in read_lines(folder / "metrics.jsonl") if record.get("split") == split]


class Heard:
    """A display that remembers what was said."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def update(self, make: Any) -> None:
        self.words.append(make().words())

    def say(self, message: str) -> None:
        self.words.append(message)

    def warn(self, message: str) -> None:
        self.words.append(message)

    def close(self) -> None:
        pass


def test_training_learns_and_records_every_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, SHORT)
    result = trainer.run()
    assert (result.step, result.tokens, result.best_step) == (40, 40 * 4 * 32, 40)
    assert result.validation_loss is not None and result.validation_loss < 2.5 < math.log(256)
    assert result.bits_per_byte == pytest.approx(result.validation_loss / math.log(2))
    assert trainer.module.validate(trainer._validation._batches) == pytest.approx(result.validation_loss)
    training, validation = lines(tmp_path), lines(tmp_path, "validation")
    assert [line["step"] for line in training] == list(range(1, 41))
    assert [line["step"] for line in validation] == [8, 16, 24, 32, 40]
    expected = {
        "split", "step", "tokens", "epoch", "elapsed_seconds", "loss", "bits_per_byte", "learning_rate", "gradient_norm",
        "tokens_per_second", "matmul_share",
    }  # fmt: skip
    assert set(training[0]) == expected
    assert training[-1]["tokens"] == result.tokens
    assert 0 < training[-1]["learning_rate"] < training[10]["learning_rate"]
    assert list((tmp_path / "tensorboard").iterdir())


def test_resumed_run_is_bit_identical(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", SHORT)
    whole.run()
    stopped: list[int] = []

    def stop(model: GPT) -> list[dict[str, Any]]:
        stopped.append(1)
        if len(stopped) == 3:
            signal.raise_signal(signal.SIGINT)
        return []

    parts = make_trainer(tmp_path / "parts", SHORT, on_sample=stop)
    with pytest.raises(TrainingInterrupted, match=r"interrupted at step \d+; saved .*--resume"):
        parts.run()
    again = make_trainer(tmp_path / "parts", SHORT, module=make_module(seed=99))
    step = again.restore()
    assert step is not None and 0 < step < 40
    again.module.seed = 1
    again.run()
    assert same_bits(weights_of(whole), weights_of(again))
    assert [line["loss"] for line in lines(tmp_path / "whole")] == [line["loss"] for line in lines(tmp_path / "parts")]
    assert [line["loss"] for line in lines(tmp_path / "whole", "validation")] == [
        line["loss"] for line in lines(tmp_path / "parts", "validation")
    ]


def test_a_checkpoint_at_any_step_leads_to_the_same_weights(tmp_path: Path) -> None:
    """The kept checkpoint of every step, not only the latest, is a whole state."""
    whole = make_trainer(tmp_path / "run", Course(steps=12, evaluation_interval=4, checkpoint_seconds=1e9))
    whole.run()
    for stop_after in (1, 4, 5, 11):
        folder = tmp_path / str(stop_after)
        first = make_trainer(folder, Course(steps=12, evaluation_interval=4, checkpoint_seconds=1e9))
        first._begin()
        for _ in range(stop_after):
            first._advance()
        first._save()
        first._lock.release()
        second = make_trainer(folder, Course(steps=12, evaluation_interval=4, checkpoint_seconds=1e9))
        assert second.restore() == stop_after
        second.run()
        assert same_bits(weights_of(whole), weights_of(second)), stop_after


def test_a_finished_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, SHORT)
    result = first.run()
    second = make_trainer(tmp_path, SHORT, module=make_module(seed=5))
    assert second.restore() == 40
    repeated = second.run()
    assert same_bits(weights_of(first), weights_of(second))
    assert (repeated.step, repeated.validation_loss, repeated.training_loss) == (40, result.validation_loss, result.training_loss)
    assert [line["step"] for line in lines(tmp_path, "validation")] == [8, 16, 24, 32, 40]


def test_samples_and_what_they_draw_change_nothing(tmp_path: Path) -> None:
    def write(model: GPT) -> list[dict[str, Any]]:
        assert not model.training
        torch.rand(17)
        return [{"prompt": "the", "text": f"cat {torch.rand(1).item():.3f}"}]

    plain, sampled = make_trainer(tmp_path / "a", SHORT), make_trainer(tmp_path / "b", SHORT, on_sample=write)
    plain.run()
    sampled.run()
    assert same_bits(weights_of(plain), weights_of(sampled))
    written = list(read_lines(tmp_path / "b" / "samples.jsonl"))
    assert written and {"step", "tokens", "elapsed_seconds", "prompt", "text"} <= set(written[0])


def never_affordable(model: GPT) -> list[dict[str, Any]]:
    raise AssertionError("samples would take more than their share of three seconds")


def test_a_run_with_a_time_budget_ends_on_time(tmp_path: Path) -> None:
    """By the processor's seconds: the clock on the wall also counts what other tests take."""
    budget = 3.0
    course = Course(steps=2_000, budget_seconds=budget, checkpoint_seconds=0.5)  # a line for every step
    trainer = make_trainer(tmp_path, course, on_sample=never_affordable, clock=time.process_time)
    start = time.process_time()
    result = trainer.run()
    assert time.process_time() - start == pytest.approx(budget, rel=0.1)
    assert result.elapsed_seconds == pytest.approx(budget, rel=0.1)
    assert lines(tmp_path)[-1]["learning_rate"] < 0.1, "the decay must end with the time, however wrong the estimated steps were"
    assert max(line["learning_rate"] for line in lines(tmp_path)) > 0.9
    validation = lines(tmp_path, "validation")
    assert validation[-1]["step"] == result.step
    assert sum(line["seconds"] for line in validation) < 0.1 * budget


def test_a_budget_goes_on_where_the_first_session_left_it(tmp_path: Path) -> None:
    course = Course(steps=100_000, budget_seconds=3.0, checkpoint_seconds=1e9)
    start = math.inf

    def stopping_clock() -> float:
        nonlocal start
        now = time.process_time()
        if now - start > 1.0:
            start = math.inf
            os.kill(os.getpid(), signal.SIGTERM)
        return now

    first = make_trainer(tmp_path, course, clock=stopping_clock)
    start = began = time.process_time()
    with pytest.raises(TrainingInterrupted):
        first.run()
    already = time.process_time() - began
    second = make_trainer(tmp_path, course, clock=time.process_time)
    second.restore()
    start = time.process_time()
    result = second.run()
    assert time.process_time() - start == pytest.approx(3.0 - already, abs=0.4)
    assert result.elapsed_seconds == pytest.approx(3.0, rel=0.1)


def test_the_best_weights_are_kept_when_a_run_learns_the_wrong_thing(tmp_path: Path) -> None:
    course = Course(steps=60, evaluation_interval=5, checkpoint_seconds=1e9)
    backwards = text(1, 200)[::-1]  # the same letters at first, then ever less likely
    trainer = make_trainer(tmp_path, course, held_out=backwards)
    result = trainer.run()
    losses = {line["step"]: line["loss"] for line in lines(tmp_path, "validation")}
    assert result.best_step == min(losses, key=losses.__getitem__) < 60
    assert result.validation_loss == min(losses.values()) < losses[60] - 0.1
    assert trainer.module.validate(trainer._validation._batches) == pytest.approx(result.validation_loss, rel=1e-6)
    again = make_trainer(tmp_path, course, held_out=backwards, module=make_module(seed=7))
    again.restore()
    again.run()
    assert same_bits(weights_of(trainer), weights_of(again)), "the best weights are part of the checkpoint"


def poison(model: GPT) -> None:
    with torch.no_grad():
        model.embedding.weight.fill_(math.nan)


def test_bad_steps_are_skipped_and_the_run_goes_back_to_the_last_good_checkpoint(tmp_path: Path) -> None:
    times: list[int] = []

    def break_once(model: GPT) -> list[dict[str, Any]]:
        times.append(1)
        if len(times) == 2:
            poison(model)
        return []

    heard = Heard()
    trainer = make_trainer(tmp_path, SAVING, on_sample=break_once, display=heard)
    result = trainer.run()
    said = "\n".join(heard.words)
    assert said.count("skipped: loss nan") == 3
    assert "3 bad steps in a row" in said and "back to step" in said and "0.5 times the learning rate" in said
    assert result.step == 40 and result.validation_loss is not None and result.validation_loss < 3.0
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps == sorted(set(steps)), "steps that are taken again must not be recorded twice"


def test_a_run_that_diverges_again_stops_with_a_diagnosis(tmp_path: Path) -> None:
    def always(model: GPT) -> list[dict[str, Any]]:
        poison(model)
        return []

    with pytest.raises(TrainingDivergedError, match="again after going back") as caught:
        make_trainer(tmp_path, SAVING, on_sample=always).run()
    message = str(caught.value)
    assert "learning rate was" in message and "gradient norms" in message and "lower learning rate" in message
    assert checkpoint.find_newest(tmp_path / "checkpoints")[0] is not None


def test_diverging_before_any_checkpoint_is_said(tmp_path: Path) -> None:
    module = make_module()
    poison(module.model)
    with pytest.raises(TrainingDivergedError, match=r"step 3 .*before there was a checkpoint.*no step was taken"):
        make_trainer(tmp_path, SHORT, module=module).run()


def test_a_checkpoint_of_broken_weights_is_never_written(tmp_path: Path) -> None:
    def always(model: GPT) -> list[dict[str, Any]]:
        poison(model)
        return []

    with pytest.raises(TrainingDivergedError):
        make_trainer(tmp_path, SAVING, on_sample=always).run()
    for path in checkpoint.checkpoints(tmp_path / "checkpoints"):
        state = checkpoint.load(path).state
        assert all(torch.isfinite(value).all() for value in state.values() if isinstance(value, torch.Tensor))


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    def impatient(model: GPT) -> list[dict[str, Any]]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return []

    with pytest.raises(KeyboardInterrupt, match="without saving") as caught:
        make_trainer(tmp_path, SHORT, on_sample=impatient).run()
    assert not isinstance(caught.value, TrainingInterrupted)
    assert checkpoint.checkpoints(tmp_path / "checkpoints") == []


def test_handlers_and_lock_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    make_trainer(tmp_path, Course(steps=2)).run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with RunLock(tmp_path):
        pass


def test_a_lock_that_is_lent_is_held_beyond_the_training(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        make_trainer(tmp_path, Course(steps=2), lock=lock).run()
        again = make_trainer(tmp_path, Course(steps=2), lock=lock)
        again.restore()
        again.run()
        assert lock.held
        with pytest.raises(FolderBusyError):
            RunLock(tmp_path).acquire()


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        for use in (lambda trainer: trainer.run(), lambda trainer: trainer.restore()):
            with pytest.raises(FolderBusyError, match=str(os.getpid())):
                use(make_trainer(tmp_path, SHORT))


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path: Path) -> None:
    make_trainer(tmp_path, Course(steps=2)).run()
    before = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(UsageError, match="holds a run up to step 2; use --resume"):
        make_trainer(tmp_path, Course(steps=2)).run()
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    make_trainer(tmp_path, Course(steps=2)).run()
    with pytest.raises(CheckpointError, match=r"another run: data, tokenizer differ"):
        make_trainer(tmp_path, Course(steps=2), identity={"data": "xyz", "tokenizer": "t"}).restore()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_resumed(tmp_path: Path) -> None:
    make_trainer(tmp_path, Course(steps=6, checkpoint_seconds=0.0)).run()
    newest = checkpoint.checkpoints(tmp_path / "checkpoints")[-1]
    with open(newest / checkpoint.TENSORS, "r+b") as file:
        file.truncate(1000)
    heard = Heard()
    assert make_trainer(tmp_path, Course(steps=6), display=heard).restore() == 5
    assert str(newest) in heard.words[0] and "has 1000 bytes" in heard.words[0]
    with pytest.raises(CheckpointError, match="has 1000 bytes"):
        make_trainer(tmp_path, Course(steps=6)).restore(newest)


def test_nothing_to_resume_starts_anew(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Course(steps=2))
    assert trainer.restore() is None
    assert trainer.run().step == 2


def test_a_run_without_held_out_text_ends_with_its_last_weights(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Course(steps=3, evaluation_interval=1))
    trainer._validation._batches = []
    result = trainer.run()
    assert (result.best_step, result.validation_loss, result.bits_per_byte) == (3, None, None)


def test_an_output_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(StorageError, match="out"):
        make_trainer(tmp_path / "out" / "run", SHORT).run()


def test_old_checkpoints_are_pruned(tmp_path: Path) -> None:
    make_trainer(tmp_path, Course(steps=6, checkpoint_seconds=0.0)).run()
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path / "checkpoints")] == [5, 6]


def test_python_overhead_of_a_step_is_below_a_millisecond(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Course(steps=400, evaluation_interval=1000, checkpoint_seconds=1e9))
    spent, run = [0.0], trainer.module.run

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.thread_time()
        result = run(*arguments, **options)
        spent[0] += time.thread_time() - start
        return result

    trainer.module.run = timed  # type: ignore[method-assign]
    trainer._begin()
    for _ in range(10):
        trainer._advance()
    spent[0], start = 0.0, time.thread_time()
    for _ in range(100):
        trainer._advance()
    assert (time.thread_time() - start - spent[0]) / 100 < 0.001
    trainer._recorder.close()


def test_impossible_courses_are_refused() -> None:
    for wrong in ({"steps": 0}, {"budget_seconds": 0.0}, {"budget_seconds": math.nan}, {"accumulation": 0}):
        with pytest.raises(UsageError):
            Course(**{"steps": 5, **wrong})


def test_state_is_json_and_safetensors_only(tmp_path: Path) -> None:
    make_trainer(tmp_path, Course(steps=2)).run()
    path = checkpoint.checkpoints(tmp_path / "checkpoints")[-1]
    assert sorted(entry.name for entry in path.iterdir()) == ["manifest.json", "state.json", "state.safetensors"]
    json.loads((path / "state.json").read_text())
    shutil.rmtree(path)


def test_patience_ends_a_run_that_no_longer_improves_and_so_does_its_resumption(tmp_path: Path) -> None:
    course = Course(steps=400, evaluation_interval=4, checkpoint_seconds=0.0, patience=2)
    whole = make_trainer(tmp_path / "whole", course, module=make_module(rate=0.3), held_out=text(9, 60).replace("e", "q"))
    result = whole.run()
    assert result.step < 400
    assert [line["best"] for line in lines(tmp_path / "whole", "validation")][-2:] == [False, False]
    events = [line for line in read_lines(tmp_path / "whole" / "metrics.jsonl") if line.get("event") == "stopped_early"]
    assert [event["step"] for event in events] == [result.step]
    again = make_trainer(tmp_path / "whole", course, module=make_module(rate=0.3), held_out=text(9, 60).replace("e", "q"))
    assert again.restore() == result.step
    assert (again.run().step, again.best.step) == (result.step, result.best_step)


def test_a_run_under_a_budget_ends_at_its_step_limit_with_a_learning_rate_that_has_fallen(tmp_path: Path) -> None:
    course = Course(steps=30, step_limit=30, budget_seconds=60.0, decay=0.9)
    result = make_trainer(tmp_path, course).run()
    assert result.step == 30
    assert result.elapsed_seconds < 50
    assert lines(tmp_path)[-1]["learning_rate"] < 0.1


def averaging(**options: Any) -> Course:
    return Course(steps=24, evaluation_interval=4, checkpoint_seconds=0, averages_from=0.4, **options)


def test_the_mean_of_the_looks_is_kept_unless_one_is_clearly_better(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, averaging())
    states: list[dict[str, torch.Tensor]] = []
    add = trainer._average.add

    def noted(weights: dict[str, torch.Tensor]) -> None:
        states.append({name: value.clone() for name, value in weights.items()})
        add(weights)

    trainer._average.add = noted  # type: ignore[method-assign]
    result = trainer.run()
    assert len(states) == 4  # after 12, 16, 20 and 24 steps
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    kept = trainer.module.weights()
    assert result.averaged in (0, 4)
    wanted = mean if result.averaged else states[(result.best_step - 12) // 4]
    for name in mean:
        torch.testing.assert_close(kept[name], wanted[name], rtol=1e-5, atol=1e-6)
    assert [line["event"] for line in read_lines(tmp_path / "metrics.jsonl") if "event" in line] == ["averaged"]


@pytest.mark.parametrize("worse", [False, True])
def test_a_mean_that_does_worse_is_left(tmp_path: Path, worse: bool) -> None:
    trainer = make_trainer(tmp_path, averaging())
    trainer._begin()
    while not trainer._is_at_end():
        trainer._advance()
    if worse:
        trainer._average.weights = {name: 30 * value for name, value in trainer._average.weights.items()}
    else:
        trainer._average.weights = {name: value.clone() for name, value in trainer.module.weights().items()}
    result = trainer._finish()
    trainer._recorder.close()
    trainer._give_lock_back()
    assert result.averaged == (0 if worse else 4)
    assert trainer.module.validate(trainer._validation._subset()) == pytest.approx(result.validation_loss, rel=1e-5)


def test_a_resumed_run_has_the_same_mean(tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", averaging())
    whole.run()
    stopped = make_trainer(tmp_path / "stopped", averaging())
    stopped._begin()
    while stopped.step < 18:
        stopped._advance()
    stopped._save()
    stopped._recorder.close()
    stopped._give_lock_back()
    resumed = make_trainer(tmp_path / "stopped", averaging())
    assert resumed.restore() == 18
    resumed.run()
    expected, found = whole.module.weights(), resumed.module.weights()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
