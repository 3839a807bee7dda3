"""What a step of the model gave, with the faults kept apart: one text's ends that text alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from owngpt.engine.layout import Part
from owngpt.engine.runner import Runner
from owngpt.engine.scheduler import Task, Work
from owngpt.errors import EngineError, OwnGPTError

_NO_LOGITS = torch.empty(0, 0)


@dataclass(frozen=True)
class Outcome:
    """What a step gave."""

    done: Sequence[Work]
    logits: Tensor
    """(R, V), the rows of each work of ``done``."""
    errors: dict[Task, OwnGPTError]

    @property
    def first_rows(self) -> list[int | None]:
        """Where each work's logits begin; None where the text's next token cannot be chosen yet."""
        found: list[int | None] = []
        row = 0
        for work in self.done:
            rows = work.rows
            found.append(row if rows else None)
            row += rows
        return found


def run(runner: Runner, plan: Sequence[Work]) -> Outcome:
    """Compute a step. Where it fails as a whole, each text's share alone: one of them spoils it, the others go on."""
    try:
        return Outcome(plan, runner.run([_part(work) for work in plan]), {})
    except Exception as error:  # whatever it is, it must not end the engine's thread
        if len(plan) == 1:
            known = error if isinstance(error, OwnGPTError) else EngineError(f"the model could not run: {error}")
            return Outcome((), _NO_LOGITS, {plan[0].task: known})
    outcomes = [_kept(run(runner, [work])) for work in plan]
    return Outcome(
        [work for outcome in outcomes for work in outcome.done],
        torch.cat([outcome.logits for outcome in outcomes if len(outcome.logits)] or [_NO_LOGITS]),
        {task: error for outcome in outcomes for task, error in outcome.errors.items()},
    )


def _kept(outcome: Outcome) -> Outcome:
    """Its logits stay when the runner goes on."""
    return replace(outcome, logits=outcome.logits.clone())


def _part(work: Work) -> Part:
    task = work.task
    token_ids = [*task.visible(task.computed, task.computed + work.count), *work.guessed]
    return Part(token_ids, task.computed, task.blocks, work.rows, task.request.adapter)
