"""Measure held-out loss by model size and training tokens, and fit the planner's scaling law to it.

    python benchmarks/scaling.py run --train DIR --held DIR --name essays --tokens 600000 1200000 --shapes 128x3 192x4
    python benchmarks/scaling.py fit

``run`` adds lines to ``scaling_runs.jsonl`` beside this file; ``fit`` prints the constants of
:data:`owngpt.train.scaling.LAW` and how far each run lies from them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from owngpt.config.data import DataConfig
from owngpt.config.training import TrainConfig
from owngpt.data.batches import Batches
from owngpt.data.corpus import collect
from owngpt.data.shards import tokenize
from owngpt.evaluate.files import score_files
from owngpt.model.gpt import GPT
from owngpt.text.training import train_tokenizer
from owngpt.train.planner import TextFacts, body_parameters, make_plan
from owngpt.train.scaling import LAW, ScalingLaw
from owngpt.train.schedule import learning_rate_scale
from owngpt.train.step import TrainModule

RUNS = Path(__file__).with_name("scaling_runs.jsonl")


def run(options: argparse.Namespace) -> None:
    """Train every shape for every number of tokens and write what it scored."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = collect([options.train], Path(folder) / "text", DataConfig())
        tokenizer = train_tokenizer(corpus.train.sample(4 * 2**20), kind="bpe", vocab_size=options.vocab)
        prepared = tokenize(corpus, tokenizer, Path(folder) / "tokens")
        facts = TextFacts(prepared.train.byte_count, prepared.train.token_count, -(-tokenizer.vocab_size // 32) * 32)
        for shape in options.shapes:
            for tokens in options.tokens:
                line = _one(options, shape, tokens, tokenizer, prepared, facts)
                with RUNS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)


def _one(options: argparse.Namespace, shape: str, tokens: int, tokenizer: Any, prepared: Any, facts: TextFacts) -> dict[str, Any]:
    hidden, layers = (int(part) for part in shape.split("x"))
    settings = TrainConfig(
        tokens=tokens, hidden_size=hidden, layers=layers, context_length=options.context, batch_size=options.batch
    )
    plan = make_plan(settings, facts, seconds=None, dtype=torch.bfloat16, device=torch.device("cpu"))
    model = GPT(replace(plan.model, dropout=options.dropout), generator=torch.Generator().manual_seed(0))
    module = TrainModule(model, plan.optimizer, dtype=torch.bfloat16, clip=plan.clip)
    batches = Batches(prepared.train, context_length=options.context, batch_size=plan.batch_size, seed=0)
    course = plan.course
    for step in range(course.steps):
        scale = learning_rate_scale(step / course.steps, warmup=course.warmup, decay=course.decay, floor=course.floor)
        module.run([batches.next()], scale)
    score = score_files(model.eval(), tokenizer, [Path(options.held)])
    return {
        "corpus": options.name,
        "shape": shape,
        "vocab": facts.vocab_size,
        "parameters": body_parameters(plan.model),
        "tokens": course.steps * plan.batch_size * options.context,
        "seen": course.steps * plan.batch_size * options.context * facts.bytes_per_token,
        "distinct": facts.byte_count,
        "bits_per_byte": round(score.bits_per_byte, 4),
    }


def fit(_: argparse.Namespace) -> None:
    """Levenberg–Marquardt on the logarithms of the law's constants; each corpus has a floor of its own."""
    runs = [json.loads(line) for line in RUNS.read_text(encoding="utf-8").splitlines()]
    corpora = sorted({line["corpus"] for line in runs})
    measured = np.array([line["bits_per_byte"] for line in runs])

    def law(values: np.ndarray, corpus: str) -> ScalingLaw:
        model, model_power, data, data_power = (float(value) for value in np.exp(values[:4]))
        floor = float(np.exp(values[4 + corpora.index(corpus)]))
        return ScalingLaw(floor, model, model_power, data, data_power, LAW.repeat_half, LAW.overfit)

    def expected(values: np.ndarray) -> np.ndarray:
        return np.array([law(values, r["corpus"]).bits_per_byte(r["parameters"], r["seen"], r["distinct"]) for r in runs])

    # Few runs repeat their text often, so what repetition costs stays as the literature has it.
    values = np.log(np.array([22.0, 0.32, 290.0, 0.42] + [1.0] * len(corpora)))
    damping, error = 1.0, np.inf
    for _ in range(400):
        residual = expected(values) - measured
        jacobian = np.stack([(expected(values + 1e-4 * unit) - expected(values)) / 1e-4 for unit in np.eye(len(values))], axis=1)
        step = np.linalg.solve(jacobian.T @ jacobian + damping * 1e-3 * np.eye(len(values)), -jacobian.T @ residual)
        now = float(np.square(expected(values + step) - measured).sum())
        values, damping, error = (values + step, damping / 2, now) if now < error else (values, damping * 3, error)
    error = float(np.square(expected(values) - measured).sum())
    for line, value in zip(runs, expected(values), strict=True):
        name, real = f"{line['corpus']:>10} {line['shape']:>7} {line['tokens']:>9,}", line["bits_per_byte"]
        print(f"{name} {real:.4f} {value:.4f} {value - real:+.4f}")
    print(f"root mean square error {np.sqrt(error / len(runs)):.4f} bits per byte")
    for corpus in corpora:
        print(corpus, law(values, corpus))


def main() -> None:
    """Parse and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run")
    runner.add_argument("--train", required=True)
    runner.add_argument("--held", required=True)
    runner.add_argument("--name", required=True)
    runner.add_argument("--tokens", type=int, nargs="+", required=True)
    runner.add_argument("--shapes", nargs="+", required=True, help="WIDTHxLAYERS")
    runner.add_argument("--vocab", type=int, default=1024)
    runner.add_argument("--context", type=int, default=256)
    runner.add_argument("--batch", type=int, default=16)
    runner.add_argument("--dropout", type=float, default=0.0)
    runner.set_defaults(act=run)
    verbs.add_parser("fit").set_defaults(act=fit)
    options = parser.parse_args()
    options.act(options)


if __name__ == "__main__":
    main()
