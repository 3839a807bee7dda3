"""What a person may decide about a fine-tuning; whatever is left open, the planner decides for this model, data and machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from owngpt.config.checks import above, at_least, one_of, within
from owngpt.errors import UsageError

Method = Literal["sft", "dpo", "ipo", "orpo", "classify"]
METHODS: tuple[Method, ...] = ("sft", "dpo", "ipo", "orpo", "classify")
Overflow = Literal["drop", "split", "error"]
OVERFLOWS: tuple[Overflow, ...] = ("drop", "split", "error")
PREFERENCE_METHODS = ("dpo", "ipo", "orpo")
DEFAULT_MINUTES = 10.0
DIALS = ("minutes", "steps", "epochs")
OF_ADAPTERS = ("rank", "alpha", "lora_dropout", "target_modules", "rslora", "dora", "int8_base", "strength")
"""What only an adapter has."""
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class FinetuneConfig:
    """The settings of `owngpt finetune` and `owngpt.finetune`. None leaves the choice to the planner. Checked when it is made."""

    method: Method | None = None
    """sft (answers to learn), dpo, ipo or orpo (the better one of two answers), classify (text to label); by default what
    the examples are for."""
    lora: bool | None = field(default=None, metadata={"negative": "--full"})
    """Train an adapter of a few million weights beside the model (the default), or with --full the model itself."""
    minutes: float | None = None
    """Wall-clock time of the whole run, report included; 10 when no dial is given. It may end sooner."""
    steps: int | None = None
    """Optimizer steps instead of a time."""
    epochs: float | None = None
    """Passes over the examples instead of a time."""
    rank: int | None = None
    """Rank of the adapter's matrices; 16 by default."""
    alpha: float | None = None
    """Scale of the adapter: its update counts alpha / rank; twice the rank by default."""
    lora_dropout: float | None = None
    """Probability of dropping an input of the adapter while training."""
    target_modules: str | None = None
    """Layers that get an adapter, by the names that PEFT uses, as in q_proj,v_proj; all linear ones by default."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), for high ranks (arXiv 2312.03732)."""
    dora: bool = False
    """Train the length of each output's weights apart from their direction (arXiv 2402.09353)."""
    int8_base: bool = False
    """Hold the frozen weights in 8 bits: half of the memory, a little less exact."""
    strength: float | None = None
    """Share of what was learned that the adapter keeps, such as 0.8: less forgets less. By default what suits held-out answers
    and general text best, and all of it for other methods than sft."""
    learning_rate: float | None = None
    """Peak learning rate."""
    weight_decay: float | None = None
    """Decoupled weight decay; none by default."""
    batch_size: int | None = None
    """Rows in one forward pass: examples, or packs of them."""
    accumulation: int | None = None
    """Forward passes for one update."""
    context_length: int | None = None
    """Longest row in tokens; by default what the longest example needs, up to 2048."""
    overflow: Overflow | None = None
    """What becomes of an example that is longer: drop it, split it, or end with an error (the default, drop with --skip-bad)."""
    pack: bool = field(default=True, metadata={"negative": "--no-pack"})
    """Put several short examples into one row, apart from each other."""
    beta: float | None = None
    """Of dpo, ipo and orpo: how closely the model stays to where it began (orpo: weight of the odds); 0.1 by default."""
    label_smoothing: float = 0.0
    """Of dpo: share of the preferences that are taken to be wrong."""
    label_words: bool = False
    """Of classify: the model learns to answer with the label itself, instead of a head over the labels: for few examples."""
    layout: str | None = None
    """What the rows are, where that is not plain: messages, question-answer, completion, alpaca, sharegpt, preference, label or
    text."""
    columns: str | None = None
    """Names of columns that are called otherwise, as in prompt=question,completion=answer."""
    skip_bad: bool = False
    """Leave rows out that cannot be used, and say how many, instead of ending with an error."""
    validation: str | None = None
    """A file of examples to hold out, instead of some of the others."""
    held_out: float | None = None
    """Share of the examples that is held out and never trained on; by default a tenth, at most 500."""
    system: str | None = None
    """A system message for conversations that have none."""
    replay: float | None = None
    """Share of general text that is mixed in against forgetting; by default 0.1 where answers are learned in a given time."""
    replay_from: str | None = None
    """Where that text is: a file, a folder or the name of a corpus; by default the model writes it itself."""
    patience: int | None = None
    """Looks at the held-out examples without a better one after which the run ends; 4 by default."""
    checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third slower."""
    seed: int = 0
    """Decides the adapter's first weights, the order of the examples and which are held out."""

    def __post_init__(self) -> None:
        self._check_dials()
        if self.method is not None:
            one_of("method", self.method, METHODS)
        if self.overflow is not None:
            one_of("overflow", self.overflow, OVERFLOWS)
        for name in ("minutes", "epochs", "learning_rate", "alpha", "beta"):
            if getattr(self, name) is not None:
                above(name, getattr(self, name), 0, example={"learning_rate": 0.0002, "beta": 0.1}.get(name, 10))
        for name in ("steps", "rank", "batch_size", "accumulation", "patience"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        if self.context_length is not None:
            at_least("context_length", self.context_length, 8)
        if self.weight_decay is not None:
            at_least("weight_decay", self.weight_decay, 0)
        if self.lora_dropout is not None:
            within("lora_dropout", self.lora_dropout, 0, 1, high_open=True)
        if self.strength is not None:
            within("strength", self.strength, 0, 1, low_open=True)
        within("label_smoothing", self.label_smoothing, 0, 0.5, high_open=True)
        if self.replay is not None:
            within("replay", self.replay, 0, 1, high_open=True)
        if self.held_out is not None:
            within("held_out", self.held_out, 0, 0.5)
        within("seed", self.seed, 0, MAX_SEED)
        self.column_names()
        self._check_company()

    def _check_dials(self) -> None:
        given = [name for name in DIALS if getattr(self, name) is not None]
        if len(given) > 1:
            names = " and ".join(f"--{name}" for name in given)
            raise UsageError(f"{names} are given together, but a run ends in one way; keep one of them")

    def _check_company(self) -> None:
        """Options that mean nothing beside others."""
        if self.lora is False:
            given = [name for name in OF_ADAPTERS if getattr(self, name) not in (None, False)]
            if given:
                option = f"--{given[0].replace('_', '-')}"
                raise UsageError(f"{option} is of adapters, and --full trains the model itself; leave one of them out")
        if self.replay_from is not None and self.replay == 0:
            raise UsageError("--replay-from names text to mix in, and --replay 0 says none of it; leave one of them out")
        if self.validation is not None and self.held_out is not None:
            raise UsageError("--validation and --held-out are given together; name the examples to hold out, or their share")
        if self.label_smoothing and self.method not in (None, "dpo"):
            raise UsageError(f"--label-smoothing is of dpo, but the method is {self.method}; leave it out")
        if self.label_words and self.method not in (None, "classify"):
            raise UsageError(f"--label-words is of classify, but the method is {self.method}; leave it out")
        if self.beta is not None and self.method not in (None, *PREFERENCE_METHODS):
            raise UsageError(f"--beta is of dpo, ipo and orpo, but the method is {self.method}; leave it out")

    def column_names(self) -> dict[str, str]:
        """:attr:`columns` taken apart: what we call a column → what the files call it.

        :raises UsageError: it is not ``name=column,…``.
        """
        names: dict[str, str] = {}
        for pair in (self.columns or "").split(","):
            ours, sign, theirs = (part.strip() for part in pair.partition("="))
            if not pair.strip():
                continue
            if not (sign and ours and theirs):
                raise UsageError(f"--columns has {pair!r}; it takes name=column pairs, as in prompt=question,completion=answer")
            names[ours] = theirs
        return names

    @property
    def target_names(self) -> tuple[str, ...]:
        """:attr:`target_modules` taken apart; empty for all."""
        return tuple(name.strip() for name in (self.target_modules or "").split(",") if name.strip())


def as_options(given: Mapping[str, object]) -> dict[str, object]:
    """Settings as Python spells them (a list of modules, a mapping of columns) in the words of :class:`FinetuneConfig`."""
    options = dict(given)
    if isinstance(columns := options.get("columns"), Mapping):
        options["columns"] = ",".join(f"{ours}={theirs}" for ours, theirs in columns.items())
    if isinstance(modules := options.get("target_modules"), list | tuple):
        options["target_modules"] = ",".join(map(str, modules))
    return options
