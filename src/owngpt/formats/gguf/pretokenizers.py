"""How a byte-level vocabulary cuts text before merging. GGUF says it by a name for which llama.cpp has regular expressions.

Each name is given here as the steps of a `tokenizers` pipeline that cuts as the models' own tokenizer.json does.
A name that is not here is an error: another way to cut gives other tokens, and a model that only seems to work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, pre_tokenizers

from owngpt.errors import ModelFolderError
from owngpt.text.special import SPLIT_PATTERN

Step = tuple[str, ...]
"""("split", pattern), ("digits",), ("bytes", "words") for GPT-2's own cutting, or ("bytes",) for none."""

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
"""Without the last branch, for runs of space: what no branch takes is a piece of its own."""
LLAMA3_PATTERN = SPLIT_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
GPT4O_PATTERN = "|".join(
    (f"{_BEFORE}{_UPPER}*{_LOWER}+{_SUFFIX}", f"{_BEFORE}{_UPPER}+{_LOWER}*{_SUFFIX}", r"\p{N}{1,3}", _SIGNS)
)
TEKKEN_PATTERN = "|".join((f"{_BEFORE}{_UPPER}*{_LOWER}+", f"{_BEFORE}{_UPPER}+{_LOWER}*", r"\p{N}", _SIGNS))
_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|%s]+"
_DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """One way to cut, and what goes with its name."""

    name: str
    steps: tuple[Step, ...]
    whole_words: bool = False
    """A piece that is a token is that token, whatever the merges say (`ignore_merges`)."""
    nfc: bool = False
    """Its models' tokenizers compose characters first (Unicode NFC), which GGUF has no key for."""
    begins: bool = False
    """Whether llama.cpp puts the begin-of-text token first where the file does not say."""

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The pipeline."""
        return pre_tokenizers.Sequence([_built(step) for step in self.steps])


WORDS: Step = ("bytes", "words")
BYTES: Step = ("bytes",)
PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer("gpt-2", (WORDS,)),
    PreTokenizer("olmo", (WORDS,), nfc=True),  # GPT-NeoX and Pythia too: their tokenizer is the same
    PreTokenizer("mpt", (WORDS,), nfc=True),
    PreTokenizer("phi-2", (WORDS,)),
    PreTokenizer("smollm", (("digits",), WORDS)),
    PreTokenizer("starcoder", (("digits",), WORDS)),
    PreTokenizer("refact", (("digits",), WORDS)),
    PreTokenizer("codeshell", (("digits",), WORDS)),
    PreTokenizer("command-r", (("digits",), WORDS), nfc=True),
    PreTokenizer("llama-bpe", (("split", LLAMA3_PATTERN), BYTES), whole_words=True, begins=True),
    PreTokenizer("llama3", (("split", LLAMA3_PATTERN), BYTES), whole_words=True, begins=True),
    PreTokenizer("llama-v3", (("split", LLAMA3_PATTERN), BYTES), whole_words=True, begins=True),
    PreTokenizer("falcon3", (("split", LLAMA3_PATTERN), BYTES), whole_words=True, begins=True),
    PreTokenizer("dbrx", (("split", LLAMA3_PATTERN), BYTES)),
    PreTokenizer("smaug-bpe", (("split", LLAMA3_PATTERN), BYTES)),
    PreTokenizer("qwen2", (("split", SPLIT_PATTERN), BYTES), nfc=True),
    PreTokenizer("deepseek-r1-qwen", (("split", SPLIT_PATTERN), BYTES), nfc=True),
    PreTokenizer("gpt-4o", (("split", GPT4O_PATTERN), BYTES)),
    PreTokenizer("tekken", (("split", TEKKEN_PATTERN), BYTES), whole_words=True, begins=True),
    PreTokenizer(
        "deepseek-v3",
        (("split", r"\p{N}{1,3}"), ("split", "[一-龥぀-ゟ゠-ヿ]+"), ("split", _DEEPSEEK_WORDS), BYTES),
    ),
    PreTokenizer(
        "falcon", (("split", _PUNCTUATION % "`"), ("split", GPT2_PATTERN), ("split", "[0-9][0-9][0-9]"), BYTES)
    ),
    PreTokenizer(
        "default",
        (("split", _PUNCTUATION % ""), ("split", GPT2_PATTERN), ("split", r"\p{N}+"), ("split", "[0-9][0-9][0-9]"), BYTES),
    ),
)  # fmt: skip
"""As llama.cpp's src/llama-vocab.cpp has them; where several names cut alike, the first is the one that is written."""


def pre_tokenizer_named(name: str) -> PreTokenizer:
    """The way to cut that goes by this name.

    :raises ModelFolderError: it is not one of ours.
    """
    for entry in PRE_TOKENIZERS:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in PRE_TOKENIZERS)
    raise ModelFolderError(
        f"the GGUF pre-tokenizer {name[:60]!r} is not implemented, and another would give other tokens; these are: {known}"
    )


def pre_tokenizer_of(steps: tuple[Step, ...] | None, *, whole_words: bool, nfc: bool) -> PreTokenizer:
    """The way to cut that a tokenizer.json describes, by the name that its model's maker would give it.

    :param steps: see :func:`steps_of`.
    :raises ModelFolderError: llama.cpp has no name for it.
    """
    fitting = [entry for entry in PRE_TOKENIZERS if entry.steps == steps and entry.whole_words == whole_words]
    if not fitting:
        known = ", ".join(entry.name for entry in PRE_TOKENIZERS)
        raise ModelFolderError(
            f"llama.cpp has no name for the way in which this tokenizer cuts text, so that no GGUF can hold it; "
            f"it knows, among others, {known}; export the model as --format hf"
        )
    return next((entry for entry in fitting if entry.nfc == nfc), fitting[0])


def steps_of(description: dict[str, Any] | None) -> tuple[Step, ...] | None:
    """The steps of a tokenizer.json's ``pre_tokenizer``; None for one that has others than ours."""
    if description is None:
        return None
    parts = description["pretokenizers"] if description["type"] == "Sequence" else [description]
    steps = [_step(part) for part in parts]
    return None if None in steps else tuple(step for step in steps if step is not None)


def _step(part: dict[str, Any]) -> Step | None:
    kind = part["type"]
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return WORDS if part.get("use_regex", True) else BYTES
    if kind == "Digits" and part["individual_digits"]:
        return ("digits",)
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"] and "Regex" in part["pattern"]:
        return ("digits",) if part["pattern"]["Regex"] == r"\p{N}" else ("split", part["pattern"]["Regex"])
    return None


def _built(step: Step) -> pre_tokenizers.PreTokenizer:
    if step[0] == "split":
        return pre_tokenizers.Split(Regex(step[1]), "isolated")
    if step[0] == "digits":
        return pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step == WORDS)
