"""llama.cpp itself, asked over its own server on this machine: the wheel `xllamacpp` holds it prebuilt, unchanged."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xllamacpp


class LlamaCpp:
    """A model opened by llama.cpp."""

    def __init__(self, path: Path, *, context_length: int = 512, threads: int = 1) -> None:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(path)
        parameters.n_ctx = context_length
        parameters.cpuparams.n_threads = threads
        parameters.n_parallel = 1
        parameters.port = 0
        parameters.warmup = False
        self._server = xllamacpp.Server(parameters)

    def tokens(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text, nothing added around it."""
        ids: list[int] = self._post("tokenize", content=text, add_special=False, parse_special=special)["tokens"]
        return ids

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The ids that follow, most probable first."""
        asked = {"prompt": list(ids), "n_predict": count, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        found: list[int] = self._post("completion", **asked)["tokens"]
        return found

    def log_probabilities(self, ids: Sequence[int]) -> list[float]:
        """Natural logarithm of the probability of each id but the first, given those before it.

        The server tells it for tokens that it chose, from the logits before any bias; a bias makes it choose these.
        """
        found = []
        for index in range(1, len(ids)):
            asked = {"prompt": list(ids[:index]), "n_predict": 1, "temperature": 0, "n_probs": 1, "cache_prompt": True}
            answer = self._post("completion", **asked, logit_bias=[[ids[index], 1e5]])["completion_probabilities"][0]
            assert answer["id"] == ids[index]
            found.append(float(answer["logprob"]))
        return found

    def _post(self, verb: str, **body: Any) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{self._server.listening_address}/{verb}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            result: dict[str, Any] = json.load(answer)
        return result
