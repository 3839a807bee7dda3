"""A real model out as GGUF and into llama.cpp: the same greedy text as from our float32 weights, and the same perplexity?

Besides llama.cpp on the file, the file's weights are run by us in float32: what differs there is the rounding of the weights
alone; what llama.cpp adds is that of its activations (Q8_0 ones where the weights are).

``python benchmarks/gguf_roundtrip.py [MODEL] [--dtype T]… [--tokens N] [--scored N]``; MODEL is by default
smollm2-135m-instruct, which `owngpt pull` brings. Needs `pip install xllamacpp`, which is llama.cpp prebuilt.
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


def compare(model: str, dtype: str, tokens: int, scored: int) -> dict[str, Any]:
    """Our float32 weights, llama.cpp on the file and ourselves on the file: the same prompts and the same text."""
    start = time.perf_counter()
    ours = owngpt.load(model, dtype="float32")
    load_seconds = time.perf_counter() - start
    texts = [_continued(ours, prompt, tokens) for prompt in PROMPTS]
    ids = ours.tokenizer.encode(TEXT)[: scored + 1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.gguf"
        owngpt.export(model, format="gguf", output=file, dtype=dtype)
        rounded = owngpt.load(file, dtype="float32")
        llama = LlamaCpp(file, context_length=2048, threads=torch.get_num_threads())
        theirs = [llama.greedy(ours.tokenizer.encode(prompt), tokens) for prompt in PROMPTS]
        perplexity = math.exp(-sum(llama.log_probabilities(ids)) / scored)
        own = [_continued(rounded, prompt, tokens) for prompt in PROMPTS]
    # llama.cpp also gives the token that ends a text.
    same = sum(their[: len(our)] == our for our, their in zip(texts, theirs, strict=True))
    mine = _perplexity(ours, ids)
    return {
        "model": model, "dtype": dtype, "load_seconds": load_seconds, "prompts": len(PROMPTS), "tokens": tokens, "same": same,
        "same_by_us": sum(one == other for one, other in zip(texts, own, strict=True)), "scored": scored, "perplexity": mine,
        "llama_cpp_perplexity": perplexity, "our_perplexity_of_the_file": _perplexity(rounded, ids), "ratio": perplexity / mine,
    }  # fmt: skip


def _perplexity(model: owngpt.Model, ids: list[int]) -> float:
    logits = model.logits([ids[:-1]])[0]
    return math.exp(float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))))


def _continued(model: owngpt.Model, prompt: str, count: int) -> list[int]:
    generation = model.generations(prompt, max_new_tokens=count, temperature=0)[0]
    return list(generation.token_ids)


def main() -> None:
    """Print the table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--scored", type=int, default=256)
    parser.add_argument("--dtype", action="append", help="q8_0, f16, …; may be given several times")
    arguments = parser.parse_args()
    for dtype in arguments.dtype or ("f16", "q8_0"):
        found = compare(arguments.model, dtype, arguments.tokens, arguments.scored)
        of = found["prompts"]
        rows = [
            (f"greedy text of {found['tokens']} tokens, llama.cpp as our float32", f"{found['same']} of {of}", ">= 9 of 10"),
            ("the same, the file's weights run by us", f"{found['same_by_us']} of {of}", ""),
            (f"perplexity on {found['scored']} tokens, ours in float32", f"{found['perplexity']:.4f}", ""),
            ("perplexity, llama.cpp on the file", f"{found['llama_cpp_perplexity']:.4f}", ""),
            ("difference", f"{(found['ratio'] - 1) * 100:+.3f} %", "within 0.5 %"),
        ]
        print_table(f"{found['model']} as GGUF {dtype} in llama.cpp", ("what", "measured", "to reach"), rows)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
