"""Inference side by side: our engine, transformers, llama.cpp and vLLM on the same weights, prompts and machine.

    python benchmarks/inference.py --json results.json

benchmarks/README.md says what each part measures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from report import Report, console, print_table

from owngpt.bench.quality import quality
from owngpt.bench.race import PARTS as SPEED_PARTS
from owngpt.bench.run import WEIGHTS, bench
from owngpt.bench.side import PEERS
from owngpt.bench.tables import tables
from owngpt.errors import OwnGPTError

PARTS = (*SPEED_PARTS, "quality")
ROOT = Path(__file__).parents[1]

KNOWN = (
    ("decode at batch 1, tokens/s", "13", "20", "42 BF16 · 57 Q8_0 · 81 Q4_0"),
    ("prefill 512, tokens/s", "1,106", "1,412", "275 BF16 · 260 Q8_0 · 420 Q4_0"),
    ("16 × 128 in, 128 out, output tokens/s", "117 (static batch, 64 out)", "176", "–"),
    ("64 × 128 in, 64 out, output tokens/s", "–", "265", "–"),
    ("start to the first token, s", "6", "187", "1"),
)
"""Measured earlier on a quiet machine of 2 cores with AMX, SmolLM2-135M-Instruct."""

TARGETS = (
    ("decode, batch 1, bf16", ("decode", "1", "owngpt bf16", "tokens_per_second"), ">=", 55.0, ",.1f"),
    ("decode, batch 1, int8", ("decode", "1", "owngpt int8", "tokens_per_second"), ">=", 75.0, ",.1f"),
    ("decode, batch 1, int4", ("decode", "1", "owngpt int4", "tokens_per_second"), ">=", 105.0, ",.1f"),
    ("prefill 512, bf16", ("prefill", "owngpt bf16", "tokens_per_second"), ">=", 2100.0, ",.0f"),
    ("16 × 128 in, 128 out, bf16", ("loads", "16 × 128 in, 128 out", "owngpt bf16", "output_per_second"), ">=", 350.0, ",.0f"),
    ("64 × 128 in, 64 out, bf16", ("loads", "64 × 128 in, 64 out", "owngpt bf16", "output_per_second"), ">=", 550.0, ",.0f"),
    ("start to the first token, s", ("start", "owngpt bf16", "warm"), "<=", 3.0, ".2f"),
    ("the very first start, s", ("start", "owngpt bf16", "cold"), "<=", 3.0, ".2f"),
    ("prefix seen before, share of the cold time", ("prefix", "owngpt bf16", "seen_to_cold"), "<=", 0.10, ".1%"),
    ("p99 gap to the median, a long prompt arriving", ("arrival", "owngpt bf16", "p99_to_median"), "<=", 2.0, ".2f"),
    ("resident memory, bf16, 8 × 1,024, bytes", ("memory", "owngpt bf16", "resident"), "<=", 0.9e9, ",.0f"),
)
"""What is to be reached with SmolLM2-135M on that machine."""
RISES = {"int8": 0.005, "int4": 0.03}
"""How much perplexity may rise."""
PAIRS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
LEAD = 1.3
"""Times llama.cpp's decoding at equal bits."""


def main() -> None:
    """Run one part, or all of them."""
    options = _parser().parse_args()
    parts = PARTS if "all" in options.part else tuple(options.part)
    report = Report(options.json)
    try:
        if set(parts) - {"quality"}:
            report.add("speed", _speed(options, [part for part in parts if part != "quality"], report))
        if "quality" in parts:
            report.add("quality", _quality(options))
    except OwnGPTError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        console.print("stopped")
        raise SystemExit(130) from None


