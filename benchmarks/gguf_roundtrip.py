"""A real model out as Q8_0 and into llama.cpp: the same greedy text as from our float32 weights, and the same perplexity?

``python benchmarks/gguf_roundtrip.py [MODEL] [--tokens N] [--scored N]``; MODEL is by default smollm2-135m-instruct, which
`owngpt pull` brings. Needs `pip install xllamacpp`, which is llama.cpp prebuilt.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from llamacpp import LlamaCpp
from report import print_table

import owngpt

PROMPTS = (
    "The capital of France is", "Once upon a time, in a small village,", "def fibonacci(n):\n", "The three laws of motion are",
    "Dear customer,\n\nThank you for", "Q: What is the boiling point of water?\nA:", "In 1969, the first humans",
    "To bake a simple loaf of bread, you need", "import numpy as np\n\n", "The difference between a virus and a bacterium is",
)  # fmt: skip
TEXT = (Path(__file__).parents[1] / "LICENSE").read_text(encoding="utf-8")


def compare(model: str, tokens: int, scored: int) -> dict[str, Any]:
    """Both sides on the same prompts and the same text."""
    start = time.perf_counter()
    ours = owngpt.load(model, dtype="float32")
    load_seconds = time.perf_counter() - start
    tokenizer = ours.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        owngpt.export(model, format="gguf", output=file, dtype="q8_0")
        llama = LlamaCpp(file, context_length=2048, threads=torch.get_num_threads())
        same = [_continued(ours, prompt, tokens) == llama.greedy(tokenizer.encode(prompt), tokens) for prompt in PROMPTS]
        ids = tokenizer.encode(TEXT)[: scored + 1]
        theirs = math.exp(-sum(llama.log_probabilities(ids)) / scored)
    with torch.inference_mode():
        logits = ours.logits([ids[:-1]])[0]
    mine = math.exp(float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))))
    return {
        "model": model, "load_seconds": load_seconds, "prompts": len(PROMPTS), "tokens": tokens, "same": sum(same),
        "scored": scored, "perplexity": mine, "llama_cpp_perplexity": theirs, "ratio": theirs / mine,
    }  # fmt: skip


def _continued(model: owngpt.Model, prompt: str, count: int) -> list[int]:
    generation = model.generations(prompt, max_new_tokens=count, temperature=0)[0]
    return list(generation.token_ids)


def main() -> None:
    """Print the table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--scored", type=int, default=256)
    arguments = parser.parse_args()
    found = compare(arguments.model, arguments.tokens, arguments.scored)
    rows = [
        (f"greedy text of {found['tokens']} tokens, same", f"{found['same']} of {found['prompts']}", ">= 9 of 10"),
        (f"perplexity on {found['scored']} tokens, ours in float32", f"{found['perplexity']:.4f}", ""),
        ("perplexity, llama.cpp on the Q8_0", f"{found['llama_cpp_perplexity']:.4f}", ""),
        ("difference", f"{(found['ratio'] - 1) * 100:+.3f} %", "within 0.5 %"),
    ]
    print_table(f"{found['model']} as GGUF Q8_0 in llama.cpp", ("what", "measured", "to reach"), rows)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
