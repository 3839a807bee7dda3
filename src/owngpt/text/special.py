"""What every vocabulary of ours agrees on: its special tokens, reserved from the start, and how text is cut.

Reserving them before training means that a base model can later learn to chat, to call tools or to fill in the middle
without its embedding being resized. The names are the ones of ChatML and of Qwen, which most servers already know.
"""

from __future__ import annotations

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|pad|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
FILL_PREFIX = "<|fim_prefix|>"
FILL_MIDDLE = "<|fim_middle|>"
FILL_SUFFIX = "<|fim_suffix|>"
FILL_PADDING = "<|fim_pad|>"

NAMED_TOKENS = (END_OF_TEXT, PADDING, TURN_START, TURN_END, FILL_PREFIX, FILL_MIDDLE, FILL_SUFFIX, FILL_PADDING)
RESERVED_COUNT = 16
"""How many ids, from 0 on, are special."""
SPECIAL_TOKENS = NAMED_TOKENS + tuple(f"<|reserved_{index}|>" for index in range(RESERVED_COUNT - len(NAMED_TOKENS)))

END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
"""Looked for, in this order, in a tokenizer whose settings do not say what ends a text."""
PADDING_NAMES = (PADDING, "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
TURN_END_NAMES = (TURN_END, "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<|call|>")
"""What ends an assistant's turn, by family."""

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is cut before merging: Qwen2's pattern, which llama.cpp knows as "qwen2", so a GGUF needs no patch."""
