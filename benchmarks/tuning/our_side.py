"""OwnGPT's own step, as `owngpt finetune` runs it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from owngpt import __version__
from owngpt.data.batches import Batch
from owngpt.finetune.adapter.lora import LoraSettings, attach
from owngpt.finetune.examples.example import Chat, Origin
from owngpt.finetune.objectives.preference import Preference, PreferenceSettings, answers
from owngpt.finetune.objectives.preference_batch import PreferenceBatch
from owngpt.finetune.objectives.supervised import Supervised
from owngpt.finetune.planner import units_at_once
from owngpt.finetune.rendering.renderer import Renderer
from owngpt.finetune.sequences.batches import make_batch
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.formats.folder import load_family, load_model
from owngpt.formats.weights import export_state
from owngpt.train.optimizer import OptimizerSettings
from owngpt.train.step import TrainModule
from tuning.rows import Rows
from tuning.side import TARGETS, Chats, TuneSpec, random_rows


class OwnGPT:
    """A step: forward, backward, clip, update."""

    def __init__(self, spec: TuneSpec) -> None:
        torch.set_num_threads(spec.threads)
        self.spec = spec
        dtype = getattr(torch, spec.dtype)
        self.family = load_family(spec.path)
        self.model, self.tokenizer = load_model(spec.path, dtype=dtype)
        if spec.rank:
            attach(self.model, LoraSettings(rank=spec.rank, alpha=spec.alpha, targets=TARGETS), self.family, seed=0)
        rate, decay = spec.learning_rate, spec.weight_decay
        settings = OptimizerSettings(
            kind="adamw", matrix_rate=rate, embedding_rate=rate, head_rate=rate, vector_rate=rate, matrix_decay=decay,
            embedding_decay=decay, betas=spec.betas, epsilon=spec.epsilon,
        )  # fmt: skip
        self.module = TrainModule(
            self.model, settings, dtype=None if spec.rank else dtype, clip=spec.clip, objective=Supervised()
        )

    def info(self) -> dict[str, Any]:
        """version, settings in words, trainable parameters."""
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return {"version": f"OwnGPT {__version__}", "settings": self.spec.dtype, "trainable": trained}

    def step(self, seed: int) -> dict[str, float]:
        """Learn from random rows: seconds and the loss before the update."""
        rows = torch.from_numpy(random_rows(self.spec, seed))
        began = time.perf_counter()
        # As many rows a pass as the planner of `owngpt finetune` takes of this length.
        passes = rows.split(units_at_once(self.model.config, self.spec.context_length))
        loss = self.module.run([Batch(each[:, :-1], each[:, 1:], None, 0.0) for each in passes], 1.0).loss
        return {"loss": loss, "seconds": time.perf_counter() - began}

    def encode(self, chats: Chats) -> list[tuple[list[int], list[bool]]]:
        """Token ids of each chat, and which of them are learned."""
        return [(each.token_ids.tolist(), each.learned.tolist()) for each in self._encoded(chats)]

    def _encoded(self, chats: Chats) -> list[Encoded]:
        renderer, origin = Renderer(self.tokenizer), Origin("benchmark", 1)
        return [sequence for chat in chats for sequence in renderer.encode(Chat(tuple(chat), origin))]

    def learn(self, path: str) -> list[float]:
        """The loss of each step, before its update, on the batches of a file (see :mod:`tuning.rows`)."""
        return [self.module.run([_batch(rows)], 1.0).loss for rows in Rows.read(path)]

    def preference(self, reference: str, pairs: list[list[list[dict[str, str]]]], beta: float, output: str) -> dict[str, Any]:
        """DPO's loss, accuracy and margin on pairs of one batch, and the gradients, into a file, by Hugging Face's names.

        :param reference: folder of the model before training.
        """
        encoded = self.encode([answer for pair in pairs for answer in pair])
        rows = Rows.of(encoded)
        sequences = torch.arange(len(encoded), dtype=torch.int32)[:, None].expand(rows.inputs.shape)
        plain = _batch(rows)
        batch = PreferenceBatch(plain.inputs, plain.targets, None, 0.0, sequences, len(pairs))
        with torch.no_grad():
            before = answers(load_model(reference, dtype=self.model.embedding.weight.dtype)[0], batch).log_probabilities
        objective = Preference(PreferenceSettings(loss="dpo", beta=beta))
        loss = objective.loss(self.model, replace(batch, reference=before), 1 / len(pairs))
        loss.backward()
        self._write_gradients(output)
        return {"loss": float(loss.detach()), **objective.metrics(), "encoded": encoded}

    def sameness(self, chats: Chats) -> dict[str, dict[str, float]]:
        """Gradients of one step on chats: pass by pass, and packed into one row, against all at once in rows of their own.

        :returns: for both, the largest difference of any gradient, and the length of the difference as a share of the gradient's.
        """
        encoded = self._encoded(chats)
        together = self._gradients([make_batch([[each] for each in encoded], 0.0, packed=False)])
        passes = self._gradients([make_batch([[each]], 0.0, packed=False) for each in encoded])
        packed = self._gradients([make_batch([encoded], 0.0)])
        return {"passes": _apart(passes, together), "packed": _apart(packed, together)}

    def _gradients(self, batches: list[Batch]) -> dict[str, Tensor]:
        objective = Supervised()
        scale = 1 / sum(objective.count(batch) for batch in batches)
        self.model.zero_grad(set_to_none=True)
        for batch in batches:
            objective.loss(self.model, batch, scale).backward()
        return {name: each.grad.clone() for name, each in self.model.named_parameters() if each.grad is not None}

    def _write_gradients(self, output: str) -> None:
        found = {name: each.grad for name, each in self.model.named_parameters() if each.grad is not None}
        save_file(export_state(found, self.family, self.model.config, torch.float32), output)

    def process_id(self) -> int:
        """The process that computes."""
        return os.getpid()

    def close(self) -> None:
        """Nothing is open."""


def _batch(rows: Rows) -> Batch:
    return Batch(torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets), None, 0.0)


def _apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    assert set(found) == set(expected)
    differences = [found[name].double() - expected[name].double() for name in expected]
    length = torch.stack([each.norm() for each in differences]).norm()
    whole = torch.stack([each.double().norm() for each in expected.values()]).norm()
    return {"largest": max(float(each.abs().max()) for each in differences), "share": float(length / whole)}
