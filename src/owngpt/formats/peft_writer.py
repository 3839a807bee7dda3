"""Write LoRA adapters as PEFT stores them: a folder of adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from owngpt.config.files import atomic_write_bytes, atomic_write_text, make_folder
from owngpt.formats.peft import CONFIG_FILE, PREFIX, WEIGHTS_FILE


@dataclass(frozen=True)
class AdapterSettings:
    """What adapter_config.json says beside the names of the matrices."""

    base: str
    """Folder or hub name of the model that the adapter is for."""
    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    transposed: bool = False
    """The base stores its matrices as (in, out), as GPT-2's Conv1D does."""


@dataclass(frozen=True)
class StoredUpdate:
    """The update of one of their matrices, with rows in their order; float32."""

    down: Tensor
    """(R, in): lora_A"""
    up: Tensor
    """(out, R): lora_B, without the scale"""
    magnitude: Tensor | None = None
    """(out,): DoRA's lengths"""


def write_adapter(
    folder: str | Path, updates: Mapping[str, StoredUpdate], settings: AdapterSettings, modules: Iterable[str]
) -> list[Path]:
    """Write an adapter. The configuration comes last: with it the folder is an adapter.

    :param updates: by the full name of the module, such as model.layers.0.self_attn.q_proj.
    :param modules: all modules of the model that could have an update: a short name that means just the wanted ones is written.
    :returns: the files written.
    :raises StorageError: the disk is full, read-only or not ours.
    """
    folder = make_folder(Path(folder))
    tensors: dict[str, Tensor] = {}
    for module, update in updates.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = update.down
        tensors[f"{PREFIX}{module}.lora_B.weight"] = update.up
        if update.magnitude is not None:
            tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = update.magnitude
    kept = {name: tensor.detach().float().cpu().clone() for name, tensor in tensors.items()}
    atomic_write_bytes(folder / WEIGHTS_FILE, save(kept, metadata={"format": "pt"}))
    atomic_write_text(folder / CONFIG_FILE, _configuration(settings, _targets(list(updates), modules)))
    return [folder / CONFIG_FILE, folder / WEIGHTS_FILE]


def _targets(wanted: list[str], modules: Iterable[str]) -> list[str]:
    """Last names such as q_proj where they mean no other module, else full names."""
    leaves = {name.rpartition(".")[2] for name in wanted}
    meant = {name for name in modules if name.rpartition(".")[2] in leaves}
    return sorted(leaves if meant <= set(wanted) else wanted)


def _configuration(settings: AdapterSettings, targets: list[str]) -> str:
    values = {
        "base_model_name_or_path": settings.base,
        "bias": "none",
        "fan_in_fan_out": settings.transposed,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": int(settings.alpha) if float(settings.alpha).is_integer() else settings.alpha,
        "lora_dropout": settings.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": settings.rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": settings.dora,
        "use_rslora": settings.rslora,
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
