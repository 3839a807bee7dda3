"""The layouts that OwnGPT reads and writes. A new family is one file and one line here."""

from __future__ import annotations

from owngpt.errors import ModelFolderError
from owngpt.families.base import Family, TensorMap
from owngpt.families.gemma3_text import Gemma3Text
from owngpt.families.gpt2 import GPT2
from owngpt.families.gpt_neo import GPTNeo
from owngpt.families.gpt_neox import GPTNeoX
from owngpt.families.gpt_oss import GPTOSS
from owngpt.families.gptj import GPTJ
from owngpt.families.llama import Llama
from owngpt.families.mistral import Mistral
from owngpt.families.openai_gpt import OpenAIGPT
from owngpt.families.qwen2 import Qwen2
from owngpt.families.qwen3 import Qwen3
from owngpt.model.config import GPTConfig

__all__ = ["FAMILIES", "Family", "TensorMap", "family_for", "family_named"]

FAMILIES: tuple[Family, ...] = (
    Qwen3(),
    Llama(),
    Mistral(),
    Qwen2(),
    GPT2(),
    GPTNeo(),
    OpenAIGPT(),
    GPTJ(),
    GPTNeoX(),
    Gemma3Text(),
    GPTOSS(),
)
"""In the order in which a configuration is offered to them."""


def family_for(config: GPTConfig, preferred: str | None = None) -> Family:
    """The first family that says this configuration exactly.

    :param preferred: model_type of the family to ask first: several may fit, and a folder should stay what it was.
    :raises ModelFolderError: none does; the message says why not, for each.
    """
    reasons = []
    for family in sorted(FAMILIES, key=lambda family: family.model_type != preferred):
        misfits = family.misfits(config)
        if not misfits:
            return family
        reasons.append(f"{family.model_type}: {', '.join(misfits)}")
    raise ModelFolderError(f"no Hugging Face layout holds this model exactly ({'; '.join(reasons)})")


def family_named(model_type: str) -> Family:
    """The family of a config.json's ``model_type``.

    :raises ModelFolderError: it is not one of ours.
    """
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise ModelFolderError(f"model_type {model_type!r} is not implemented; these are: {known}")
