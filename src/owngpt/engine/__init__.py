"""Inference: a key-value cache, a sampler, and the loop that writes text with them."""

from __future__ import annotations
