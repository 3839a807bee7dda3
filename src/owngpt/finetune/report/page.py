"""The report as Markdown."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from owngpt.finetune.report.answers import Answer
from owngpt.finetune.report.comparison import Comparison, Line
from owngpt.finetune.report.concerns import Concern
from owngpt.finetune.report.labels import Confusion
from owngpt.finetune.report.measure import Measurement

SHOWN = 10
"""Held-out prompts that are shown with their answers."""
LONGEST_CELL = 1200
"""Characters of a text in a table."""
MOST_CLASSES = 12
"""Of a confusion matrix that is written as a table."""

MARKUP = "\\|`*_[]~$"
"""Characters that would be read as Markdown within a line."""
TOLD_ELSEWHERE = ("sentence", "reasons", "method")

EXPLAINED = {
    "loss": "mean surprise at each token of the owner's answers, in nats",
    "loss of the chosen answers": "mean surprise at each of their tokens, in nats",
    "exact match": "answers with the owner's words in their order",
    "token F1": "words shared with the owner's answer",
    "ROUGE-L": "longest common subsequence of words (of characters in Chinese)",
    "chrF": "groups of characters shared with the owner's answers",
    "win rate": "pairs whose chosen answer is the likelier one, token for token",
    "win rate against the network of before": "pairs that moved towards the chosen answer",
    "accuracy": "texts that were given their own class",
    "macro F1": "mean F1 of the classes, rare ones counting as much as common ones",
    "stop rate": "answers that ended by themselves",
    "repetition rate": "groups of four tokens that the same answer had already",
    "loops": "answers that end by saying the same again and again",
    "tokens of an answer": "mean length",
    "perplexity": "general text in the languages that the model knew",
    "bits per byte, English": "general text, compressed by the model",
    "bits per byte, Chinese": "general text, compressed by the model",
}


def page(
    name: str, comparison: Comparison, before: Measurement, after: Measurement, concerns: Sequence[Concern], *,
    data: Mapping[str, Any], plan: Mapping[str, Any], method: str, pictures: Mapping[str, str],
) -> str:  # fmt: skip
    """Markdown.

    :param pictures: file names by "loss", "scores", "confusion".
    """
    sections = [
        f"# {_inline(name)}: what fine-tuning changed",
        _summary(comparison, data, method),
        _warnings(concerns),
        _section(
            "Scores on held-out examples", _table(comparison.gained), _picture(pictures, "scores", "Scores before and after")
        ),
        _section("How it answers", _table(comparison.writing)),
        _section("What was forgotten", _forgotten(comparison), _table(comparison.forgotten)),
        _classes(comparison.confusion, pictures),
        _section("Loss while learning", _picture(pictures, "loss", "Training and held-out loss")),
        _answers(before.answers, after.answers),
        _section("The run", _reasons(plan), _facts({"method": method, **_flat(plan)}), _facts(_without_zeros(_flat(data)))),
        _section("How it was measured", _method(before, after, int(data.get("shared_prompts") or 0))),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def sentence(comparison: Comparison) -> str:
    """What changed, in one sentence."""
    parts = []
    for name in ("loss", "accuracy", "win rate", "stop rate"):
        line = comparison.line(name)
        if line is not None and not (name == "stop rate" and comparison.confusion):
            parts.append(f"{name} {_number(line, line.before)} → {_number(line, line.after)}")
    if comparison.forgetting is not None:
        parts.append(f"perplexity on general text {comparison.forgetting.change:+.1%}")
    return "; ".join(parts)


def _summary(comparison: Comparison, data: Mapping[str, Any], method: str) -> str:
    counted = data.get("sentence")
    about = f"Method: {_inline(method)}. Examples: {_inline(str(counted))}" if counted else f"Method: {_inline(method)}."
    changed = sentence(comparison)
    return f"{about}\n\n**In short:** {changed}." if changed else about


def _warnings(concerns: Sequence[Concern]) -> str:
    if not concerns:
        return _section("Warnings", "None.")
    return _section("Warnings", "\n".join(f"- **{concern.name}**: {_inline(str(concern))}" for concern in concerns))


def _forgotten(comparison: Comparison) -> str:
    if comparison.forgetting is None:
        return ""
    languages = " and ".join(comparison.knows)
    return f"On texts of many kinds that have nothing to do with the examples. Before, the model knew: {languages}."


def _table(lines: Sequence[Line]) -> str:
    if not lines:
        return ""
    rows = ["| | before | after | change | of | what it is |", "|---|---:|---:|---:|---:|---|"]
    for line in lines:
        numbers = f"{_number(line, line.before)} | **{_number(line, line.after)}** | {_change(line)}"
        aim = f"; {line.better} is better" if line.better else ""
        rows.append(f"| {line.name} | {numbers} | {_of(line)} | {EXPLAINED.get(line.name, '')}{aim} |")
    return "\n".join(rows)


def _number(line: Line, value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if line.style == "percent":
        return f"{value:.1%}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"


def _change(line: Line) -> str:
    if not math.isfinite(line.before):
        return "–"
    if line.style == "percent":
        return f"{100 * (line.after - line.before):+.1f} points"
    return f"{line.change:+.1%}" if math.isfinite(line.change) else "–"


def _of(line: Line) -> str:
    return f"{line.count}" if line.wins is None else f"{line.count} ({line.wins} better)"


def _classes(confusion: tuple[Confusion | None, Confusion] | None, pictures: Mapping[str, str]) -> str:
    if confusion is None:
        return ""
    after = confusion[1]
    rows = ["| number | class | texts | F1 before | F1 after |", "|---:|---|---:|---:|---:|"]
    for place, (label, score) in enumerate(after.f1.items()):
        earlier = confusion[0].f1.get(label, math.nan) if confusion[0] else math.nan
        shown = f"{earlier:.1%}" if math.isfinite(earlier) else "–"
        rows.append(f"| {place + 1} | {_inline(label)} | {int(after.counts[place].sum())} | {shown} | {score:.1%} |")
    return _section("Classes", "\n".join(rows), _picture(pictures, "confusion", "Who was taken for whom"))


def _answers(before: Sequence[Answer], after: Sequence[Answer]) -> str:
    later = {answer.index: answer for answer in after}
    pairs = [(answer, later[answer.index]) for answer in before if answer.index in later][:SHOWN]
    if not pairs:
        return ""
    blocks = [_block(number, then, now) for number, (then, now) in enumerate(pairs, 1)]
    return _section("Held-out prompts, answered before and after", "The likeliest answer to each; unselected.", *blocks)


def _block(number: int, then: Answer, now: Answer) -> str:
    head = "| before | after | the owner's own |\n|---|---|---|"
    cells = " | ".join(_cell(text) for text in (_with_end(then), _with_end(now), now.reference))
    return f"**{number}.** {_cell(now.shown)}\n\n{head}\n| {cells} |"


def _with_end(answer: Answer) -> str:
    marks = {"length": " […not ended]", "context": " […context full]", "time": " […cut off by the clock]"}
    return answer.text + marks.get(answer.ended, "")


def _method(before: Measurement, after: Measurement, shared: int) -> str:
    learned = f"were not learned from, but {shared:,} of them ask what was learned" if shared else "were never learned from"
    return (
        f"{before.examples:,} held-out examples {learned}. Both measurements are of the same examples and compared "
        f"on what both had time for. Answers are the likeliest ones, at most {after.answer_limit} tokens long"
        f"{_with_penalty(before, after)}. The general text is built into OwnGPT. "
        f"Measuring took {before.seconds:.1f} s before and {after.seconds:.1f} s after. "
        "All numbers and answers are in `report.json`."
    )


def _with_penalty(before: Measurement, after: Measurement) -> str:
    """How the answers after were kept from looping, and that whoever serves them does the same."""
    if after.penalty == before.penalty:
        return f", with a repetition penalty of {after.penalty:g} that the base recommends" if after.penalty != 1.0 else ""
    instead = "without which" if before.penalty == 1.0 else f"instead of {before.penalty:g}, with which"
    looped = f"{after.looped:.0%} of them looped" if after.looped else "they repeated themselves more than the examples do"
    why = "" if after.looped is None else f", {instead} {looped}"
    return (
        f"; those after with a repetition penalty of {after.penalty:g}{why} "
        "(it is in `generation_config.json`, and `owngpt chat` and `generate` use it unless told otherwise)"
    )


def _picture(pictures: Mapping[str, str], name: str, words: str) -> str:
    return f"![{words}]({pictures[name]})" if name in pictures else ""


def _reasons(plan: Mapping[str, Any]) -> str:
    return "\n".join(f"- {_inline(str(reason))}" for reason in plan.get("reasons") or ())


def _facts(values: Mapping[str, Any]) -> str:
    rows = [
        f"| {_inline(name)} | {_inline(_plain(value))} |" for name, value in values.items() if value not in (None, "", {}, [])
    ]
    return "\n".join(["| | |", "|---|---|", *rows]) if rows else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Records within records on one level; lists of records are for the JSON."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in TOLD_ELSEWHERE or (isinstance(value, float) and not math.isfinite(value)):
            continue
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        elif not (isinstance(value, list | tuple) and any(isinstance(item, Mapping | list) for item in value)):
            flat[f"{prefix}{name}"] = value
    return flat


def _without_zeros(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != 0}


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return str(value)


def _section(title: str, *bodies: str) -> str:
    body = "\n\n".join(body for body in bodies if body)
    return f"## {title}\n\n{body}" if body else ""


def _cell(text: str) -> str:
    """A text of anybody's in a table: nothing in it is Markdown or HTML."""
    text = text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL] + " …"
    plain = html.escape(text, quote=False)
    escaped = "".join(f"&#{ord(character)};" if character in MARKUP else character for character in plain)
    return "<br>".join(" ".join(line.split()) for line in escaped.splitlines()) or "–"


def _inline(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
