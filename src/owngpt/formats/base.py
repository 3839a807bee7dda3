"""The model that a run goes on from: its tokenizer and its layout stay, its weights are where training starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owngpt.formats.folder import CONFIG_FILE, load_config, load_family, load_generation_settings, load_model, open_model
from owngpt.formats.locate import locate
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

POSITIONS = "position_embedding.weight"
NOT_GENERATION = ("transformers_version", "_from_model_config")


@dataclass(frozen=True)
class BaseModel:
    """A model folder or GGUF file, and what its config says."""

    path: Path
    config: GPTConfig
    layout: str
    """model_type of its family."""

    @classmethod
    def of(cls, spec: str) -> BaseModel:
        """
        :param spec: see :func:`owngpt.formats.locate.locate`.
        :raises ModelFolderError: it is not there or cannot be opened.
        """
        path = locate(spec)
        return cls(path.resolve(), load_config(path), load_family(path).model_type)

    def tokenizer(self) -> Tokenizer:
        """
        :raises ModelFolderError: it has none, or one without a token between documents.
        """
        tokenizer = Tokenizer.load(self.path) if (self.path / CONFIG_FILE).is_file() else load_model(self.path)[1]
        _ = tokenizer.end_of_text_id
        return tokenizer

    def start(self, config: GPTConfig) -> GPT:
        """A copy of it, in float32, for the run's own context length and dropout."""
        source, _ = load_model(self.path, dtype=torch.float32)
        state = source.state_dict()
        if POSITIONS in state:
            state[POSITIONS] = state[POSITIONS][: config.context_length]
        with torch.device("meta"):
            model = GPT(config)
        model.to_empty(device="cpu").load_state_dict(state)
        return model

    def finish(self, weights: Mapping[str, Tensor]) -> GPT:
        """The trained weights in the original's shape: positions beyond the run's context are as they were."""
        model = self.start(self.config)
        state = {name: value.cpu() for name, value in weights.items()}
        if POSITIONS in state:
            rest = model.state_dict()[POSITIONS][len(state[POSITIONS]) :]
            state[POSITIONS] = torch.cat((state[POSITIONS].float(), rest))
        model.load_state_dict(state)
        return model

    def generation(self) -> dict[str, Any]:
        """Its generation_config.json."""
        is_folder = (self.path / CONFIG_FILE).is_file()
        settings = load_generation_settings(self.path) if is_folder else open_model(self.path, dtype=None)[2]
        return {name: value for name, value in settings.items() if name not in NOT_GENERATION}

    def repetition_penalty(self) -> float:
        """The penalty on repetition that it recommends; 1 is none."""
        value = self.generation().get("repetition_penalty")
        return float(value) if isinstance(value, int | float) and value > 0 and math.isfinite(value) else 1.0
