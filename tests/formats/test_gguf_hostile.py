"""A truncated or hostile GGUF file is refused quickly, with one sentence, before anything large is allocated."""

from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from owngpt.errors import OwnGPTError
from owngpt.formats.gguf import load_gguf, save_gguf
from owngpt.formats.gguf.header import read_header
from owngpt.formats.gguf.quantization import QUANTIZED, dequantize
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.training import train_tokenizer

TOKENIZER = train_tokenizer([], kind="byte")
CONFIG = GPTConfig(
    vocab_size=288, context_length=64, hidden_size=32, layers=2, heads=2, key_value_heads=1, head_size=16, intermediate_size=64
)
MOST_BYTES = 64 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good file."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    save_gguf(path, GPT(CONFIG, generator=torch.Generator().manual_seed(1)), TOKENIZER, dtype="q8_0")
    return path.read_bytes()


def refused(content: bytes, path: Path) -> str:
    """The message with which a file is refused; it must come soon and cheaply."""
    path.write_bytes(content)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(OwnGPTError) as caught:
            load_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < 10
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def file_of(tensors: list[bytes], keys: list[bytes], data: int = 256, version: int = 3, magic: bytes = b"GGUF") -> bytes:
    head = magic + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + b"\0" * data


def test_the_good_file_is_good(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.gguf").write_bytes(whole)
    assert load_gguf(tmp_path / "good.gguf")[0].config.layers == 2


def test_a_file_cut_anywhere_is_refused(whole: bytes, tmp_path: Path) -> None:
    head = len(whole) - sum(-(-item.size // 32) * 32 for item in _tensors(whole, tmp_path))
    cuts = {0, 1, 3, 4, 8, 23, 24, 25, 100, head - 1, head, head + 1, len(whole) - 33, *range(0, len(whole), len(whole) // 60)}
    for cut in sorted(cuts):
        refused(whole[:cut], tmp_path / "cut.gguf")


def _tensors(content: bytes, folder: Path) -> list:  # type: ignore[type-arg]
    (folder / "whole.gguf").write_bytes(content)
    return list(read_header(folder / "whole.gguf").tensors.values())


ARCHITECTURE = key("general.architecture", 8, string("llama"))
HUGE = 2**63
HOSTILE: dict[str, tuple[bytes, str]] = {
    "wrong magic": (file_of([], [ARCHITECTURE], magic=b"GGML"), 'start with "GGUF"'),
    "version 1": (file_of([], [ARCHITECTURE], version=1), "version is 1"),
    "big-endian": (file_of([], [ARCHITECTURE], version=3 << 24), "big-endian"),
    "tensor count": (b"GGUF" + struct.pack("<IQQ", 3, HUGE, 1) + ARCHITECTURE, "tensors; at most"),
    "key count": (b"GGUF" + struct.pack("<IQQ", 3, 0, HUGE) + ARCHITECTURE, "keys; at most"),
    "key length": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, HUGE) + b"x" * 64, "bytes; at most"),
    "string length": (file_of([], [key("a", 8, struct.pack("<Q", HUGE))]), "bytes; at most"),
    "string past the end": (file_of([], [key("a", 8, struct.pack("<Q", 1 << 20))]), "past the end"),
    "array of strings": (file_of([], [key("a", 9, struct.pack("<IQ", 8, HUGE))]), "strings, more than fit"),
    "array of numbers": (file_of([], [key("a", 9, struct.pack("<IQ", 6, HUGE))]), "past the end"),
    "array of arrays": (file_of([], [key("a", 9, struct.pack("<IQ", 9, 1))]), "array of the type 9"),
    "array item past the end": (file_of([], [key("a", 9, struct.pack("<IQQ", 8, 1, 1 << 40))]), "past the end"),
    "type of a value": (file_of([], [key("a", 99, b"")]), "unknown type 99"),
    "not UTF-8": (file_of([], [key("a", 8, struct.pack("<Q", 2) + b"\xff\xfe")]), "UTF-8"),
    "key twice": (file_of([], [ARCHITECTURE, ARCHITECTURE]), "there twice"),
    "alignment": (file_of([], [ARCHITECTURE, key("general.alignment", 4, struct.pack("<I", 3))]), "power of two"),
    "alignment zero": (file_of([], [ARCHITECTURE, key("general.alignment", 4, struct.pack("<I", 0))]), "power of two"),
    "no dimensions": (file_of([tensor("t", ())], [ARCHITECTURE]), "0 dimensions"),
    "many dimensions": (file_of([string("t") + struct.pack("<I", 2**31)], [ARCHITECTURE]), "dimensions; 1 to 4"),
    "zero dimension": (file_of([tensor("t", (0, 4))], [ARCHITECTURE]), "which no model has"),
    "absurd dimension": (file_of([tensor("t", (HUGE, HUGE))], [ARCHITECTURE]), "which no model has"),
    "larger than the file": (file_of([tensor("t", (1 << 20, 1 << 10))], [ARCHITECTURE]), "ends at byte"),
    "type of a tensor": (file_of([tensor("t", (4,), kind=77)], [ARCHITECTURE]), "unknown type 77"),
    "no whole blocks": (file_of([tensor("t", (33,), kind=8)], [ARCHITECTURE]), "not a multiple of Q8_0's 32"),
    "offset past the end": (file_of([tensor("t", (4,), offset=1 << 40)], [ARCHITECTURE]), "ends at byte"),
    "offset off the grid": (file_of([tensor("t", (4,), offset=7)], [ARCHITECTURE]), "not a multiple of 32"),
    "overlap": (file_of([tensor("a", (16,)), tensor("b", (16,), offset=32)], [ARCHITECTURE]), "overlaps"),
    "tensor twice": (file_of([tensor("a", (4,)), tensor("a", (4,), offset=32)], [ARCHITECTURE]), "there twice"),
    "no architecture": (file_of([tensor("a", (4,))], []), "general.architecture"),
    "unknown architecture": (file_of([tensor("a", (4,))], [key("general.architecture", 8, string("x\nz"))]), "not implemented"),
    "nothing in it": (file_of([], [ARCHITECTURE]), "embedding_length is missing"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_head_is_refused(name: str, tmp_path: Path) -> None:
    content, message = HOSTILE[name]
    assert message in refused(content, tmp_path / "hostile.gguf")


def changed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1
    assert len(old) == len(new)
    return content.replace(old, new)


def integer(name: str, value: int) -> bytes:
    return key(f"qwen3.{name}", 4, struct.pack("<I", value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: changed(c, integer("block_count", 2), integer("block_count", 2**31)), "block_count"),
        (lambda c: changed(c, integer("block_count", 2), integer("block_count", 3)), "missing"),
        (lambda c: changed(c, integer("embedding_length", 32), integer("embedding_length", 2**31)), "wrong shape"),
        (lambda c: changed(c, integer("feed_forward_length", 64), integer("feed_forward_length", 2**31)), "wrong shape"),
        (lambda c: changed(c, integer("context_length", 64), integer("context_length", 2**31)), "max_position_embeddings"),
        (lambda c: changed(c, integer("attention.head_count", 2), integer("attention.head_count", 0)), "head_count"),
        (lambda c: changed(c, integer("attention.key_length", 16), integer("attention.key_length", 2**31)), "dimension_count"),
        (lambda c: changed(c, b"blk.1.attn_q.weight", b"blk.1.attn_Q.weight"), "not part of its model"),
        (lambda c: changed(c, string("tokenizer.ggml.pre"), string("tokenizer.ggml.prf")), "'default'"),
        (lambda c: changed(c, string("qwen3.vocab_size"), string("qwen3.vocab_sizf")), "vocab_sizf"),
    ],
)
def test_a_head_that_contradicts_its_tensors_is_refused(
    whole: bytes, change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    if message == "'default'":  # a file without the key cuts text as llama.cpp then does, which a byte vocabulary survives
        (tmp_path / "a.gguf").write_bytes(change(whole))
        assert load_gguf(tmp_path / "a.gguf")[1].encode("abc") == TOKENIZER.encode("abc")
    else:
        assert message in refused(change(whole), tmp_path / "hostile.gguf")


def test_random_damage_to_the_head_never_crashes(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    head = len(whole) - sum(-(-item.size // 32) * 32 for item in _tensors(whole, tmp_path))
    generator = random.Random(7)
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(generator.choice((1, 1, 2, 8))):
            content[generator.randrange(head)] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
        path.write_bytes(content)
        message = outcome(path)
        assert "\n" not in message


def outcome(path: Path) -> str:
    """The refusal; "" where the damage is one that nobody can see, in a name that nobody reads, say."""
    try:
        model, tokenizer, _ = load_gguf(path)
    except OwnGPTError as error:
        return str(error)
    assert tokenizer.vocab_size <= model.config.vocab_size
    return ""


@pytest.mark.parametrize("kind", QUANTIZED)
def test_unpacking_is_what_gguf_says(kind: GGMLQuantizationType) -> None:
    """Bit for bit, for scales that are numbers."""
    block, width = GGML_QUANT_SIZES[kind]
    generator = np.random.default_rng(3)
    blocks = generator.integers(0, 256, (5000, width), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(blocks, kind)
    found = dequantize(blocks.reshape(-1), kind, (5000, block)).numpy()
    assert np.array_equal(found, expected, equal_nan=True)
