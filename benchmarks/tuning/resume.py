"""Runs that are killed and resumed: the bytes of what they write against those of a run that was left alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from process import CommandFailedError, owngpt, run
from report import console, print_table

from tuning.side import Chats, TuneSpec

LIMIT = 900.0
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
METHODS: dict[str, tuple[str, ...]] = {
    "sft, LoRA": ("--method", "sft", "--lora-dropout", "0.1"),
    "sft, full": ("--method", "sft", "--full"),
    "dpo": ("--method", "dpo"),
    "ipo": ("--method", "ipo"),
    "orpo": ("--method", "orpo"),
    "classify": ("--method", "classify"),
}


def resume(ours: TuneSpec, chats: Chats, steps: int, kills: int) -> dict[str, Any]:
    """Every method, ``steps`` small steps; killed ``kills`` times at moments spread over the run, and resumed."""
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, options in METHODS.items():
            console.print(f"[dim]resume: {name}[/]", highlight=False)
            data = _data(options[1], chats, folder)
            dial = ("--steps", str(steps), "--batch-size", "2", "--context-length", "128", "--overflow", "drop", "--no-pack")
            command = ("finetune", ours.path, data, *options, *dial, "--json")
            whole = folder / f"{len(results)}-whole"
            seconds = run(owngpt(*command, "-o", whole), limit=LIMIT).seconds
            killed = folder / f"{len(results)}-killed"
            died = _killed(owngpt(*command, "-o", killed), seconds, kills, killed)
            same = _weights(whole) == _weights(killed)
            results[name] = {"same": same, "killed": died, "seconds": seconds}
            rows.append((name, str(died), "identical" if same else "NOT identical"))
    met = all(result["same"] and result["killed"] for result in results.values())
    title = f"{steps} steps, killed with SIGKILL and resumed: the weights that are written"
    print_table(title, ("method", "times killed", "bits"), rows, (f"{'met' if met else 'NOT met'}: bit-identical",))
    return {"steps": steps, "methods": results, "met": met}


def _killed(command: Sequence[str], seconds: float, kills: int, output: Path) -> int:
    """Run a command that is killed while it trains, as often as that works out, then to its end; how often it was."""
    resumed = owngpt("finetune", "--resume", "-o", output, "--json")
    died = 0
    for kill in range(kills):
        began = output / "run" / "metrics.jsonl"
        process = subprocess.Popen(
            command if not died else resumed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        wanted = _lines(began) + 1 + kill
        while process.poll() is None and _lines(began) < wanted:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        died += 1
    try:
        run(resumed if died else command, limit=LIMIT + seconds)
    except CommandFailedError:
        if not (output / "README.md").exists():  # it was over before it could be killed once more
            raise
    return died


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _weights(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in WEIGHTS if (folder / name).exists()}


def _data(method: str, chats: Chats, folder: Path) -> Path:
    """The chats as this method wants them: themselves, pairs with another's answer, or which half of the file they are of."""
    path = folder / f"{method}.jsonl"
    lines = []
    for index, chat in enumerate(chats):
        if method == "sft":
            lines.append({"messages": chat})
        elif method == "classify":
            lines.append({"text": chat[-1]["content"], "label": "first half" if 2 * index < len(chats) else "second half"})
        else:
            other = chats[(index + 1) % len(chats)]
            lines.append({"prompt": chat[:-1], "chosen": chat[-1:], "rejected": other[-1:]})
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path
