"""The model card: a README.md that says what a model is, what it was made of and how well it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import PurePath
from typing import Any

import yaml

from owngpt.model.config import GPTConfig
from owngpt.text.tokenizer import Tokenizer

LANGUAGE_CODES = ("en", "zh")
LANGUAGE_SHARE = 0.05
"""A language with a smaller share of the text is not named as one of the model's."""
LONGEST_SAMPLE = 600
SOURCES_SHOWN = 20
DATA_FIELDS = (
    "source_files", "source_bytes", "documents", "bytes", "characters", "train", "validation", "languages", "encodings",
    "removed", "skipped", "repaired", "masked", "repeated_validation_bytes",
)  # fmt: skip
"""What of the data report is published; its samples may hold what the owner removed for a reason."""


def model_card(
    *,
    name: str,
    config: GPTConfig,
    data: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    score: Mapping[str, Any] | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    tokenizer: Tokenizer | None = None,
    license: str | None = None,
) -> str:
    """Markdown with a metadata block that model hubs read.

    :param name: of the model.
    :param config: its shape.
    :param data: the data report: sources with their hashes, counts, what was removed.
    :param plan: the resolved configuration of the run.
    :param training: what the run did: steps, tokens, seconds, ….
    :param score: on held-out text: ``bits_per_byte``, ``perplexity``, ….
    :param samples: ``{"prompt": …, "text": …}`` each, unselected.
    :param license: identifier of the licence that the owner gives the model, if any.
    """
    report = data or {}
    sections = [
        _metadata(report.get("languages", {}), license),
        f"# {_inline(name)}\n\n{_introduction(config)}",
        _section("Score on held-out text", _table(score)),
        _section(
            "Data", _sources(report.get("sources", ())), _table({key: report[key] for key in DATA_FIELDS if report.get(key)})
        ),
        _section("Tokenizer", _table(_tokenizer_facts(tokenizer))),
        _section("Training", _table(training), _table(_flat(plan or {}))),
        _section("Shape", _table({"parameters": config.parameter_count(), **config.to_dict()})),
        _section("Samples", *(_sample(sample) for sample in samples)),
        _section("Use", USE),
        _section("Limits", LIMITS),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


USE = """```python
import owngpt

model = owngpt.load("THIS_FOLDER")
print(model.generate("Once", max_new_tokens=60))
```

It opens in transformers unchanged:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
```"""

LIMITS = (
    "The model continues text in the manner of what it was trained on. It does not know whether what it writes is true, "
    "and it may repeat passages of its training text word for word."
)


def _metadata(languages: Mapping[str, int], license: str | None) -> str:
    values: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["owngpt"]}
    total = sum(languages.values())
    codes = [code for code in LANGUAGE_CODES if languages.get(code, 0) > LANGUAGE_SHARE * total]
    if codes:
        values["language"] = codes
    if license:
        values["license"] = license
    return f"---\n{yaml.safe_dump(values, sort_keys=True, allow_unicode=True)}---"


def _introduction(config: GPTConfig) -> str:
    count = config.parameter_count()
    size = f"{count / 1e6:.1f} million" if count >= 100_000 else f"{count:,}"
    return (
        f"A GPT of {size} parameters ({config.layers} layers of width {config.hidden_size}, context of {config.context_length:,} "
        f"tokens, vocabulary of {config.vocab_size:,}), made with OwnGPT {_version()}".rstrip()
        + "."
    )


def _version() -> str:
    try:
        return metadata.version("owngpt")
    except metadata.PackageNotFoundError:  # run from a checkout that was never installed
        return ""


def _tokenizer_facts(tokenizer: Tokenizer | None) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    return {"kind": tokenizer.kind, "tokens": tokenizer.vocab_size, "sha256": tokenizer.fingerprint}


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Settings within settings on one level; the shape has a section of its own."""
    flat: dict[str, Any] = {}
    for name, value in plan.items():
        if isinstance(value, Mapping) and name != "model":
            flat.update({f"{name}.{inner}": item for inner, item in value.items()})
        elif name != "model":
            flat[name] = value
    return flat


def _section(title: str, *bodies: str) -> str:
    body = "\n\n".join(body for body in bodies if body)
    return f"## {title}\n\n{body}" if body else ""


def _table(values: Mapping[str, Any] | None) -> str:
    if not values:
        return ""
    rows = [f"| {_inline(name)} | {_inline(_value(value))} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows])


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    """Name, size and hash of each file; the folders above it are the owner's own business."""
    if not sources:
        return ""
    rows = []
    for source in sources[:SOURCES_SHOWN]:
        file = PurePath(str(source.get("path", ""))).name
        rows.append(f"| {_inline(file)} | {_value(source.get('bytes'))} | {_value(source.get('sha256'))} |")
    if len(sources) > SOURCES_SHOWN:
        rows.append(f"| and {len(sources) - SOURCES_SHOWN:,} more | | |")
    return "\n".join(["| file | bytes | SHA-256 |", "|---|---|---|", *rows])


def _sample(sample: Mapping[str, Any]) -> str:
    text = f"{sample['prompt']}{sample['text']}"
    text = text if len(text) <= LONGEST_SAMPLE else text[:LONGEST_SAMPLE] + " …"
    fence = "`" * max(3, _longest_run(text, "`") + 1)  # a text that holds a fence cannot break out of its own
    return f"{fence}text\n{text}\n{fence}"


def _longest_run(text: str, character: str) -> int:
    longest = run = 0
    for found in text:
        run = run + 1 if found == character else 0
        longest = max(longest, run)
    return longest


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        plain = {name: item.get("documents") if isinstance(item, Mapping) else item for name, item in value.items()}
        return "; ".join(f"{name}: {_value(item)}" for name, item in plain.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or "–"
    return str(value)


def _inline(text: str) -> str:
    """Text that stays in its table cell."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
