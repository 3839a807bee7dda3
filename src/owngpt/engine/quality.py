"""How much each kind of quantized weights costs a model: the rise of its perplexity on a text that every copy of OwnGPT has.

What was found is kept in the user's cache folder under a fingerprint of the weights, so that it is measured once for a model.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from owngpt.engine import records
from owngpt.engine.packing import requantized
from owngpt.engine.paged import BLOCK, PagedContext, PagedMemory, Segment
from owngpt.formats.adapted import stack_of
from owngpt.formats.folder import CONFIG_FILE
from owngpt.formats.peft import CONFIG_FILE as ADAPTER_FILE
from owngpt.kernels.packed import Kind
from owngpt.kernels.tape import BufferPool, Tape
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

MOST_RISE = 0.01
"""Of the perplexity, for quantized weights to be chosen by themselves."""
FASTEST_FIRST: tuple[Kind, ...] = ("int4", "int8")
KINDS: tuple[Kind, ...] = ("bf16", *FASTEST_FIRST)
WINDOW = 256
"""Tokens that are scored in one piece."""
TEXT_FILE = Path(__file__).parent / "quality.txt"
SAMPLE_BYTES = 1 << 16
TOPIC = "quality-5"
"""Of the records; the number rises whenever quantized weights or their products change, and what was measured does not hold."""


@dataclass(frozen=True)
class Quality:
    """What was measured for one model."""

    model: str
    """Its shape in words."""
    tokens: int
    perplexity: dict[Kind, float]
    """Of each kind of weights, on the built-in text."""
    chosen: Kind
    """The fastest kind whose perplexity rises by less than :data:`MOST_RISE`."""

    def rise(self, kind: Kind) -> float:
        """Of the perplexity, as a fraction of that in bfloat16."""
        return self.perplexity[kind] / self.perplexity["bf16"] - 1

    @property
    def reason(self) -> str:
        """The choice in words."""
        rises = ", ".join(f"{kind} {self.rise(kind):+.2%}" for kind in FASTEST_FIRST if kind in self.perplexity)
        return f"perplexity rises by: {rises}"


# Measuring


def text_ids(tokenizer: Tokenizer) -> list[int]:
    """The built-in text, English, Chinese and a program, in a model's tokens."""
    return tokenizer.encode(TEXT_FILE.read_text(encoding="utf-8"))


def losses(model: GPT, token_ids: list[int]) -> Iterator[Tensor]:
    """The loss in nats of each token but a window's first, window by window, of a packed model."""
    size = min(WINDOW, model.config.context_length)
    memory = PagedMemory(model.config, 1 + -(-size // BLOCK))
    pool = BufferPool()
    for start in range(0, len(token_ids) - 1, size):
        ids = torch.tensor([token_ids[start : start + size]])
        if ids.shape[1] < 2:
            return
        context = PagedContext(model.config, memory, ids.shape[1], 1, memory.blocks - 1)
        context.fill([Segment(0, ids.shape[1], range(1, memory.blocks))])
        tape = Tape(pool)
        with tape.record(guarded=False):
            hidden = model(ids, context)
            logits = model.embedding.project(hidden) if model.output_head is None else model.output_head(hidden)
        tape.run()
        yield cross_entropy(logits[0, :-1] + (0 if model.head_bias is None else model.head_bias), ids[0, 1:], reduction="none")


def measure(model: GPT, tokenizer: Tokenizer, *, wait: Callable[[], None] = lambda: None) -> Quality:
    """Score a model that is packed in bfloat16, and what it would be with quantized weights.

    :param wait: called before each piece of work, a fraction of a second for a small model; it may wait.
    """
    token_ids = text_ids(tokenizer)
    perplexity: dict[Kind, float] = {}
    for kind in KINDS:
        wait()
        other = model if kind == "bf16" else requantized(model, kind)
        found = []
        with torch.inference_mode():
            for piece in losses(other, token_ids):
                found.append(piece)
                wait()
        perplexity[kind] = math.exp(min(float(torch.cat(found).double().mean()), 700.0))
    chosen: Kind = next((kind for kind in FASTEST_FIRST if perplexity[kind] < (1 + MOST_RISE) * perplexity["bf16"]), "bf16")
    config = model.config
    shape = f"{config.layers} layers x {config.hidden_size}, vocabulary {config.vocab_size:,}"
    return Quality(shape, len(token_ids), perplexity, chosen)


# Remembering


def file_key(path: Path, adapter: Path | None = None) -> str:
    """A fingerprint of a model's weights, those of adapters too: sizes, and the bytes at the beginning and end of each file."""
    stack = stack_of(path, adapter)
    digest = _digest()
    for file in (file for place in (stack.base, *stack.adapters) for file in _weight_files(place)):
        size = file.stat().st_size
        digest.update(str(size).encode())
        with file.open("rb") as stream:
            digest.update(stream.read(SAMPLE_BYTES))
            stream.seek(max(0, size - SAMPLE_BYTES))
            digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:24]


def _weight_files(path: Path) -> list[Path]:
    patterns = ("*.safetensors", "*.gguf", CONFIG_FILE, ADAPTER_FILE)
    return [path] if path.is_file() else sorted(file for pattern in patterns for file in path.glob(pattern))


def model_key(model: GPT) -> str:
    """A fingerprint of a model in memory: its configuration, and some rows of every matrix."""
    digest = _digest()
    digest.update(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        rows = parameter.detach()[:2]
        digest.update(rows.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:24]


def recall(key: str) -> Quality | None:
    """What was measured for a model before, or None."""
    values = records.recall(TOPIC, key)
    try:
        perplexity = {kind: float(values["perplexity"][kind]) for kind in KINDS}
        if values["chosen"] not in perplexity or not all(math.isfinite(value) and value > 0 for value in perplexity.values()):
            return None
        return Quality(str(values["model"]), int(values["tokens"]), perplexity, values["chosen"])
    except (KeyError, TypeError, ValueError):
        return None


def remember(key: str, quality: Quality) -> None:
    """Keep what was measured."""
    records.keep(TOPIC, key, asdict(quality))


def remembered() -> list[Quality]:
    """Everything that was measured on this machine."""
    found = [recall(file.stem) for file in sorted(records.folder(TOPIC).glob("*.json"))]
    return [quality for quality in found if quality is not None]


def _digest() -> hashlib._Hash:
    """Another text is another measurement."""
    return hashlib.sha256(TEXT_FILE.read_bytes())
