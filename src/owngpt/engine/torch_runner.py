"""Runs the model on plain PyTorch: any family, data type and device, exact in float32; on a CPU slower than packed kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from owngpt.engine.adapters import plain_bank, spans_of
from owngpt.engine.layout import SPARE_BLOCK, TILE, Part
from owngpt.formats.peft import Adapter
from owngpt.kernels.attention import attention_with_sinks
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT

BLOCK = 32


class TorchRunner:
    """See :class:`owngpt.engine.runner.Runner`. Keys and values lie as (layers, blocks * 32, G, D) on the model's device."""

    block_size = BLOCK

    def __init__(self, model: GPT, blocks: int) -> None:
        """:param blocks: of 32 tokens; block 0 is not for sequences."""
        config, weight = model.config, model.embedding.weight
        self.model, self.blocks = model.eval(), blocks
        shape = (config.layers, blocks * BLOCK, config.key_value_heads, config.head_size)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.adapters = plain_bank(model)

    @property
    def config(self) -> GPTConfig:
        """See :class:`owngpt.engine.runner.Runner`."""
        return self.model.config

    @property
    def grain(self) -> int:
        """See :class:`owngpt.engine.runner.Runner`."""
        return TILE

    def run(self, parts: Sequence[Part]) -> Tensor:
        """See :class:`owngpt.engine.runner.Runner`."""
        if self.config.turns_by_length:  # one rotation a call: no text may be turned by the length of another
            return torch.cat([self._run([part]) for part in parts])
        return self._run(parts)

    def _run(self, parts: Sequence[Part]) -> Tensor:
        device = self.keys.device
        token_ids = torch.tensor([[token_id for part in parts for token_id in part.token_ids]], device=device)
        counts = [len(part.token_ids) for part in parts]
        ends = torch.tensor(counts).cumsum(0).tolist()
        wanted = [end - back for part, end in zip(parts, ends, strict=True) for back in range(int(part.wants_logits), 0, -1)]
        spans = spans_of([part.adapter for part in parts], counts)
        with torch.inference_mode(), self.adapters.lock, self.adapters.use(spans):
            rows = torch.tensor(wanted or [0], dtype=torch.int64, device=device)
            hidden = self.model(token_ids, _Context(self, parts, None if spans else rows))[0]
            logits: Tensor = self.model.head((hidden[rows] if spans else hidden)[: len(wanted)]).cpu()
        return logits

    def load_adapter(self, name: str, adapter: Adapter) -> None:
        """See :class:`owngpt.engine.runner.Runner`."""
        self.adapters.load(name, adapter)

    def unload_adapter(self, name: str) -> None:
        """See :class:`owngpt.engine.runner.Runner`."""
        self.adapters.unload(name)

    def copy_block(self, source: int, target: int) -> None:
        """See :class:`owngpt.engine.runner.Runner`."""
        for memory in (self.keys, self.values):
            memory[:, target * BLOCK : (target + 1) * BLOCK] = memory[:, source * BLOCK : (source + 1) * BLOCK]

    def forget_block(self, block: int) -> None:
        """See :class:`owngpt.engine.runner.Runner`."""
        for memory in (self.keys, self.values):
            memory[:, block * BLOCK : (block + 1) * BLOCK] = 0


class _Context:
    """The attention context of one call: single tokens of all sequences attend side by side, pieces of prompts one by one."""

    def __init__(self, runner: TorchRunner, parts: Sequence[Part], wanted: Tensor | None) -> None:
        """:param wanted: tokens whose hidden states are read; None for all."""
        self._runner, self._wanted, self._last = runner, wanted, runner.config.layers - 1
        device = runner.keys.device
        rows = [_slots(part) for part in parts]
        starts = [0, *torch.tensor([len(part.token_ids) for part in parts]).cumsum(0).tolist()]
        self._new = torch.cat([slots[part.before :] for slots, part in zip(rows, parts, strict=True)]).to(device)
        self._positions = torch.cat([torch.arange(part.before, part.before + len(part.token_ids)) for part in parts])[None]
        single = [index for index, part in enumerate(parts) if len(part.token_ids) == 1]
        self._single = torch.tensor([starts[index] for index in single], device=device, dtype=torch.int64)
        self._lengths = torch.tensor([len(rows[index]) for index in single], device=device)
        self._table = torch.full((len(single), max((len(rows[index]) for index in single), default=0)), SPARE_BLOCK * BLOCK)
        for row, index in enumerate(single):
            self._table[row, : len(rows[index])] = rows[index]
        self._table = self._table.to(device)
        self._pieces = [
            (starts[index], starts[index + 1], part.before, rows[index].to(device))
            for index, part in enumerate(parts)
            if len(part.token_ids) > 1
        ]

    def positions(self, time: int) -> Tensor:
        """(1, N) int64"""
        assert time == self._positions.shape[1]
        return self._positions

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, window: int, scale: float, sinks: Tensor | None = None
    ) -> Tensor:
        """Remember key and value (1, N, G, D), attend with query (1, N, H, D) → (1, N, H, D)."""
        keys, values = self._runner.keys[layer], self._runner.values[layer]
        keys[self._new], values[self._new] = key[0], value[0]
        out = torch.empty_like(query[0])
        if len(self._single):
            index = torch.arange(self._table.shape[1], device=keys.device)
            visible = index[None] < self._lengths[:, None]
            if window:
                visible = visible & (index[None] >= self._lengths[:, None] - window)
            rows = query[0, self._single][:, None]  # (R, 1, H, D)
            mixed = _attend(rows, keys[self._table], values[self._table], visible[:, None, None], scale, sinks)
            out[self._single] = mixed[:, 0]
        for start, end, before, slots in self._pieces:
            index = torch.arange(len(slots), device=keys.device)
            distance = index[before:, None] - index[None]
            visible = (distance >= 0) & (distance < window) if window else distance >= 0
            mixed = _attend(query[:, start:end], keys[slots][None], values[slots][None], visible[None, None], scale, sinks)
            out[start:end] = mixed[0]
        return self.going_on(layer, out[None])

    def going_on(self, layer: int, x: Tensor) -> Tensor:
        """(1, N, …) → (1, W, …): in the last layer, the tokens whose hidden states are read."""
        return x if self._wanted is None or layer != self._last else x[:, self._wanted]


def _slots(part: Part) -> Tensor:
    """Where each token of a sequence lies, those of this call included: (before + count,) int64."""
    index = torch.arange(part.before + len(part.token_ids))
    return torch.tensor(list(part.blocks), dtype=torch.int64)[index // BLOCK] * BLOCK + index % BLOCK


def _attend(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor, scale: float, sinks: Tensor | None) -> Tensor:
    """query (R, T, H, D), keys and values (R, S, G, D), visible (R, 1, T, S) → (R, T, H, D)."""
    rows, time, heads, size = query.shape
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if sinks is not None:
        return attention_with_sinks(query, keys, values, sinks, visible=visible, scale=scale).reshape(rows, time, heads, size)
    mixed = scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=visible, scale=scale, enable_gqa=True)
    return mixed.transpose(1, 2)
