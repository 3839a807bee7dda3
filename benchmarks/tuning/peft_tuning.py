"""A plain fine-tuning loop and a scorer in transformers and PEFT, as their users write them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuning.rows import Rows
from tuning.side import TuneSpec

BATCH = 8
"""Chats a step, padded to the longest of them: what fits a small FAQ, with the usual rate for LoRA of 2e-4."""
SCORED = 8
"""Chats or windows scored in one pass."""
WINDOW = 512
"""Tokens of general text that are scored together."""
WARMUP = 0.05


def answered(tokenizer: Any, chat: Sequence[dict[str, str]]) -> tuple[list[int], list[bool]]:
    """A chat up to the token that ends its last answer, and which ids are learned: that answer and its end."""
    chat = list(chat)
    prompt = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=True, return_dict=False)
    ids = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    assert ids[: len(prompt)] == prompt, "the template changes what was before the answer"
    ends = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = ids[: next(place for place in range(len(prompt), len(ids)) if ids[place] in ends) + 1]
    return ids, [place >= len(prompt) for place in range(len(ids))]


def tune(model: Any, optimizer: torch.optim.Optimizer, spec: TuneSpec, train: str, seconds: float, seed: int) -> int:
    """Learn for a time, the rate rising over its first twentieth and falling to nothing at its end; the steps taken."""
    tokenizer = AutoTokenizer.from_pretrained(spec.path)
    lines = Path(train).read_text(encoding="utf-8").splitlines()
    encoded = [answered(tokenizer, json.loads(line)["messages"]) for line in lines]
    began, steps = time.perf_counter(), 0
    for batch in _shuffled(encoded, seed):
        gone = (time.perf_counter() - began) / seconds
        if gone >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = spec.learning_rate * min(gone / WARMUP, 1.0) * (1 - gone)
        optimizer.zero_grad(set_to_none=True)
        inputs, targets = (torch.from_numpy(array) for array in (batch.inputs, batch.targets))
        model(input_ids=inputs, labels=inputs, shift_labels=targets).loss.backward()
        nn.utils.clip_grad_norm_([each for group in optimizer.param_groups for each in group["params"]], spec.clip)
        optimizer.step()
        steps += 1
    return steps


def _shuffled(encoded: Sequence[tuple[list[int], list[bool]]], seed: int) -> Iterator[Rows]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(encoded), generator=generator).tolist()
        for start in range(0, len(order), BATCH):
            yield Rows.of([encoded[index] for index in order[start : start + BATCH]])


@torch.inference_mode()
def score(path: str, adapter: str | None, held: str, general: str, new: int) -> dict[str, Any]:
    """A base with an adapter over it, or alone, in bfloat16 as it is served.

    :param held: JSON of chats whose last message is the answer. :param general: JSON of texts. :param new: longest answer.
    :returns: loss (nats a token of the held-out answers, ends included), general_loss (nats a token), stop_rate and answers
        (greedy, as the adapter's generation_config.json says), plain_stop_rate (greedy, without any penalty).
    """
    tokenizer = AutoTokenizer.from_pretrained(adapter or path)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.eval()
    chats = json.loads(Path(held).read_text(encoding="utf-8"))
    rows = sorted((answered(tokenizer, chat) for chat in chats), key=lambda row: len(row[0]))
    texts = [tokenizer(text)["input_ids"] for text in json.loads(Path(general).read_text(encoding="utf-8"))]
    windows = [(ids[start : start + WINDOW], [True] * WINDOW) for ids in texts for start in range(0, len(ids) - 1, WINDOW)]
    penalty = _penalty(adapter)
    plain = _answers(model, tokenizer, chats, new, 1.0)
    answers = plain if penalty == 1.0 else _answers(model, tokenizer, chats, new, penalty)
    return {
        "loss": _loss(model, rows),
        "general_loss": _loss(model, [(ids, learned[: len(ids)]) for ids, learned in windows if len(ids) > 1]),
        "stop_rate": _stopped(answers),
        "plain_stop_rate": _stopped(plain),
        "penalty": penalty,
        "answers": answers,
    }


def _penalty(adapter: str | None) -> float:
    """On repetition, that the adapter's folder recommends to whoever serves it."""
    file = Path(adapter or ".") / "generation_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if adapter and file.exists() else {}
    return float(settings.get("repetition_penalty") or 1.0)


def _stopped(answers: Sequence[dict[str, Any]]) -> float:
    return sum(answer["stopped"] for answer in answers) / len(answers)


def _loss(model: Any, rows: Sequence[tuple[list[int], list[bool]]]) -> float:
    total, count = 0.0, 0
    for start in range(0, len(rows), SCORED):
        batch = Rows.of(rows[start : start + SCORED])
        logits = model(input_ids=torch.from_numpy(batch.inputs)).logits.float()
        targets = torch.from_numpy(batch.targets)
        total += float(nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
        count += int((targets >= 0).sum())
    return total / count


def _answers(model: Any, tokenizer: Any, chats: Sequence[Any], new: int, penalty: float) -> list[dict[str, Any]]:
    """Greedy, in batches padded on the left."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = []
    for start in range(0, len(chats), 2 * SCORED):
        part = chats[start : start + 2 * SCORED]
        given = tokenizer.apply_chat_template(
            [chat[:-1] for chat in part], add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        length = given["input_ids"].shape[1]
        written: Tensor = model.generate(
            **given, max_new_tokens=new, do_sample=False, pad_token_id=tokenizer.pad_token_id, repetition_penalty=penalty
        )
        for chat, ids in zip(part, written[:, length:].tolist(), strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            stopped = tokenizer.eos_token_id in ids
            found.append({"prompt": chat[-2]["content"], "reference": chat[-1]["content"], "answer": text, "stopped": stopped})
    return found
