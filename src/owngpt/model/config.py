"""The shape of a GPT, as one flat record of plain values.

Legend of shape letters used in this room: B batch, T time (tokens), C hidden size, H query heads,
G key-value heads, D head size, F intermediate size, V vocabulary, L layers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from owngpt.errors import UsageError
from owngpt.model.rotary import RotaryScaling

Positions = Literal["rotary", "learned", "none"]
Norm = Literal["rmsnorm", "layernorm"]
NormPlacement = Literal["pre", "post", "sandwich"]
Activation = Literal["swiglu", "geglu", "swiglu_clamped", "gelu", "gelu_tanh", "relu", "relu2", "silu"]

GATED_ACTIVATIONS = ("swiglu", "geglu", "swiglu_clamped")


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
    rotary_scaling: RotaryScaling | None = None
    """How the rotary frequencies are stretched for contexts longer than those of the first training."""
    local_rotary_base: float | None = None
    """Base for the layers with an attention window, which no scaling touches (Gemma 3, arXiv 2503.19786); None: one base."""
    norm: Norm = "rmsnorm"
    norm_epsilon: float = 1e-6
    norm_placement: NormPlacement = "pre"
    """"post" is GPT-1: the norm follows the residual sum, and there is no final norm. "sandwich" is Gemma 3: each sub-layer
    has a norm before it and one over its output, ahead of the sum."""
    norm_weight_offset: float = 0.0
    """Every RMSNorm multiplies by offset + weight; 1 is Gemma, whose stored weights lie around 0."""
    parallel_residual: bool = False
    """Attention and feed-forward layer read the same sum: x + attention(norm x) + mlp(norm x) (GPT-J, arXiv 2204.06745)."""
    shared_norm: bool = False
    """With a parallel residual: one norm feeds both (GPT-J); otherwise each has its own (GPT-NeoX)."""
    activation: Activation = "swiglu"
    """"swiglu_clamped" is gpt-oss: min(gate, 7) * sigmoid(1.702 gate) * (clamp(up, -7, 7) + 1)."""
    experts: int = 0
    """Feed-forward layers to choose among for each token (arXiv 1701.06538); 0 is one dense layer. ``mlp_bias`` then also
    gives the router a bias."""
    experts_per_token: int = 0
    """How many experts each token goes through, weighted by a softmax over their router scores."""
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
    attention_sinks: bool = False
    """A learned logit of each query head joins the softmax's denominator (arXiv 2309.17453, gpt-oss)."""
    embedding_scale: float = 1.0
    """Factor on the token embeddings, rounded to their dtype (Gemma: sqrt(C))."""
    output_head_bias: bool = False
    """A bias on the logits (GPT-J)."""
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
        self._check_rotary()
        self._check_norms()
        self._check_experts()

    def _check_rotary(self) -> None:
        if self.positions == "rotary" and self.rotary_size % 2:
            raise UsageError(f"the rotated part of a head, {self.rotary_size}, must be even")
        for name in ("rotary_base", "local_rotary_base", "embedding_scale"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < 1e300:
                raise UsageError(f"{name} is {value}; it must be a number above 0")
        if self.positions != "rotary" and (self.rotary_scaling is not None or self.local_rotary_base is not None):
            raise UsageError(
                f"rotary_scaling and local_rotary_base need rotary positions, not {self.positions!r}; leave them out"
            )

    def _check_norms(self) -> None:
        if not self.norm_epsilon >= 0.0:
            raise UsageError(f"norm_epsilon is {self.norm_epsilon}; it must be at least 0")
        if self.shared_norm and not self.parallel_residual:
            raise UsageError("shared_norm is for a parallel residual; set parallel_residual too, or leave it out")
        if self.parallel_residual and self.norm_placement != "pre":
            raise UsageError(
                f"a parallel residual has its norms before the layers; norm_placement is {self.norm_placement!r}, use 'pre'"
            )
        if self.norm_weight_offset and self.norm != "rmsnorm":
            raise UsageError(f"norm_weight_offset {self.norm_weight_offset} is for rmsnorm, the norm is {self.norm!r}; use 0")

    def _check_experts(self) -> None:
        if self.experts < 0 or not 0 <= self.experts_per_token <= self.experts or (self.experts and not self.experts_per_token):
            raise UsageError(
                f"experts_per_token is {self.experts_per_token} of {self.experts} experts; it must be 1 to experts, or both 0"
            )
        if self.experts and not self.gated:
            raise UsageError(
                f"experts are gated layers, the activation is {self.activation!r}; use {' or '.join(GATED_ACTIVATIONS)}"
            )

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer multiplies two projections (GLU variants, arXiv 2002.05202)."""
        return self.activation in GATED_ACTIVATIONS

    @property
    def rotary_size(self) -> int:
        """Elements of each head that are rotated."""
        return int(self.head_size * self.rotary_fraction)

    @property
    def turns_by_length(self) -> bool:
        """Whether the rotation of a token depends on how long its text is (dynamic rotary scaling)."""
        return self.rotary_scaling is not None and self.rotary_scaling.kind == "dynamic"

    def window(self, layer: int) -> int:
        """Attention window of one layer in tokens, 0 for unlimited."""
        return self.attention_windows[layer] if self.attention_windows else 0

    @property
    def layer_norms(self) -> int:
        """Norms of width C in each layer."""
        return {"pre": 1 if self.shared_norm else 2, "post": 2, "sandwich": 4}[self.norm_placement]

    def parameter_count(self) -> int:
        """Number of trainable values, tied weights once, all experts."""
        C, norm = self.hidden_size, self.hidden_size * (2 if self.norm == "layernorm" else 1)
        embeddings = self.vocab_size * C * (1 if self.tie_embeddings else 2)
        embeddings += self.context_length * C if self.positions == "learned" else 0
        embeddings += self.vocab_size if self.output_head_bias else 0
        final_norm = 0 if self.norm_placement == "post" else norm
        layer = self._attention_parameters() + self._mlp_parameters() + self.layer_norms * norm
        return embeddings + self.layers * layer + final_norm

    def _attention_parameters(self) -> int:
        C, D = self.hidden_size, self.head_size
        projected = (self.heads + 2 * self.key_value_heads) * D
        count = C * projected + self.heads * D * C + (2 * D if self.query_key_norm else 0)
        count += (projected if self.query_key_value_bias else 0) + (C if self.attention_output_bias else 0)
        return count + (self.heads if self.attention_sinks else 0)

    def _mlp_parameters(self) -> int:
        C, F = self.hidden_size, self.intermediate_size
        up = 2 * F if self.gated else F
        layer = C * up + F * C + ((up + C) if self.mlp_bias else 0)
        if not self.experts:
            return layer
        return self.experts * (layer + C + (1 if self.mlp_bias else 0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> GPTConfig:
        """The inverse of :meth:`to_dict`; an unknown field is an error, an absent one has its default."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise UsageError(f"unknown model fields: {', '.join(sorted(unknown))}")
        values = dict(values)
        values["attention_windows"] = tuple(values.get("attention_windows", ()))
        if isinstance(values.get("rotary_scaling"), dict):
            values["rotary_scaling"] = RotaryScaling(**values["rotary_scaling"])
        return cls(**values)
