"""Measure every side, one question each in turn, round after round: what disturbs the machine disturbs all of them."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from owngpt.bench.rival import Rival, SideFailedError
from owngpt.bench.side import SideSpec
from owngpt.bench.worker import FIRST_PROMPT
from owngpt.bench.workload import Load, Prompts, Sizes

PARTS = ("start", "prefill", "decode", "loads", "prefix", "arrival", "idle", "memory")
COMPILED_BATCHES = (1, 16)
"""Batches for which transformers is compiled: each takes it a minute."""
TUNE_TOKENS = 256
WARM_TOKENS = 16
"""Written to warm up."""

Values = dict[str, dict[str, list[float]]]
"""Side → figure → a value a round."""


@dataclass
class Race:
    """The sides that are compared with each other, and what is measured of them."""

    specs: Sequence[SideSpec]
    sizes: Sizes
    vocab_size: int
    rounds: int
    say: Callable[[str], None]
    tuned: bool = True
    """Whether each side may look for its fastest settings first."""
    infos: dict[str, Any] = field(default_factory=dict)
    """Side → what it says of itself."""
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._prompts = Prompts(self.vocab_size)
        self._first = self._prompts.take(min(FIRST_PROMPT, self.sizes.prefill))
        self._rivals: list[Rival] = []

    def run(self, parts: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each part and what was found, as soon as it is: of decode and loads a dictionary by batch or load."""
        if "start" in parts:
            yield "start", self._start()
        if set(parts) - {"start", "memory"}:
            with ExitStack() as stack:
                self._rivals = [rival for spec in self.specs if (rival := self._open(spec, stack)) is not None]
                for part in PARTS:
                    if part in parts and part not in ("start", "memory"):
                        yield part, getattr(self, f"_{part}")()
        if "memory" in parts:
            yield "memory", self._memory()

    def _open(self, spec: SideSpec, stack: ExitStack) -> Rival | None:
        self.say(f"{spec.name}: opening" + (" and tuning" if self.tuned else ""))
        try:
            rival = stack.enter_context(Rival(spec, self._first))
            tuning = rival.ask("tune", prompt=self._prompts.take(min(TUNE_TOKENS, self.sizes.prefill))) if self.tuned else {}
            self.infos[spec.name] = {**rival.ask("info"), "tuning": tuning}
        except SideFailedError as error:
            self._failed(error)
            return None
        return rival

    def _start(self) -> dict[str, Any]:
        """Processes from nothing to their first token: with caches as they are, and with none."""
        values: Values = {}
        for turn in range(self.rounds + 1):
            self._tell("start", turn)
            for spec in self.specs:
                try:
                    with Rival(spec, self._first) as rival:
                        warm = rival.start_seconds
                        if spec.name not in self.infos:
                            self.infos[spec.name] = rival.ask("info")
                    with tempfile.TemporaryDirectory() as empty:
                        nowhere = {"OWNGPT_CACHE": empty, "TORCHINDUCTOR_CACHE_DIR": empty, "VLLM_CACHE_ROOT": empty}
                        with Rival(spec, self._first, nowhere) as rival:
                            cold = rival.start_seconds
                except SideFailedError as error:
                    self._failed(error)
                    continue
                if turn:
                    _add(values, spec.name, {"warm": warm, "cold": cold})
        return _summed(values)

    def _prefill(self) -> dict[str, Any]:
        prompts = self._prompts.several(self.rounds + 1, self.sizes.prefill)
        return self._turns("prefill", "prefill", lambda turn: {"prompt": prompts[turn]}, lambda figures: {
            "tokens_per_second": self.sizes.prefill / figures["seconds"]
        })  # fmt: skip

    def _decode(self) -> dict[str, Any]:
        return {
            str(batch): self._write(f"decode at batch {batch}", Load(batch, self.sizes.decode_prompt, self.sizes.decode_new))
            for batch in self.sizes.batches
        }

    def _loads(self) -> dict[str, Any]:
        return {load.name: self._write(load.name, load) for load in self.sizes.loads}

    def _write(self, what: str, load: Load) -> dict[str, Any]:
        prompts = [self._prompts.several(load.requests, load.prompt) for _ in range(self.rounds + 1)]

        def figures(measured: dict[str, float]) -> dict[str, float]:
            output = {"output_per_second": load.requests * load.new / measured["seconds"]}
            return output | ({"tokens_per_second": measured["rate"]} if "rate" in measured else {})

        skip = [] if load.requests in COMPILED_BATCHES else [spec.name for spec in self.specs if spec.options.get("compiled")]
        new = [min(WARM_TOKENS, load.new), *[load.new] * self.rounds]
        return self._turns(what, "write", lambda turn: {"prompts": prompts[turn], "new": new[turn]}, figures, skip)

    def _prefix(self) -> dict[str, Any]:
        def arguments(turn: int) -> dict[str, Any]:
            shared = self._prompts.take(self.sizes.prefix)
            return {name: shared + self._prompts.take(self.sizes.prefix_tail) for name in ("cold", "seen")}

        prompts = [arguments(turn) for turn in range(self.rounds + 1)]
        return self._turns("a prefix seen before", "prefix", prompts.__getitem__, lambda figures: {
            **figures, "seen_to_cold": figures["seen"] / figures["cold"]
        })  # fmt: skip

    def _arrival(self) -> dict[str, Any]:
        sizes, rounds = self.sizes, range(self.rounds + 1)
        streams = [self._prompts.several(sizes.streams, sizes.decode_prompt) for _ in rounds]
        long = self._prompts.several(self.rounds + 1, sizes.arriving)
        return self._turns(
            "a long prompt arrives", "arrival",
            lambda turn: {"prompts": streams[turn], "new": sizes.stream_new, "arriving": long[turn]},
            lambda figures: {
                **figures,
                "p99_to_median": figures["p99"] / figures["median"],
                "p99_to_median_during": figures["p99"] / figures["median_during"],
            },
        )  # fmt: skip

    def _idle(self) -> dict[str, Any]:
        return self._turns("idle", "idle", lambda _: {"seconds": self.sizes.idle_seconds}, lambda figures: figures)

    def _memory(self) -> dict[str, Any]:
        """Each side in a fresh process that has done nothing else."""
        values: Values = {}
        load = self.sizes.resident
        for turn in range(max(1, self.rounds // 3)):
            self._tell("memory", turn + 1)
            for spec in self.specs:
                try:
                    with Rival(spec, self._first) as rival:
                        rival.ask("write", prompts=self._prompts.several(load.requests, load.prompt), new=load.new)
                        _add(values, spec.name, rival.ask("memory"))
                except SideFailedError as error:
                    self._failed(error)
        return _summed(values)

    def _turns(
        self,
        what: str,
        verb: str,
        arguments: Callable[[int], dict[str, Any]],
        figures: Callable[[dict[str, float]], dict[str, float]],
        skip: Sequence[str] = (),
    ) -> dict[str, Any]:
        """Ask all sides the same, ``rounds`` times after one to warm up, beginning with another one each time."""
        values: Values = {}
        failed = set(skip)
        for turn in range(self.rounds + 1):
            self._tell(what, turn)
            start = turn % max(1, len(self._rivals))
            for rival in (*self._rivals[start:], *self._rivals[:start]):
                if rival.spec.name in failed:
                    continue
                try:
                    measured = rival.ask(verb, **arguments(turn))
                except SideFailedError as error:
                    self._failed(error)
                    failed.add(rival.spec.name)
                    continue
                if measured is None:  # it has no such thing
                    failed.add(rival.spec.name)
                elif turn:
                    _add(values, rival.spec.name, figures(measured))
        return _summed(values)

    def _tell(self, what: str, turn: int) -> None:
        self.say(f"{what}: " + (f"round {turn} of {self.rounds}" if turn else "warming up"))

    def _failed(self, error: SideFailedError) -> None:
        self.failures.append(str(error))
        self.say(str(error))


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, range and every value."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def _add(values: Values, side: str, figures: dict[str, float]) -> None:
    for name, value in figures.items():
        values.setdefault(side, {}).setdefault(name, []).append(value)


def _summed(values: Values) -> dict[str, Any]:
    return {side: {name: summary(numbers) for name, numbers in figures.items()} for side, figures in values.items()}
