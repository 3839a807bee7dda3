"""vLLM's CPU backend in bfloat16, through its offline interface; used only where it is installed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from owngpt.bench.side import Figures, Prompt, SideSpec

GIGABYTES = 4
"""Of cache."""


class VLLM:
    """See :class:`owngpt.bench.side.Side`."""

    def __init__(self, spec: SideSpec) -> None:
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(GIGABYTES))
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # memory and idle time are then this process's own
        os.environ.setdefault("OMP_NUM_THREADS", str(spec.threads))
        from vllm import LLM

        self.model = LLM(
            model=spec.path, dtype=spec.weights, max_model_len=spec.longest, max_num_seqs=spec.most_requests,
            enable_prefix_caching=True, disable_log_stats=True,
        )  # fmt: skip

    def info(self) -> dict[str, Any]:
        """See :class:`owngpt.bench.side.Side`."""
        import vllm

        return {"version": vllm.__version__, "settings": "continuous batching, prefix caching, compiled", "weight_bytes": None}

    def tune(self, prompt: Prompt) -> dict[str, Any]:
        """It has chosen by itself."""
        return {}

    def prefill(self, prompt: Prompt) -> Figures:
        """See :class:`owngpt.bench.side.Side`."""
        return {"seconds": self._seconds([prompt], 1)}

    def write(self, prompts: Sequence[Prompt], new: int) -> Figures:
        """See :class:`owngpt.bench.side.Side`. It tells no times of tokens here: the rate is of the tokens after the first one,
        whose time is that of reading prompts of the same lengths."""
        others = [[(token_id + 1) for token_id in prompt] for prompt in prompts]
        reading, seconds = self._seconds(others, 1), self._seconds(prompts, new)
        return {"seconds": seconds, "rate": len(prompts) * (new - 1) / max(1e-9, seconds - reading)}

    def prefix(self, cold: Prompt, seen: Prompt) -> Figures:
        """See :class:`owngpt.bench.side.Side`."""
        return {"cold": self._seconds([cold], 1), "seen": self._seconds([seen], 1)}

    def arrival(self, prompts: Sequence[Prompt], new: int, arriving: Prompt) -> None:
        """Its offline interface takes nobody in while it writes."""

    def process_id(self) -> int:
        """See :class:`owngpt.bench.side.Side`."""
        return os.getpid()

    def close(self) -> None:
        """Its engine ends with the process."""

    def _seconds(self, prompts: Sequence[Prompt], new: int) -> float:
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        began = time.perf_counter()
        self.model.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling, use_tqdm=False)
        return time.perf_counter() - began
