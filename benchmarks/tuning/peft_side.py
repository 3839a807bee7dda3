"""transformers and PEFT as people use them: a model in bfloat16 or float32, LoRA on its projections, fused AdamW.

``options``: ``attention`` (eager or sdpa), ``adapters`` (float32, PEFT's default, or bfloat16), ``autocast`` and ``compiled``.
"""

from __future__ import annotations

import os
import time
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuning import peft_tuning
from tuning.rows import Rows
from tuning.side import TARGETS, Chats, TuneSpec, random_rows


class TransformersPEFT:
    """A step: forward with transformers' own loss, backward, clip, update."""

    def __init__(self, spec: TuneSpec) -> None:
        torch.set_num_threads(spec.threads)
        transformers.logging.set_verbosity_error()
        self.spec = spec
        attention = spec.options.get("attention", "sdpa")
        model = AutoModelForCausalLM.from_pretrained(spec.path, dtype=getattr(torch, spec.dtype), attn_implementation=attention)
        self.model: Any = adapted(model, spec) if spec.rank else model
        self.model.train()
        self.model.config.use_cache = False
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # As transformers' Trainer has it: norms and biases do not decay.
        groups = [
            {"params": [each for each in self.parameters if each.dim() > 1], "weight_decay": spec.weight_decay},
            {"params": [each for each in self.parameters if each.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=spec.learning_rate, betas=tuple(spec.betas), eps=spec.epsilon, fused=True
        )  # fmt: skip
        self.network: Any = torch.compile(self.model) if spec.options.get("compiled") else self.model

    def info(self) -> dict[str, Any]:
        """version, settings in words, trainable parameters."""
        options = {"attention": "sdpa", "adapters": "float32", **self.spec.options}
        return {
            "version": f"transformers {transformers.__version__}, PEFT {peft.__version__}",
            "settings": ", ".join([self.spec.dtype, *(f"{name} {value}" for name, value in options.items())]),
            "trainable": sum(parameter.numel() for parameter in self.parameters),
        }

    def step(self, seed: int) -> dict[str, float]:
        """Learn from random rows: seconds and the loss before the update."""
        rows = torch.from_numpy(random_rows(self.spec, seed))
        began = time.perf_counter()
        loss = self._update(rows[:, :-1], rows[:, 1:].contiguous())
        return {"loss": loss, "seconds": time.perf_counter() - began}

    def encode(self, chats: Chats) -> list[tuple[list[int], list[bool]]]:
        """Token ids of each chat, and which of them are learned: the answer that ends it, and its end-of-turn token."""
        tokenizer = AutoTokenizer.from_pretrained(self.spec.path)
        return [peft_tuning.answered(tokenizer, chat) for chat in chats]

    def learn(self, path: str) -> list[float]:
        """The loss of each step, before its update, on the batches of a file (see :mod:`tuning.rows`)."""
        return [self._update(torch.from_numpy(rows.inputs), torch.from_numpy(rows.targets)) for rows in Rows.read(path)]

    def _update(self, inputs: Tensor, targets: Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(self.spec.options.get("autocast"))):
            # transformers shifts labels itself, and would leave a row's last token without a target; these are shifted already.
            loss = self.network(input_ids=inputs, labels=inputs, shift_labels=targets).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.spec.clip)
        self.optimizer.step()
        return float(loss.detach())

    def preference(self, reference: str, pairs: list[Chats], beta: float, output: str) -> dict[str, Any]:
        """DPO (arXiv 2305.18290, equation 7) written down once more: loss, accuracy, margin, and the gradients into a file."""
        tokenizer = AutoTokenizer.from_pretrained(self.spec.path)
        encoded = [peft_tuning.answered(tokenizer, chat) for pair in pairs for chat in pair]
        rows = Rows.of(encoded)
        # transformers leaves out what the padding token's own embedding learns, and SmolLM2 pads with the token that ends a turn:
        # each such token that is read has a gradient by the formula. (Rows are filled up with tokens that nothing attends to.)
        self.model.get_input_embeddings().padding_idx = None
        with torch.no_grad():
            before = _log_probabilities(AutoModelForCausalLM.from_pretrained(reference, dtype=self.model.dtype), rows)
        after = _log_probabilities(self.model, rows)
        margins = beta * ((after - before)[0::2] - (after - before)[1::2])
        loss = -nn.functional.logsigmoid(margins).mean()
        loss.backward()
        gradients = {name: each.grad for name, each in self.model.named_parameters() if each.grad is not None}
        save_file(gradients, output)
        accuracy = float((margins > 0).float().mean())
        return {"loss": loss.item(), "accuracy": accuracy, "margin": margins.mean().item(), "encoded": encoded}

    def tune(self, train: str, seconds: float, seed: int, output: str) -> dict[str, int]:
        """Learn from the chats of a jsonl file for a time, and write the adapter."""
        steps = peft_tuning.tune(self.network, self.optimizer, self.spec, train, seconds, seed)
        self.model.save_pretrained(output)
        AutoTokenizer.from_pretrained(self.spec.path).save_pretrained(output)
        return {"steps": steps}

    def score(self, adapter: str | None, held: str, general: str, new: int) -> dict[str, Any]:
        """See :func:`tuning.peft_tuning.score`."""
        return peft_tuning.score(self.spec.path, adapter, held, general, new)

    def process_id(self) -> int:
        """The process that computes."""
        return os.getpid()

    def close(self) -> None:
        """Nothing is open."""


def adapted(model: Any, spec: TuneSpec) -> Any:
    """The model with LoRA on all projections."""
    settings = LoraConfig(
        r=spec.rank, lora_alpha=int(spec.alpha), lora_dropout=0.0, target_modules=list(TARGETS), bias="none",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, settings, autocast_adapter_dtype=spec.options.get("adapters", "float32") == "float32")


def _log_probabilities(model: Any, rows: Rows) -> Tensor:
    """(B,): of all that is learned of each row, by the plain formula."""
    targets = torch.from_numpy(rows.targets)
    logs = model(input_ids=torch.from_numpy(rows.inputs)).logits.float().log_softmax(-1)
    found = logs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return (found * (targets >= 0)).sum(-1)
