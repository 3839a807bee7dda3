"""The tokenizer: text to token ids and back, over the `tokenizers` library and its `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import tokenizers

from owngpt.config.json_files import read_bounded, read_json_object
from owngpt.errors import ModelFolderError, StorageError, UsageError
from owngpt.text.characters import WholeCharacters
from owngpt.text.special import END_OF_TEXT_NAMES, PADDING_NAMES, SPLIT_PATTERN, TURN_END_NAMES
from owngpt.text.stream import (
    BytesDecoder,
    StreamDecoder,
    WindowDecoder,
    byte_fallback_bytes,
    byte_level_bytes,
    sentence_piece_bytes,
)
from owngpt.text.templates import read_templates, template_files
from owngpt.text.vocabulary_files import holds_vocabulary, read_vocabulary

Kind = Literal["bpe", "byte", "char", "other"]

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
MAXIMUM_FILE_BYTES = 256 * 2**20
"""The largest published tokenizers have about 35 MB; more is not a tokenizer."""
MAXIMUM_SETTINGS_BYTES = 64 << 20
PART_CHARACTERS = 1 << 18
"""A longer text is encoded in parts of about this many characters, so that every core has some."""
SLICE_CHARACTERS = 1 << 22
"""Characters encoded at a time: the library keeps some 100 bytes a token until their ids are taken."""

BYTES_OF_TOKEN: dict[str, Callable[[str], bytes]] = {
    "ByteLevel": byte_level_bytes, "ByteFallback": byte_fallback_bytes, "SentencePiece": sentence_piece_bytes,
}  # fmt: skip
"""The bytes that a token stands for, by how its text is found."""
FUSE = {"type": "Fuse"}
DROP_FIRST_BLANK = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
BLANK_SYMBOL = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}


class Tokenizer:
    """Text to ids and back. ``decode(encode(text)) == text`` for every text, for the kinds that we train."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        settings: dict[str, Any] | None = None,
        chat_template: str | None = None,
        named_chat_templates: Mapping[str, str] | None = None,
    ) -> None:
        """Wrap a `tokenizers` object.

        :param settings: the content of ``tokenizer_config.json``: which tokens begin and end a text, among others.
        :param chat_template: Jinja source that lays out a conversation, if the model has one.
        :param named_chat_templates: others for special uses, such as "tool_use" and "rag".
        """
        self._with_special = backend
        backend.no_padding()
        backend.no_truncation()
        # A second view of the same vocabulary in which the text of a special token is only text: what a user types or
        # a file holds must never become a control token by accident.
        self._plain = _second_view(backend)
        self._plain.encode_special_tokens = True
        self.settings: dict[str, Any] = dict(settings or {})
        self.chat_template = chat_template
        self.named_chat_templates = dict(named_chat_templates or {})

    # Loading and saving

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Open a folder that holds a ``tokenizer.json``, or such a file itself, or GPT-2's ``vocab.json`` and ``merges.txt``.

        :raises ModelFolderError: it is missing, too large or not a tokenizer.
        """
        path = Path(path)
        folder, file = (path, path / TOKENIZER_FILE) if path.is_dir() else (path.parent, path)
        settings = _read_settings(folder)
        if not file.is_file() and path.is_dir() and holds_vocabulary(folder):
            backend = read_vocabulary(folder, settings)
        else:
            backend = _read_backend(file)
        default, named = read_templates(folder, settings.pop("chat_template", None))
        return cls(backend, settings=settings, chat_template=default, named_chat_templates=named)

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``tokenizer.json``, ``tokenizer_config.json`` and, if there are any, the chat templates.

        :returns: the files written. transformers' ``AutoTokenizer`` opens the folder and gives the same ids.
        """
        folder = Path(folder)
        contents = {
            TOKENIZER_FILE: self._with_special.to_str(pretty=True),
            SETTINGS_FILE: json.dumps(self._settings_to_save(), ensure_ascii=False, indent=2) + "\n",
        }
        contents.update(template_files(self.chat_template, self.named_chat_templates))
        try:
            for name in contents:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                (folder / name).write_text(content, encoding="utf-8", newline="")
        except OSError as error:
            raise StorageError(f"cannot write the tokenizer to {folder}: {error.strerror}; choose another folder") from error
        return [folder / name for name in contents]

    def with_chat_template(self, source: str | None) -> Tokenizer:
        """The same tokenizer with another chat template."""
        return Tokenizer(
            _second_view(self._with_special),
            settings=self.settings,
            chat_template=source,
            named_chat_templates=self.named_chat_templates,
        )

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The library's own object, which reads the text of special tokens as those tokens. Not to be changed."""
        return self._with_special

    def _settings_to_save(self) -> dict[str, Any]:
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self.settings}
        for name, token_id in (
            ("bos_token", self.begin_of_text_id), ("eos_token", self._find_end_of_text()), ("pad_token", self._find_padding()),
        ):  # fmt: skip
            if name not in settings and token_id is not None:
                settings[name] = self.token(token_id)
        return settings

    # Encoding

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text; nothing is added around it.

        :param special: read the text of special tokens ("<|im_start|>") as those tokens. Never for untrusted text.
        """
        if not special:
            return self.encode_batch([text])[0]
        return self._with_special.encode(_checked(text), add_special_tokens=False).ids

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text that a model is to go on with, after the token that its maker begins every text with, if any.

        The ids are those of transformers, except that the text of special tokens is only text.
        """
        return self._plain.encode(_checked(text)).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, on all cores; special tokens in the texts are only text."""
        results: list[list[int]] = [[] for _ in texts]
        for owners, parts in self._slices(texts):
            encodings = self._plain.encode_batch_fast(parts, add_special_tokens=False)
            for owner, encoding in zip(owners, encodings, strict=True):
                results[owner] = results[owner] + encoding.ids if results[owner] else encoding.ids
        return results

    def _slices(self, texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
        """Texts, long ones in parts, gathered into slices of bounded size; with each part the index of its text."""
        owners: list[int] = []
        parts: list[str] = []
        size = 0
        for index, text in enumerate(texts):
            for part in self._parts(_checked(text)):
                owners.append(index)
                parts.append(part)
                size += len(part)
                if size >= SLICE_CHARACTERS:
                    yield owners, parts
                    owners, parts, size = [], [], 0
        if parts:
            yield owners, parts

    def _parts(self, text: str) -> Iterator[str]:
        if len(text) <= 2 * PART_CHARACTERS or not self._splits_at_lines:
            yield text
            return
        start = 0
        while len(text) - start > 2 * PART_CHARACTERS:
            cut = _line_start(text, start + PART_CHARACTERS)
            if cut is None:
                break
            yield text[start:cut]
            start = cut
        yield text[start:]

    # Decoding

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of the ids; bytes that are not UTF-8 become U+FFFD, ids outside of the vocabulary are left out."""
        if self._decoder in (
            "ByteFallback",
            "SentencePiece",
        ):  # the library would lose a whole run of bytes for one that is broken
            stream = self.stream(skip_special)
            return "".join(map(stream.push, ids)) + stream.finish()
        return self._with_special.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self, skip_special: bool = True) -> StreamDecoder:
        """A decoder that takes ids one at a time and hands out whole characters only."""
        bytes_of_token = BYTES_OF_TOKEN.get(self._decoder)
        if bytes_of_token is None:
            return WindowDecoder(lambda ids: self.decode(ids, skip_special))
        hidden = self.special_id_set if skip_special else frozenset[int]()

        def bytes_of(token_id: int) -> bytes:
            token = None if token_id in hidden else self._with_special.id_to_token(token_id)
            return b"" if token is None else bytes_of_token(token)

        return BytesDecoder(bytes_of, drops_first_blank=self._drops_first_blank)

    def token(self, token_id: int) -> str:
        """The vocabulary's own spelling of a token.

        :raises UsageError: there is no such id.
        """
        token = self._with_special.id_to_token(token_id) if token_id >= 0 else None
        if token is None:
            raise UsageError(f"token id {token_id} is not in the vocabulary; ids run from 0 to {self.vocab_size - 1}")
        return token

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; of a special token, its name."""
        token = self.token(token_id)
        if self._decoder in BYTES_OF_TOKEN:
            return BYTES_OF_TOKEN[self._decoder](token)
        return self.decode([token_id], skip_special=False).encode("utf-8")

    # What it is

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token, added ones included, and its id."""
        return self._with_special.get_vocab(with_added_tokens=True)

    @cached_property
    def vocab_size(self) -> int:
        """Number of ids, special ones included: the least number of embedding rows."""
        return max(self.vocabulary.values(), default=-1) + 1

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Special tokens and their ids."""
        added = self._with_special.get_added_tokens_decoder()
        return {token.content: index for index, token in sorted(added.items()) if token.special}

    @cached_property
    def special_id_set(self) -> frozenset[int]:
        """Ids of the special tokens."""
        return frozenset(self.special_ids.values())

    @cached_property
    def whole_characters(self) -> WholeCharacters | None:
        """Which tokens may follow where a character has begun; None where every token is text by itself."""
        if self._decoder not in BYTES_OF_TOKEN:
            return None
        spelling, bytes_of = self._with_special.id_to_token, BYTES_OF_TOKEN[self._decoder]
        return WholeCharacters(self.vocabulary, spelling, bytes_of, self.special_id_set)

    @cached_property
    def end_of_text_id(self) -> int:
        """Id of the token that ends a document.

        :raises ModelFolderError: the tokenizer has none (GPT-1's has none).
        """
        token_id = self._find_end_of_text()
        if token_id is None:
            raise ModelFolderError(f"this tokenizer has no end-of-text token; set eos_token in its {SETTINGS_FILE}")
        return token_id

    @cached_property
    def padding_id(self) -> int:
        """Id of the padding token; the end of text where a tokenizer of others has no other."""
        token_id = self._find_padding()
        return self.end_of_text_id if token_id is None else token_id

    @cached_property
    def begin_of_text_id(self) -> int | None:
        """Id of the token that starts a document, None if there is none; in our tokenizers it is the end of text."""
        return self._named("bos_token", ())

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a generation: the end of text and the end of a turn, whichever the vocabulary has."""
        ends = {self._find_end_of_text(), *(self.special_ids.get(name) for name in TURN_END_NAMES)}
        return frozenset(token_id for token_id in ends if token_id is not None)

    @cached_property
    def kind(self) -> Kind:
        """One of "bpe" (byte-level), "byte", "char", or "other" (made elsewhere, by other rules)."""
        model = self.description["model"]
        if model.get("type") != "BPE":
            return "other"
        if self._decoder == "ByteLevel":
            return "bpe" if model["merges"] else "byte"
        return "char" if self._decoder == "ByteFallback" and not model["merges"] else "other"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of the canonical ``tokenizer.json``: equal for equal tokenizers only."""
        canonical = json.dumps(self.description, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    @cached_property
    def description(self) -> dict[str, Any]:
        """The content of ``tokenizer.json``; not to be changed."""
        description: dict[str, Any] = json.loads(self._with_special.to_str())
        return description

    @cached_property
    def _decoder(self) -> str:
        """How a token's bytes are found, if they are fixed: "ByteLevel", "ByteFallback" or "SentencePiece"; else ""."""
        steps = [step for step in self._decoding_steps if step not in (FUSE, DROP_FIRST_BLANK)]
        if steps[:1] == [BLANK_SYMBOL] and [step.get("type") for step in steps[1:]] == ["ByteFallback"]:
            return "SentencePiece"
        name = str(steps[0].get("type")) if len(steps) == 1 else ""
        return name if name in BYTES_OF_TOKEN and not self._drops_first_blank else ""

    @cached_property
    def _drops_first_blank(self) -> bool:
        """Whether decoding takes a blank off the start of the text."""
        return self._decoding_steps[-2:] == [FUSE, DROP_FIRST_BLANK]

    @cached_property
    def _decoding_steps(self) -> list[dict[str, Any]]:
        decoder = self.description.get("decoder") or {}
        steps: list[dict[str, Any]] = decoder.get("decoders", []) if decoder.get("type") == "Sequence" else [decoder]
        return steps

    @cached_property
    def _splits_at_lines(self) -> bool:
        """Whether cutting a text before a line that starts with a visible character leaves its tokens unchanged."""
        if self.description.get("normalizer") is not None:
            return False
        if self.kind in ("byte", "char"):
            return True
        before = self.description.get("pre_tokenizer") or {}
        splits = [step for step in before.get("pretokenizers", []) if step.get("type") == "Split"]
        return self.kind == "bpe" and [step["pattern"].get("Regex") for step in splits] == [SPLIT_PATTERN]

    def _named(self, setting: str, fallbacks: Sequence[str]) -> int | None:
        value = self.settings.get(setting)
        name = value.get("content") if isinstance(value, dict) else value
        for candidate in (name,) if name is not None else fallbacks:
            token_id = self._with_special.token_to_id(candidate)
            if token_id is not None:
                return token_id
        return None

    def _find_end_of_text(self) -> int | None:
        return self._named("eos_token", END_OF_TEXT_NAMES)

    def _find_padding(self) -> int | None:
        return self._named("pad_token", PADDING_NAMES)

    def __repr__(self) -> str:
        return f"Tokenizer(kind={self.kind!r}, vocab_size={self.vocab_size})"


def _checked(text: str) -> str:
    """A text that UTF-8 can hold; Python strings may carry half a character (a lone surrogate)."""
    if not isinstance(text, str):
        raise UsageError(f"a tokenizer takes a str, not {type(text).__name__}; decode bytes as UTF-8 first")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(
            f"the text holds half a character (U+{ord(text[error.start]):04X} at {error.start}); read it with errors='replace'"
        ) from None
    return text


def _line_start(text: str, position: int) -> int | None:
    """First index after ``position`` where a line starts with a visible character, None if there is none."""
    while (newline := text.find("\n", position)) >= 0:
        position = newline + 1
        if position < len(text) and not text[position].isspace():
            return position
    return None


def _second_view(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same tokenizer with its own switches. It shares the vocabulary, which takes a quarter of a second to read again."""
    view = tokenizers.Tokenizer(backend.model)
    for step in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if getattr(backend, step) is not None:
            setattr(view, step, getattr(backend, step))
    added = backend.get_added_tokens_decoder()
    # In runs, since each call builds the search for all of them anew: 6,249 calls took Gemma's vocabulary 14 seconds.
    for special, run in groupby((token for _, token in sorted(added.items())), key=attrgetter("special")):
        (view.add_special_tokens if special else view.add_tokens)(list(run))
    if view.get_added_tokens_decoder() == added:
        return view
    return tokenizers.Tokenizer.from_str(backend.to_str())  # ids with gaps, which adding one by one would close


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    if not file.is_file():
        raise ModelFolderError(f"{file} does not exist; a tokenizer is a folder with a {TOKENIZER_FILE}, or that file itself")
    content = read_bounded(file, MAXIMUM_FILE_BYTES)
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception
        raise ModelFolderError(f"{file} is not a {TOKENIZER_FILE} that can be read: {error}") from error


def _read_settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", SETTINGS_FILE):  # the older file first: the newer one wins
        file = folder / name
        if file.is_file():
            settings.update(read_json_object(file, MAXIMUM_SETTINGS_BYTES))
    return settings


def holds_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return (folder / TOKENIZER_FILE).is_file() or holds_vocabulary(folder)


class NoTokenizer(Tokenizer):
    """In place of a tokenizer that a model folder does not have: its logits can be looked at, and text is refused."""

    def __init__(self, folder: Path) -> None:
        super().__init__(tokenizers.Tokenizer(tokenizers.models.BPE()))
        self._folder = folder

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise ModelFolderError(
            f"{self._folder} has no {TOKENIZER_FILE}, so the model knows no text; "
            "copy the one that it was trained with into the folder"
        )

    encode = encode_batch = encode_prompt = decode = stream = save = _refuse
