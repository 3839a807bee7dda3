"""Runs that are killed and resumed: the bytes of what they write against those of a run that was left alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from process import CommandFailedError, owngpt, run
from report import console, print_table

from owngpt.config.finetuning import FinetuneConfig
from owngpt.config.run_record import RUN_FILE, RunRecord
from owngpt.errors import OwnGPTError
from owngpt.finetune.start import finetune
from owngpt.train.checkpoint import step_of
from owngpt.train.output import CHECKPOINTS, RUN
from tuning.side import Chats, TuneSpec

LIMIT = 900.0
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
METHODS: dict[str, dict[str, Any]] = {
    "sft, LoRA": {"method": "sft", "lora_dropout": 0.1},
    "sft, full": {"method": "sft", "lora": False},
    "dpo": {"method": "dpo"},
    "ipo": {"method": "ipo"},
    "orpo": {"method": "orpo"},
    "classify": {"method": "classify"},
}
SHAPE = {"batch_size": 2, "context_length": 256, "overflow": "drop", "pack": False}
"""Small steps; the rows of the default examples fit, whatever the tokenizer."""


def resume(ours: TuneSpec, chats: Chats, steps: int, kills: int) -> dict[str, Any]:
    """Every method, ``steps`` small steps with a checkpoint after each; killed ``kills`` times on the way, and resumed."""
    rows, results = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, options in METHODS.items():
            console.print(f"[dim]resume: {name}[/]", highlight=False)
            folder = Path(temporary) / str(len(results))
            try:
                results[name] = _one(ours.path, chats, {**SHAPE, **options, "steps": steps}, kills, folder)
            except (OwnGPTError, CommandFailedError) as error:  # the other methods are still worth their time
                console.print(str(error), highlight=False, markup=False)
                results[name] = {"same": False, "killed": 0, "error": str(error)}
            died = results[name]["killed"]
            rows.append((name, str(died), "identical" if results[name]["same"] else "NOT identical"))
    met = all(result["same"] and result["killed"] == kills for result in results.values())
    title = f"{steps} steps, killed with SIGKILL and resumed: the weights that are written"
    print_table(title, ("method", "times killed", "bits"), rows, (f"{'met' if met else 'NOT met'}: bit-identical",))
    return {"steps": steps, "methods": results, "met": met}


def _one(model: str, chats: Chats, options: dict[str, Any], kills: int, folder: Path) -> dict[str, Any]:
    """The same run left alone and killed."""
    folder.mkdir()
    data = _data(options["method"], chats, folder)
    whole = _described(model, data, options, folder / "whole")
    killed = Path(shutil.copytree(whole, folder / "killed"))
    finished = run(_command(whole), limit=LIMIT)
    died = _killed(killed, kills, options["steps"])
    found = _weights(whole)
    return {"same": bool(found) and found == _weights(killed), "killed": died, "seconds": finished.seconds}


def _described(model: str, data: Path, options: dict[str, Any], output: Path) -> Path:
    """A run that has not begun, planned as `--dry-run` plans it, with a checkpoint after every step."""
    plan = finetune(model, data, output=output, dry_run=True, quiet=True, **options).plan
    plan["course"] |= {"checkpoint_seconds": 0.0, "evaluation_interval": 2}
    (output / RUN).mkdir(parents=True)
    record = RunRecord([str(data)], asdict(FinetuneConfig(**options)), plan, verb="finetune", model=model)
    record.write(output / RUN / RUN_FILE)
    return output


def _command(output: Path) -> list[str]:
    return owngpt("finetune", "--resume", "-o", output, "--json")


def _killed(output: Path, kills: int, steps: int) -> int:
    """Run to its end what is killed on its way, after checkpoints spread over its steps; how often it was."""
    died = 0
    for kill in range(kills):
        after = 1 + kill * (steps - 1) // kills
        process = subprocess.Popen(_command(output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and _step(output) < after:
            time.sleep(0.01)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        died += 1
    run(_command(output), limit=LIMIT)
    return died


def _step(output: Path) -> int:
    """Of the newest whole checkpoint; 0 where there is none."""
    found = (output / RUN / CHECKPOINTS).glob("step-*/manifest.json")
    return max((step_of(manifest.parent) for manifest in found), default=0)


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