def _speed(options: argparse.Namespace, parts: list[str], report: Report) -> dict[str, Any]:
    result = bench(
        options.model, vs=options.vs, weights=options.weights, parts=parts, rounds=options.rounds, batches=options.batches,
        quick=options.quick, llama_server=options.llama_server, say=_say, keep=lambda result: report.add("speed", result),
    )  # fmt: skip
    for name, info in result["sides"].items():
        console.print(f"[bold]{name}:[/] {info.get('version', 'did not run')}; {info.get('settings', '')}", highlight=False)
    for title, columns, rows in tables(result):
        console.print(f"\n{title}", highlight=False)
        print_table("", columns, rows)
    print_table("Known, not measured in this run (another hour of this class of machine)",
                ("work", "transformers 5.23 bf16", "vLLM-CPU 0.32 bf16", "llama.cpp (built for AVX-512)"), KNOWN)  # fmt: skip
    if not options.quick:
        print_table("Against what is to be reached", ("work", "measured", "to reach", ""), _against_targets(result))
    for failure in result["failures"]:
        console.print(f"failed: {failure}", highlight=False, markup=False)
    return result


def _against_targets(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for work, path, sign, limit, form in TARGETS:
        median = _found(result["parts"], (*path, "median"))
        if median is not None:
            met = median >= limit if sign == ">=" else median <= limit
            rows.append((work, format(median, form), f"{sign} {limit:{form}}", "met" if met else "not met"))
    for ours, theirs in PAIRS.items():
        sides = (("decode", "1", f"owngpt {ours}"), ("decode", "1", f"llama.cpp {theirs}"))
        mine, other = (_found(result["parts"], (*side, "tokens_per_second", "median")) for side in sides)
        if mine is not None and other is not None:
            met = mine >= LEAD * other
            rows.append((f"decode, batch 1, {ours} to llama.cpp {theirs} here", f"{mine / other:.2f} ×", f">= {LEAD} ×",
                         "met" if met else "not met"))  # fmt: skip
    return rows


def _found(values: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _quality(options: argparse.Namespace) -> dict[str, Any]:
    text = options.text.read_text(encoding="utf-8") if options.text else _documentation()
    found = quality(options.model, text, weights=options.weights, quick=options.quick, say=_say)
    rows = []
    for kind, numbers in found["weights"].items():
        limit = RISES.get(kind)
        same = f"{numbers['greedy_same']} of {found['greedy_prompts']}"
        rise = f"{numbers['rise']:+.3%}" + ("" if limit is None else f" (below {limit:.1%})")
        runs = numbers["runs"].partition(" (")[0]
        rows.append((kind, runs, f"{numbers['perplexity']:.4f}", rise, same, f"{numbers['alone_to_batch']:.4f}"))
    columns = ("weights", "runs as", "perplexity", "rise", "greedy as float32", "alone to in a batch, nats")
    notes = (
        f"float32, plain forward pass: {found['perplexity_float32']:.4f} on {found['tokens']:,} tokens; greedy texts of "
        f"{found['greedy_tokens']} tokens",
    )
    print_table("Quality", columns, rows, notes)
    return {**found, "text": str(options.text or "the project's documentation")}


def _documentation() -> str:
    """English that no published model has seen: our own pages."""
    pages = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        ROOT / "benchmarks" / "README.md",
        ROOT / "CONTRIBUTING.md",
    ]
    return "\n\n".join(page.read_text(encoding="utf-8") for page in pages if "zh" not in page.as_posix())


def _say(message: str) -> None:
    console.print(f"[dim]{message}[/]", highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="as `owngpt pull` brought it (default: %(default)s)")
    parser.add_argument("--part", nargs="+", choices=("all", *PARTS), default=["all"])
    parser.add_argument("--vs", nargs="*", choices=PEERS, default=list(PEERS), help="peers, where installed (default: all)")
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS), help="default: all")
    parser.add_argument("--rounds", type=int, help="of each side, in turn, after one to warm up (default: 3)")
    parser.add_argument("--batches", nargs="+", type=int, help="texts at once in decode (default: 1 2 4 8 16 32 64)")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: shows that everything runs")
    parser.add_argument("--llama-server", help="a llama-server built for this processor, instead of the one in xllamacpp")
    parser.add_argument("--text", type=Path, help="what quality scores (default: the project's documentation)")
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    return parser


if __name__ == "__main__":
    main()
