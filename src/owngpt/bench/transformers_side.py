"""transformers in bfloat16: static batches with its own `generate`, eager or compiled over a static cache."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, CompileConfig

from owngpt.bench.side import Figures, Prompt, SideSpec


class Transformers:
    """See :class:`owngpt.bench.side.Side`. ``options["compiled"]`` compiles decoding."""

    def __init__(self, spec: SideSpec) -> None:
        torch.set_num_threads(spec.threads)
        transformers.logging.set_verbosity_error()
        self.compiled = bool(spec.options.get("compiled"))
        self.dtype = spec.weights
        self.model = AutoModelForCausalLM.from_pretrained(spec.path, dtype=getattr(torch, spec.weights)).eval()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self._extra: dict[str, Any] = {}
        self._known: set[tuple[int, int]] = set()
        if self.compiled:
            self._cache = tempfile.TemporaryDirectory(prefix="owngpt-bench-")  # a broken file in the common one would stop it
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = self._cache.name
            compiling = CompileConfig(mode="default", dynamic=False)
            vars(compiling)["_compile_all_devices"] = True  # without it, transformers compiles on accelerators only
            self._extra = {"cache_implementation": "static", "compile_config": compiling}

    def info(self) -> dict[str, Any]:
        """See :class:`owngpt.bench.side.Side`."""
        total = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        table, head = self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight
        way = "torch.compile over a static cache" if self.compiled else f"{self.model.config._attn_implementation} attention"
        return {
            "version": transformers.__version__,
            "settings": f"{self.dtype}, {way}, static batch",
            "weight_bytes": total if table is head else total - table.numel() * table.element_size(),
        }

    def tune(self, prompt: Prompt) -> dict[str, Any]:
        """Take the faster of its two kinds of attention that need nothing else installed."""
        if self.compiled:
            return {}
        seconds = {}
        for kind in ("eager", "sdpa"):
            self.model.set_attn_implementation(kind)
            for _ in range(2):
                seconds[kind] = self.prefill(prompt)["seconds"] + self.write([prompt[:32]], 32)["seconds"]
        best = min(seconds, key=seconds.__getitem__)
        self.model.set_attn_implementation(best)
        return {"attention": seconds}

    def prefill(self, prompt: Prompt) -> Figures:
        """See :class:`owngpt.bench.side.Side`."""
        token_ids = torch.tensor([list(prompt)])
        began = time.perf_counter()
        with torch.inference_mode():
            int(self.model(token_ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())
        return {"seconds": time.perf_counter() - began}

    def write(self, prompts: Sequence[Prompt], new: int) -> Figures:
        """See :class:`owngpt.bench.side.Side`."""
        times: list[float] = []

        def note(token_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            """Asked after each token whether to stop."""
            times.append(time.perf_counter())
            return torch.zeros(len(token_ids), dtype=torch.bool)

        token_ids = torch.tensor([list(prompt) for prompt in prompts])
        shape = (len(prompts), len(prompts[0]) + new)
        if self.compiled and shape not in self._known:  # a static cache of another size is compiled again
            self._known.add(shape)
            self.write(prompts, new)
        began = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(
                token_ids, attention_mask=torch.ones_like(token_ids), max_new_tokens=new, do_sample=False,
                stopping_criteria=[note], **self._extra,
            )  # fmt: skip
        seconds = time.perf_counter() - began
        assert len(times) == new, "transformers stopped early"
        return {"seconds": seconds, "rate": len(prompts) * (new - 1) / (times[-1] - times[0])}

    def prefix(self, cold: Prompt, seen: Prompt) -> None:
        """`generate` shares nothing between calls by itself."""

    def arrival(self, prompts: Sequence[Prompt], new: int, arriving: Prompt) -> None:
        """`generate` takes nobody in while it writes."""

    def process_id(self) -> int:
        """See :class:`owngpt.bench.side.Side`."""
        return os.getpid()

    def close(self) -> None:
        """Nothing is open."""
