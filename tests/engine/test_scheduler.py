"""What a step computes: always something while there is work, only what runs, and never more than the memory holds."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from owngpt.config.generation import GenerationConfig
from owngpt.engine.blocks import BlockPool
from owngpt.engine.request import Request, Stream
from owngpt.engine.scheduler import Scheduler, Task, Work
from owngpt.engine.sequence import TextSequence
from owngpt.text.training import train_tokenizer

SIZE = 32
TOKENIZER = train_tokenizer([], kind="byte")


def scheduler_of(blocks: int, *, window: int = 0, whole_prompts: bool = False) -> Scheduler:
    return Scheduler(BlockPool(blocks + 1, SIZE), window=window, whole_prompts=whole_prompts)


def task_of(arrival: int, tokens: int, *, index: int = 0, stream: Stream | None = None, start: int | None = None) -> Task:
    """A text whose tokens no other text has, unless they begin at the same ``start``."""
    first = 1000 * arrival + 100_000 * index if start is None else start
    text = TextSequence(TOKENIZER, GenerationConfig(), (), 10**6)
    request = Request((1,))
    return Task(request, stream or Stream(1, lambda: None), index, text, list(range(first, first + tokens)), arrival)


def run(scheduler: Scheduler, plan: list[Work], *, writes: bool = True) -> None:
    """A step as the engine takes it: what is complete is written on."""
    assert all(work.task in scheduler.running for work in plan)
    for work in plan:
        assert len(work.task.blocks) * SIZE >= work.task.computed + work.count
        is_complete = work.complete
        scheduler.advance(work)
        if is_complete:
            work.task.started = True
            if writes:
                work.task.token_ids.append(7)
    scheduler.check()


def test_a_stopped_text_that_fills_the_whole_memory_is_let_in_again() -> None:
    scheduler = scheduler_of(4)
    task = task_of(1, 4 * SIZE)
    scheduler.add(task)
    assert scheduler.plan() == [Work(task, 4 * SIZE)]


def test_a_text_that_began_before_is_let_in_where_its_windows_leave_the_memory_to_it() -> None:
    scheduler = scheduler_of(20, window=40)
    scheduler._largest_piece = scheduler._pace.largest_piece = 256
    for tokens in (18 * SIZE, 30 * SIZE):  # the second begins as the first did
        task = task_of(1, tokens, start=5)
        scheduler.add(task)
        while task.left:
            plan = scheduler.plan()
            assert plan
            run(scheduler, plan, writes=False)
        scheduler.remove(task)
    assert task.cached_tokens == 18 * SIZE


def test_a_whole_prompt_needs_all_its_blocks_even_where_windows_are_small() -> None:
    scheduler = scheduler_of(60, window=40, whole_prompts=True)
    first, second = task_of(1, 40 * SIZE), task_of(2, 40 * SIZE)
    scheduler.add(first)
    scheduler.add(second)
    assert scheduler.longest_held(40 * SIZE) == 40 * SIZE
    assert [work.task for work in scheduler.plan()] == [first]


def test_an_older_text_that_is_computed_again_stops_younger_ones_before_they_are_planned() -> None:
    """A text that rolls is computed again while younger ones write."""
    scheduler = scheduler_of(6, whole_prompts=True)
    old, young, latest = task_of(1, 20), task_of(2, 2 * SIZE - 3), task_of(3, 2 * SIZE - 3)
    for task in (old, young, latest):
        scheduler.add(task)
    run(scheduler, scheduler.plan())
    old.token_ids += range(4 * SIZE - len(old.token_ids))
    plan = scheduler.plan()
    assert all(work.task in scheduler.running for work in plan)
    assert {work.task for work in plan} == {old, young}
    assert latest in scheduler.waiting
    run(scheduler, plan)


def test_two_older_texts_that_are_computed_again_leave_no_block_behind() -> None:
    scheduler = scheduler_of(6, whole_prompts=True)
    tasks = [task_of(arrival, 20) for arrival in (1, 2, 3)]
    for task in tasks:
        scheduler.add(task)
    run(scheduler, scheduler.plan())
    for task in tasks:
        task.token_ids += range(4 * SIZE - len(task.token_ids))
    for _ in range(200):
        run(scheduler, scheduler.plan(), writes=False)
        for task in tasks:
            if not task.left and task in scheduler.running:
                scheduler.remove(task)
    assert scheduler.idle
    assert scheduler.pool.available == 6


def test_searches_that_hold_all_memory_while_they_wait_make_room_for_the_oldest() -> None:
    """Beams whose logits have come hold their memory, and wait for a beam of the same search that has none."""
    scheduler = scheduler_of(4)
    streams = [Stream(1, lambda: None), Stream(1, lambda: None)]
    old, young = (task_of(arrival, SIZE + 1, stream=stream) for arrival, stream in enumerate(streams))
    for task in (old, young):
        scheduler.add(task)
    run(scheduler, scheduler.plan(), writes=False)
    assert scheduler.pool.available == old.left == young.left == 0
    others = [task_of(arrival, SIZE + 1, index=1, stream=stream) for arrival, stream in enumerate(streams)]
    for task in others:
        task.started = True
        scheduler.add(task)
    assert scheduler.plan() == [Work(others[0], SIZE + 1)]
    assert list(scheduler.waiting) == [young, others[1]]
    scheduler.check()


@dataclass
class _Life:
    """How long a text is to become."""

    task: Task
    most: int


@pytest.mark.parametrize("seed", range(12))
def test_any_schedule_of_texts_that_roll_are_cancelled_and_stopped_ends_with_every_block_free(seed: int) -> None:
    generator = random.Random(seed)
    blocks, window = generator.choice((4, 5, 8, 20)), generator.choice((0, 0, 40))
    scheduler = Scheduler(BlockPool(blocks + 1, SIZE), most_rows=generator.choice((2, 5, 64)), window=window)
    scheduler._largest_piece = scheduler._pace.largest_piece = generator.choice((16, 40, 512))
    context = 4 * SIZE
    lives: dict[Task, _Life] = {}
    for arrival in range(1, 17):
        task = task_of(arrival, generator.choice((1, 31, 32, 33, 64, 96, 127)), start=generator.choice((5, 500, None)))
        lives[task] = _Life(task, len(task.token_ids) + generator.choice((1, 5, 40, 200)))
    coming = list(lives)
    for _ in range(5_000):
        if coming and generator.random() < 0.2:
            scheduler.add(coming.pop(0))
        if scheduler.idle and not coming:
            break
        if lives and generator.random() < 0.01 and (running := [*scheduler.running, *scheduler.waiting]):
            scheduler.remove(generator.choice(running))
        plan = scheduler.plan()
        scheduler.took(plan, generator.random())
        run(scheduler, plan)
        for work in plan:
            task = work.task
            if len(task.token_ids) >= lives[task].most:
                scheduler.remove(task)
            elif task.length > context:
                scheduler.roll(task, context)
    assert scheduler.idle
    assert scheduler.pool.available == blocks
