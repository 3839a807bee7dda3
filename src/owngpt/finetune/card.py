"""The README of a fine-tuned model: what it is, from what it came, how it did, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from owngpt.finetune.plan import FinetunePlan

KINDS = {
    "sft": "supervised fine-tuning", "dpo": "direct preference optimisation", "ipo": "identity preference optimisation",
    "orpo": "odds ratio preference optimisation", "classify": "classification",
}  # fmt: skip


def card(name: str, base: str, plan: FinetunePlan, *, data: Mapping[str, Any], training: Mapping[str, Any], sentence: str) -> str:
    """Markdown with a metadata block that model hubs read.

    :param base: what was fine-tuned.
    :param data: what the report knows of the examples.
    :param training: what the run did: steps, tokens, seconds, ….
    :param sentence: what changed, from the report.
    """
    method = KINDS[plan.recipe.method]
    what = "a LoRA adapter (PEFT) for" if plan.recipe.lora else "a model made from"
    sections = [
        f"---\n{yaml.safe_dump(_metadata(base, plan), sort_keys=True, allow_unicode=True)}---",
        f"# {_inline(name)}\n\nThis is {what} {_inline(base)}, by {method} with OwnGPT.",
        f"## What changed\n\n{sentence}\n\nAll numbers, pictures and answers before and after are in [report.md](report.md).",
        f"## Examples\n\n{_inline(str(data.get('sentence', '')))}",
        f"## Training\n\n{_table({**training, **_settings(plan)})}",
        f"## Use\n\n{_use(base, plan)}",
    ]
    return "\n\n".join(sections) + "\n"


def _metadata(base: str, plan: FinetunePlan) -> dict[str, Any]:
    task = "text-classification" if plan.recipe.method == "classify" else "text-generation"
    library = "peft" if plan.recipe.lora and task == "text-generation" else "transformers"
    tags = ["owngpt", plan.recipe.method, *(["lora"] if plan.recipe.lora else [])]
    return {"library_name": library, "pipeline_tag": task, "base_model": base, "tags": tags}


def _settings(plan: FinetunePlan) -> dict[str, Any]:
    recipe, shape = plan.recipe, plan.shape
    chosen: dict[str, Any] = {
        "learning rate": recipe.optimizer.matrix_rate, "rows a step": shape.batch_size * shape.accumulation,
        "tokens a row": shape.context_length, "seed": recipe.seed,
    }  # fmt: skip
    if recipe.lora is not None:
        chosen |= {"rank": recipe.lora.rank, "alpha": recipe.lora.alpha, "targets": ", ".join(recipe.lora.targets)}
    return chosen


def _use(base: str, plan: FinetunePlan) -> str:
    if plan.recipe.method == "classify":
        return 'It opens in transformers as a text classifier: `pipeline("text-classification", "THIS_FOLDER")`.'
    ours = '```python\nimport owngpt\n\nmodel = owngpt.load("THIS_FOLDER")\n```'
    if plan.recipe.lora is None:
        return ours + "\n\nIt opens in transformers unchanged."
    return (
        f"{ours}\n\nor `owngpt chat THIS_FOLDER`. The base, {_inline(base)}, has to be there. With PEFT: "
        '`PeftModel.from_pretrained(base, "THIS_FOLDER")`. One folder without a base is made by '
        "`owngpt export THIS_FOLDER --merge -o FOLDER`."
    )


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {_inline(name)} | {_inline(_value(value))} |" for name, value in values.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
