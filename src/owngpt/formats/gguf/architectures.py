"""The architectures of llama.cpp that are read and written. A new one is one file and one line here."""

from __future__ import annotations

from owngpt.errors import ModelFolderError
from owngpt.formats.gguf.gemma3 import Gemma3
from owngpt.formats.gguf.gpt2 import GPT2
from owngpt.formats.gguf.gpt_neox import GPTNeoX
from owngpt.formats.gguf.gpt_oss import GPTOSS
from owngpt.formats.gguf.layout import Architecture
from owngpt.formats.gguf.llama_like import Llama, Qwen2, Qwen3

ARCHITECTURES: tuple[Architecture, ...] = (Llama(), Qwen2(), Qwen3(), GPT2(), GPTNeoX(), Gemma3(), GPTOSS())


def architecture_named(name: str) -> Architecture:
    """The architecture of a file's ``general.architecture``.

    :raises ModelFolderError: it is not one of ours.
    """
    for architecture in ARCHITECTURES:
        if architecture.name == name:
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise ModelFolderError(f"the GGUF architecture {name[:60]!r} is not implemented; these are: {known}")


def architecture_for(model_type: str) -> Architecture:
    """The architecture that holds models of a config.json's ``model_type``.

    :raises ModelFolderError: llama.cpp has none.
    """
    for architecture in ARCHITECTURES:
        if model_type in architecture.model_types:
            return architecture
    known = ", ".join(name for architecture in ARCHITECTURES for name in architecture.model_types)
    raise ModelFolderError(f"llama.cpp does not run models of the layout {model_type}, so that there is no GGUF of them; "
                           f"it runs: {known}; export this one as --format hf")  # fmt: skip
