"""Examples as the model will learn them, for a person to look at: what is read, what is learned, and the ids of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from owngpt.finetune.examples.example import Example, Labelled, Preference
from owngpt.finetune.rendering.renderer import Renderer
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.text.tokenizer import Tokenizer

LEARNED_STYLE, READ_STYLE = "bold green", "dim cyan"
BRACKETS, PLAIN_BRACKETS = ("⟦", "⟧"), ("[[", "]]")
"""Around what is learned, where there is no colour; the second pair for terminals that know ASCII only."""
LINE_END = "↵"


@dataclass(frozen=True)
class Piece:
    """Neighbouring tokens that are all learned, or all only read."""

    text: str
    learned: bool
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class ShownExample:
    """An example with everything that is made of it."""

    origin: str
    titles: tuple[str, ...]
    """What each sequence is."""
    sequences: tuple[tuple[Piece, ...], ...]
    prompt_ids: tuple[int, ...]
    """What serving reads before the last answer, or the text where nothing is answered."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        sequences = [
            {"title": title, "pieces": [{**asdict(piece), "token_ids": list(piece.token_ids)} for piece in sequence]}
            for title, sequence in zip(self.titles, self.sequences, strict=True)
        ]
        return {"origin": self.origin, "sequences": sequences, "serving_reads": list(self.prompt_ids)}


def shown(example: Example, renderer: Renderer) -> ShownExample:
    """Everything that is made of an example.

    :raises DataError: it cannot be rendered.
    """
    encoded = renderer.encode(example)
    return ShownExample(
        str(example.origin),
        _titles(example, encoded),
        tuple(tuple(pieces(sequence, renderer.tokenizer)) for sequence in encoded),
        tuple(renderer.prompt_ids(example)),
    )


def print_examples(examples: Iterable[ShownExample], console: Console | None = None) -> None:
    """Print examples, learned and masked tokens in two colours; without colour, what is learned stands in brackets."""
    console = console or Console()
    brackets = _brackets(console)
    console.print(_legend(brackets))
    for example in examples:
        for title, sequence in zip(example.titles, example.sequences, strict=True):
            count, learned = (sum(len(piece.token_ids) for piece in part) for part in (sequence, _learned(sequence)))
            heading = f"{visible(example.origin)}, {title}: {count:,} tokens, {learned:,} learned"
            console.print(Rule(Text(_encodable(heading, console)), align="left"))
            console.print(_coloured(sequence, brackets, console), soft_wrap=True)
        console.print(Text(f"ids that serving reads before it answers ({len(example.prompt_ids):,}):", style="italic"))
        console.print(Text(" ".join(map(str, example.prompt_ids)), style=READ_STYLE), soft_wrap=True)
        ids = [str(token_id) for piece in _learned(example.sequences[-1]) for token_id in piece.token_ids]
        if ids and len(example.sequences) == 1:
            console.print(Text(f"ids that are learned ({len(ids):,}):", style="italic"))
            console.print(Text(" ".join(ids), style=LEARNED_STYLE), soft_wrap=True)


def pieces(encoded: Encoded, tokenizer: Tokenizer) -> Iterator[Piece]:
    """A sequence in stretches of one kind. A character of several tokens stands where its last token does."""
    stream = tokenizer.stream(skip_special=False)
    tokens = [(int(token_id), bool(learned)) for token_id, learned in zip(encoded.token_ids, encoded.learned, strict=True)]
    texts = [stream.push(token_id) for token_id, _ in tokens]
    if texts:
        texts[-1] += stream.finish()
    for learned, group in groupby(zip(tokens, texts, strict=True), key=lambda pair: pair[0][1]):
        members = list(group)
        yield Piece("".join(text for _, text in members), learned, tuple(token[0] for token, _ in members))


def visible(text: str) -> str:
    """A text without characters that would upset a terminal; the ends of lines are marked."""
    shown = (character if character.isprintable() or character == "\n" else ascii(character)[1:-1] for character in text)
    return "".join(shown).replace("\n", f"{LINE_END}\n")


def _titles(example: Example, encoded: Sequence[Encoded]) -> tuple[str, ...]:
    if isinstance(example, Preference):
        return "chosen", "rejected"
    if isinstance(example, Labelled):
        return (f"label {visible(example.label)}",)
    if len(encoded) == 1:
        return (type(example).__name__.lower(),)
    return tuple(f"chat, as the template shows it for answer {index + 1} of {len(encoded)}" for index in range(len(encoded)))


def _learned(sequence: Sequence[Piece]) -> list[Piece]:
    return [piece for piece in sequence if piece.learned]


def _brackets(console: Console) -> tuple[str, str] | None:
    """None where colours tell the pieces apart."""
    if console.color_system is not None and not console.no_color:
        return None
    return BRACKETS if _encodable("".join(BRACKETS), console) == "".join(BRACKETS) else PLAIN_BRACKETS


def _encodable(text: str, console: Console) -> str:
    """The text with escapes in place of what the terminal's encoding does not have."""
    return text.encode(console.encoding, "backslashreplace").decode(console.encoding)


def _legend(brackets: tuple[str, str] | None) -> Text:
    if brackets:
        return Text(f"In {brackets[0]}brackets{brackets[1]}: what is learned. Everything else is only read.")
    return Text("Learned", style=LEARNED_STYLE).append(" and ", style="default").append("only read", style=READ_STYLE)


def _coloured(sequence: Sequence[Piece], brackets: tuple[str, str] | None, console: Console) -> Text:
    text = Text()
    for piece in sequence:
        content = _encodable(visible(piece.text), console)
        if piece.learned and brackets:
            content = f"{brackets[0]}{content}{brackets[1]}"
        text.append(content, style=LEARNED_STYLE if piece.learned else READ_STYLE)
    return text
