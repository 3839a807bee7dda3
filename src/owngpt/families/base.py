"""What a family is: how one layout of the Hugging Face world spells a :class:`GPTConfig` and its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from owngpt.errors import ModelFolderError
from owngpt.model.config import Activation, GPTConfig

COMMON_FIELDS = frozenset((
    "_commit_hash", "_name_or_path", "architectures", "attn_implementation", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "decoder_start_token_id", "diversity_penalty",
    "do_sample", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id", "forced_eos_token_id",
    "gradient_checkpointing", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder", "label2id",
    "length_penalty", "max_length", "min_length", "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_labels", "num_return_sequences", "output_attentions", "output_hidden_states", "output_scores", "pad_token_id",
    "prefix", "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers.js_config", "transformers_version",
    "typical_p", "use_bfloat16", "use_cache", "_attn_implementation_autoset", "unsloth_fixed", "unsloth_version",
))  # fmt: skip
"""Fields of any config.json that say nothing about what the model computes from its weights."""

ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
"""Their name → ours, for layers that are not gated."""
ACTIVATION_NAMES: Mapping[str, str] = {
    "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "relu2": "relu2", "silu": "silu",
}  # fmt: skip
"""Ours → the name that we write."""

LONGEST_CONTEXT = 1 << 24
MOST_LAYERS = 10_000


Order = Callable[[int], Tensor]
"""From the size of a dimension to the permutation (size,) int64 with ours[i] = theirs[order[i]] along it."""


@dataclass(frozen=True)
class Part:
    """One of their tensors as a part of one of ours."""

    name: str
    rows: int
    """How many of ours it makes along the first dimension."""
    scale: float = 1.0
    """Theirs = ours * scale."""
    transposed: bool = False
    """Theirs has the last two dimensions the other way round: (in, out) as GPT-1's and GPT-2's Conv1D, ours is (out, in)."""
    order: Order | None = None
    """How ours is arranged, where theirs is arranged otherwise. A permutation is exact: the round trip keeps every bit."""
    dimension: int = 0
    """The dimension of ours that ``order`` permutes; 1 for the rows of a stack of experts, (E, out, in) or (E, out)."""


@dataclass(frozen=True)
class TensorMap:
    """Which of their tensors, joined along the first dimension, make one of ours."""

    ours: str
    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    """Shape of ours."""

    def our_shape(self, part: Part) -> tuple[int, ...]:
        """Shape of what one of their tensors makes of ours."""
        return (part.rows, *self.shape[1:])

    def their_shape(self, part: Part) -> tuple[int, ...]:
        """Shape of one of their tensors."""
        shape = self.our_shape(part)
        return (*shape[:-2], shape[-1], shape[-2]) if part.transposed and len(shape) > 1 else shape

    def to_ours(self, part: Part, theirs: Tensor) -> Tensor:
        """What one of their tensors makes of ours; a view of it where nothing has to be computed."""
        tensor = theirs.transpose(-1, -2) if part.transposed and theirs.dim() > 1 else theirs
        tensor = tensor if part.scale == 1.0 else tensor / part.scale
        if part.order is None:
            return tensor
        return tensor.index_select(part.dimension, part.order(tensor.shape[part.dimension]))

    def to_theirs(self, part: Part, ours: Tensor) -> Tensor:
        """The inverse of :meth:`to_ours`; scaled values are float32."""
        if part.order is not None:
            order = part.order(ours.shape[part.dimension])
            ours = ours.index_select(part.dimension, torch.argsort(order).to(ours.device))
        tensor = ours if part.scale == 1.0 else ours.float() * part.scale
        return tensor.transpose(-1, -2) if part.transposed and tensor.dim() > 1 else tensor


class Family(Protocol):
    """One layout: a config.json with a ``model_type``, and names for the tensors."""

    model_type: str
    architecture: str
    """Name of the class in transformers that opens it."""
    prefix: str
    """What older files leave out at the start of their tensor names."""
    derived: str
    """Regular expression of stored tensors that follow from the config (masks, frequencies) and are not read."""

    def to_config(self, values: Mapping[str, Any]) -> GPTConfig:
        """Read a config.json.

        :raises ModelFolderError: a field is missing, wrong or asks for something that is not implemented.
        """
        ...

    def from_config(self, config: GPTConfig) -> dict[str, Any]:
        """The config.json of a configuration that :meth:`misfits` has nothing against."""
        ...

    def tensors(self, config: GPTConfig) -> list[TensorMap]:
        """Every tensor of the model, a tied head once."""
        ...

    def misfits(self, config: GPTConfig) -> list[str]:
        """What of the configuration this layout cannot say exactly; empty when it fits. Dropout, which only training
        knows, does not count."""
        ...


class ConfigReader:
    """Reads a config.json field by field and refuses what nobody read: nothing is silently ignored."""

    def __init__(self, values: Mapping[str, Any], model_type: str) -> None:
        self._values, self.model_type = values, model_type
        self._seen: set[str] = set(COMMON_FIELDS)

    def has(self, name: str) -> bool:
        """Whether the field is there, even as null, which for some fields is not what an absent one means."""
        return name in self._values

    def take(self, name: str, default: Any = None) -> Any:
        """The field's value, or the default where it is absent or null."""
        self._seen.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1; without a default it must be there."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, value, "a whole number of at least 1")
        return value

    def layers(self, name: str) -> int:
        """Number of layers, bounded, since a config may claim any."""
        value = self.integer(name)
        if value > MOST_LAYERS:
            raise self.error(name, value, f"at most {MOST_LAYERS}")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
            raise self.error(name, value, "a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def expect(self, name: str, *allowed: Any) -> None:
        """Refuse any value but these; an absent field is as good as the first."""
        value = self.take(name, allowed[0])
        if value not in allowed:
            raise self.error(name, value, " or ".join(repr(choice) for choice in allowed))

    def choice(self, name: str, default: str, table: Mapping[str, Any]) -> Any:
        """What the field's value stands for in a table."""
        value = self.take(name, default)
        if not isinstance(value, str) or value not in table:
            raise self.error(name, value, "one of " + ", ".join(table))
        return table[value]

    def context_length(self, name: str, default: int) -> int:
        """Number of positions, bounded, since tables of that length are built."""
        value = self.integer(name, default)
        if value > LONGEST_CONTEXT:
            raise self.error(name, value, f"at most {LONGEST_CONTEXT}")
        return value

    def ignore(self, *names: str) -> None:
        """Fields that are known to change nothing."""
        self._seen.update(names)

    def finish(self) -> None:
        """Refuse the fields that were not read."""
        unknown = sorted(name for name in set(self._values) - self._seen if self._values[name] is not None)
        if unknown:
            raise ModelFolderError(
                f"config.json of this {self.model_type} model has fields that are not implemented: {', '.join(unknown)}; "
                "remove them only if you know that they change nothing"
            )

    def error(self, name: str, value: Any, wanted: str) -> ModelFolderError:
        """The error for a field that is wrong."""
        found = "is missing" if value is None else f"is {value!r}"
        return ModelFolderError(f"config.json of this {self.model_type} model: {name} {found}; it must be {wanted}")


def one(
    ours: str, theirs: str, *shape: int, transposed: bool = False, order: Order | None = None, dimension: int = 0
) -> TensorMap:
    """A tensor that both sides store whole; the rest as in :class:`Part`."""
    return TensorMap(ours, (Part(theirs, shape[0], transposed=transposed, order=order, dimension=dimension),), shape)


def differences(config: GPTConfig, **wanted: Any) -> list[str]:
    """Which fields of a configuration are not as wanted, in words."""
    return [
        f"{name} is {getattr(config, name)!r}, not {value!r}" for name, value in wanted.items() if getattr(config, name) != value
    ]


def uniform_window(config: GPTConfig) -> int | None:
    """The one window that some layers have; 0 when none has any, None when they differ."""
    windows = {window for window in config.attention_windows if window}
    if len(windows) > 1:
        return None
    return windows.pop() if windows else 0
