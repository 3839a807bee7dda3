"""The shape of a GPT, as one flat record of plain values.

Legend of shape letters used in this room: B batch, T time (tokens), C hidden size, H query heads,
G key-value heads, D head size, F intermediate size, V vocabulary, L layers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from owngpt.errors import UsageError

Positions = Literal["rotary", "learned", "none"]
Norm = Literal["rmsnorm", "layernorm"]
NormPlacement = Literal["pre", "post"]
Activation = Literal["swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2", "silu"]

GATED_ACTIVATIONS = ("swiglu", "geglu")


@dataclass(frozen=True)
class GPTConfig:
    """Every architectural choice of a decoder-only Transformer, explicit; behaviour never hangs on a model's name.

    The defaults are the native layout, which is Qwen3's (arXiv 2505.09388): RMSNorm before each sub-layer, rotary
    positions, grouped-query attention with QK-norm, SwiGLU, no biases.
    """

    vocab_size: int
    """V: rows of the embedding, at least the number of tokens of the tokenizer."""
    context_length: int
    """Longest sequence, in tokens, the model was made for."""
    hidden_size: int
    """C"""
    layers: int
    """L"""
    heads: int
    """H: query heads."""
    key_value_heads: int
    """G: key and value heads; H % G == 0 (arXiv 2305.13245). G == H is multi-head attention (arXiv 1706.03762)."""
    head_size: int
    """D"""
    intermediate_size: int
    """F: width of the feed-forward layer."""
    positions: Positions = "rotary"
    rotary_base: float = 10000.0
    rotary_fraction: float = 1.0
    """Leading share of each head that is rotated (GPT-J and Pythia rotate a part)."""
    norm: Norm = "rmsnorm"
    norm_epsilon: float = 1e-6
    norm_placement: NormPlacement = "pre"
    """"post" is GPT-1: the norm follows the residual sum, and there is no final norm."""
    activation: Activation = "swiglu"
    query_key_value_bias: bool = False
    attention_output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = True
    """RMSNorm over D of each query and key head before rotation."""
    attention_windows: tuple[int, ...] = ()
    """Per layer: how many latest tokens (itself included) a token may attend to, 0 for all. () means 0 everywhere.
    GPT-3 and GPT-Neo alternate dense and local layers."""
    attention_scale: float | None = None
    """Factor on query-key products; None is the paper's 1/sqrt(D)."""
    tie_embeddings: bool = True
    dropout: float = 0.0
    """Probability, on the embeddings and on each sub-layer's output, while training only."""
    attention_dropout: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        for name in (
            "vocab_size", "context_length", "hidden_size", "layers", "heads", "key_value_heads", "head_size", "intermediate_size",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.heads % self.key_value_heads:
            raise UsageError(f"heads {self.heads} is not a multiple of key_value_heads {self.key_value_heads}")
        if self.attention_windows and len(self.attention_windows) != self.layers:
            raise UsageError(f"attention_windows names {len(self.attention_windows)} layers, the model has {self.layers}")
        if not 0.0 <= self.dropout < 1.0 or not 0.0 <= self.attention_dropout < 1.0:
            raise UsageError(f"dropout {self.dropout} / attention_dropout {self.attention_dropout} must be in [0, 1)")
        if self.positions == "rotary" and self.rotary_size % 2:
            raise UsageError(f"the rotated part of a head, {self.rotary_size}, must be even")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer multiplies two projections (GLU variants, arXiv 2002.05202)."""
        return self.activation in GATED_ACTIVATIONS

    @property
    def rotary_size(self) -> int:
        """Elements of each head that are rotated."""
        return int(self.head_size * self.rotary_fraction)

    def window(self, layer: int) -> int:
        """Attention window of one layer in tokens, 0 for unlimited."""
        return self.attention_windows[layer] if self.attention_windows else 0

    def parameter_count(self) -> int:
        """Number of trainable values, tied weights once."""
        C, F, D = self.hidden_size, self.intermediate_size, self.head_size
        qkv = (self.heads + 2 * self.key_value_heads) * D
        attention = C * qkv + self.heads * D * C + (2 * D if self.query_key_norm else 0)
        attention += (qkv if self.query_key_value_bias else 0) + (C if self.attention_output_bias else 0)
        up = 2 * F if self.gated else F
        mlp = C * up + F * C + ((up + C) if self.mlp_bias else 0)
        norm = C * (2 if self.norm == "layernorm" else 1)
        embeddings = self.vocab_size * C * (1 if self.tie_embeddings else 2)
        embeddings += self.context_length * C if self.positions == "learned" else 0
        final_norm = norm if self.norm_placement == "pre" else 0
        return embeddings + self.layers * (attention + mlp + 2 * norm) + final_norm

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTConfig:
        """The inverse of :meth:`to_dict`; an unknown field is an error."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise UsageError(f"unknown model fields: {', '.join(sorted(unknown))}")
        values = dict(values)
        values["attention_windows"] = tuple(values.get("attention_windows", ()))
        return cls(**values)
