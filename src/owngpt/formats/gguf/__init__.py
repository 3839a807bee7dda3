"""GGUF, the one-file format of llama.cpp and Ollama, in and out."""

from owngpt.formats.gguf.reader import load_gguf, load_gguf_config
from owngpt.formats.gguf.writer import save_gguf

__all__ = ["load_gguf", "load_gguf_config", "save_gguf"]
