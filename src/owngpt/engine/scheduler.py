"""Which tokens the next step computes: every stream's next one first, then as much of waiting prompts as keeps streams even.

Shape of a step: one token of each sequence that is writing, and pieces of prompts within a budget (pace.py).
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from owngpt.engine.blocks import SPARE_BLOCK, BlockPool
from owngpt.engine.layout import TILE
from owngpt.engine.pace import LARGEST_PIECE, Pace
from owngpt.engine.request import Request, Stream
from owngpt.engine.sequence import TextSequence

if TYPE_CHECKING:
    from owngpt.engine.branches import Branches

MOST_ROWS = 64
SINKS = 4
"""First tokens of a text that is longer than the context and goes on: what attention leans on (arXiv 2309.17453)."""


@dataclass(eq=False)
class Task:
    """One text being written: a request has as many as it asked for."""

    request: Request
    stream: Stream
    index: int
    text: TextSequence
    token_ids: list[int]
    """Prompt and what was written."""
    arrival: int
    """Requests are served in this order."""
    root: object = None
    """What the cache's content depends on beside the tokens: the adapter as it was loaded then."""
    blocks: list[int] = field(default_factory=list)
    serials: list[int] = field(default_factory=list)
    """Of the leading blocks that are findable."""
    computed: int = 0
    """Tokens whose keys and values are in the blocks."""
    cached_tokens: int = 0
    started: bool = False
    skipped: int = 0
    """Tokens after the first :data:`SINKS` that the model no longer sees."""
    unseen: int = 0
    """Leading blocks that were given back, since no layer's window reaches them any more."""
    branches: Branches | None = None
    """The search that this text is a beam of."""

    @property
    def length(self) -> int:
        """Tokens that the model sees."""
        return len(self.token_ids) - self.skipped

    @property
    def left(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return self.length - self.computed

    def visible(self, start: int = 0, end: int | None = None) -> list[int]:
        """The tokens that the model sees, or some of them."""
        end = self.length if end is None else end
        if not self.skipped:
            return self.token_ids[start:end]
        behind = max(start, SINKS) + self.skipped
        return self.token_ids[start : min(end, SINKS)] + self.token_ids[behind : max(end + self.skipped, behind)]


@dataclass(frozen=True)
class Work:
    """A task's share of a step."""

    task: Task
    count: int
    guessed: tuple[int, ...] = ()
    """Tokens that may follow, to be checked in the same step."""

    @property
    def complete(self) -> bool:
        """Whether the task's next token can be chosen after this."""
        return self.count == self.task.left

    @property
    def rows(self) -> int:
        """Of logits."""
        return 1 + len(self.guessed) if self.complete else 0


class Scheduler:
    """Waiting and running tasks. Takes blocks from the pool; the engine tells it what each step took."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        most_rows: int = MOST_ROWS,
        largest_piece: int = LARGEST_PIECE,
        window: int = 0,
        whole_prompts: bool = False,
        grain: int = TILE,
    ) -> None:
        """
        :param window: tokens that the layer that looks back farthest sees; 0 for all.
        :param whole_prompts: never cut a prompt, for models that turn a token by the length of its text.
        :param grain: rows that a step's time grows by.
        """
        self.pool, self._window, self._whole_prompts = pool, window, whole_prompts
        self.waiting: deque[Task] = deque()
        """In the order in which they are served."""
        self.running: list[Task] = []
        self.preemptions = 0
        self._most_rows, self._largest_piece = most_rows, largest_piece
        self._pace = Pace(largest_piece, grain)

    @property
    def idle(self) -> bool:
        """Nothing to do."""
        return not self.waiting and not self.running

    def add(self, task: Task) -> None:
        """A new task, at the end of the line."""
        self._line_up(task)

    def plan(self) -> list[Work]:
        """The next step; empty only when there is nothing to do."""
        while True:
            plan = self._plan()
            if plan or self.idle:
                return plan
            assert self.running, "tasks wait, and none can run"
            # Beams that have their logits wait for others of their search, for which they leave no room: the oldest goes on.
            self._preempt(self._latest())

    def _plan(self) -> list[Work]:
        writers = [task for task in self.running if task.left == 1]
        preemptions = self.preemptions
        plan: list[Work] = []
        for task in writers:  # making room for one may have stopped a later one
            if (preemptions == self.preemptions or task in self.running) and self._make_room(task, 1):
                plan.append(Work(task, 1))
        if preemptions != self.preemptions:
            plan = [work for work in plan if work.task in self.running]
        unwritten = len(self.waiting) + len(self.running) - len(writers)
        if not unwritten:
            return plan
        budget = self._pace.budget(len(plan), unwritten)
        for task in [task for task in self.running if task.left > 1]:
            if task in self.running:
                budget -= self._add_piece(plan, task, budget)
        plan = [work for work in plan if work.task in self.running]  # one that rolls may have stopped younger ones
        while budget > 0 and self.waiting:
            task = self.waiting[0]
            if len(self.running) >= self._most_rows and not (task.branches is not None and task.started):
                break  # a beam of a search that runs is let in: the others wait for it
            if self._waits_for_sibling(task) or not self._admit(task):
                break
            self.waiting.popleft()
            self.running.append(task)
            budget -= self._add_piece(plan, task, budget)
        return plan

    def took(self, plan: Sequence[Work], seconds: float) -> None:
        """Learn from a step's duration."""
        writers = sum(work.task.started and work.count == 1 for work in plan)
        self._pace.took(writers, sum(work.count for work in plan), seconds)

    def longest_held(self, tokens: int) -> int:
        """Tokens whose blocks a text of so many holds at most, when it has been computed piece by piece."""
        if not self._window or self._whole_prompts:
            return tokens
        return min(tokens, self._window + self._largest_piece + 3 * self.pool.block_size)

    def with_guesses(self, work: Work, guessed: Sequence[int]) -> Work:
        """A work with as many of these tokens as fit in memory that nobody needs now."""
        task, size = work.task, self.pool.block_size
        wanted = task.computed + work.count + len(guessed)
        while len(task.blocks) * size < wanted and self.pool.available > len(self.running):
            block = self.pool.allocate()
            assert block is not None
            task.blocks.append(block)
        room = len(task.blocks) * size - task.computed - work.count
        return replace(work, guessed=tuple(guessed[: max(room, 0)]))

    def roll(self, task: Task, context_length: int) -> None:
        """A text has become longer than the context: the model goes on seeing its first tokens and its latest ones.

        What it still sees moves to other positions, so its keys and values are computed again, as a prompt's. With half of
        the context kept that is one token of a prompt for each token that is written.
        """
        task.skipped += task.length - max(context_length // 2, SINKS + 1)
        self._let_go(task)

    def advance(self, work: Work) -> None:
        """The step's keys and values of a task are in its blocks now."""
        task = work.task
        task.computed += work.count
        size = self.pool.block_size
        while (len(task.serials) + 1) * size <= task.computed:
            start = len(task.serials) * size
            parent = task.serials[-1] if task.serials else None
            block = task.blocks[len(task.serials)]
            task.serials.append(self.pool.record(block, parent, task.visible(start, start + size), task.root))
        self._let_go_unseen(task)

    def remove(self, task: Task, *, forget: bool = False) -> None:
        """A task has ended, for whatever reason: its blocks are free."""
        if task in self.running:
            self.running.remove(task)
        elif task in self.waiting:
            self.waiting.remove(task)
        self._let_go(task, forget=forget)

    def split(self, task: Task, index: int, copy_block: Callable[[int, int], None]) -> Task:
        """A task that goes on from the same tokens: full blocks are shared, the last one is copied.

        :param task: with nothing left to compute, or waiting without blocks.
        :param index: its place among the texts of the request.
        """
        twin = replace(task, index=index, token_ids=list(task.token_ids), blocks=[], serials=[], computed=0, unseen=0)
        full, rest = divmod(task.computed, self.pool.block_size)
        block = self.pool.allocate() if rest else None
        if task not in self.running or (rest and block is None):
            self._line_up(twin)  # it computes its tokens again when there is room
            return twin
        for shared in task.blocks[task.unseen : full]:
            self.pool.hold(shared)
        twin.blocks, twin.serials, twin.computed = task.blocks[:full], task.serials[:full], task.computed
        twin.unseen = task.unseen
        if block is not None:
            copy_block(task.blocks[full], block)
            twin.blocks.append(block)
        self.running.append(twin)
        return twin

    def check(self) -> None:
        """Our own invariants."""
        tasks = (*self.running, *self.waiting)
        assert all(set(task.blocks[: task.unseen]) <= {SPARE_BLOCK} for task in tasks)
        self.pool.check([task.blocks[task.unseen :] for task in tasks])

    def _add_piece(self, plan: list[Work], task: Task, budget: int) -> int:
        """Plan as much of a task as the budget and the memory allow. :returns: the tokens planned."""
        count = task.left if self._whole_prompts and budget > 0 else min(task.left, budget)
        if count <= 0 or not self._make_room(task, count):
            return 0
        plan.append(Work(task, count))
        return count

    def _admit(self, task: Task) -> bool:
        """Whether the task's tokens fit the memory that is free now; what is known of them is taken from the cache."""
        task.blocks, task.serials = self.pool.match(task.visible(), task.root)
        task.computed = len(task.blocks) * self.pool.block_size
        self._let_go_unseen(task)
        most = min(self._blocks_for(task.length + 1), self.pool.size)  # all there is does for the last token of a text
        held = len(task.blocks) - task.unseen
        needed = min(most - len(task.blocks), self._blocks_for(self.longest_held(task.length + 1)) - held)
        if needed > self.pool.available:
            self._let_go(task)
            return False
        if not task.started:
            task.cached_tokens = task.computed
        return True

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.pool.block_size)

    def _waits_for_sibling(self, task: Task) -> bool:
        """The first text of a request computes the prompt, the others take it from the cache."""
        return any(other.stream is task.stream and not other.started for other in self.running)

    def _make_room(self, task: Task, count: int) -> bool:
        """Give the task blocks for its next tokens, if need be by stopping the latest comers, which will compute theirs again."""
        while len(task.blocks) < self._blocks_for(task.computed + count):
            block = self.pool.allocate()
            if block is not None:
                task.blocks.append(block)
                continue
            last = self._latest()
            self._preempt(last)
            if last is task:
                return False
        return True

    def _preempt(self, task: Task) -> None:
        self.running.remove(task)
        self._let_go(task)
        self._line_up(task)
        self.preemptions += 1

    def _latest(self) -> Task:
        return max(self.running, key=_turn)

    def _line_up(self, task: Task) -> None:
        insort(self.waiting, task, key=_turn)

    def _let_go(self, task: Task, *, forget: bool = False) -> None:
        self.pool.release(task.blocks[task.unseen :], forget=forget)
        task.blocks, task.serials, task.computed, task.unseen = [], [], 0, 0

    def _let_go_unseen(self, task: Task) -> None:
        """Where every layer has a window: give back the blocks that lie before all of them."""
        if not self._window:
            return
        first = max(task.computed - self._window + 1, 0) // self.pool.block_size
        if first > task.unseen:
            self.pool.release(task.blocks[task.unseen : first])
            task.blocks[task.unseen : first] = [SPARE_BLOCK] * (first - task.unseen)
            task.unseen = first


def _turn(task: Task) -> tuple[int, int]:
    """By which tasks are served."""
    return task.arrival, task.index
