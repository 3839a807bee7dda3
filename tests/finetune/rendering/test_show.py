"""What is learned can be seen, with colours and without, and so can the ids that serving reads."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from owngpt.finetune.examples.example import Chat, Labelled, Origin, PlainText, Preference
from owngpt.finetune.rendering.renderer import Renderer
from owngpt.finetune.rendering.show import ShownExample, pieces, print_examples, shown
from owngpt.text.conversation import encode_chat
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

ORIGIN = Origin("a.jsonl", 3)
CHAT = Chat(
    (
        {"role": "user", "content": "Hi 猫"},
        {"role": "assistant", "content": "Hel\x1b[31mlo 🙂\nyou"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you"},
    ),
    ORIGIN,
)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    tokenizer: Tokenizer = train_tokenizer(["The cat sat on the mat. " * 20], vocab_size=300)
    return Renderer(tokenizer, labels=["bad", "good"])


def printed(example: ShownExample, **options: object) -> str:
    file = io.StringIO()
    print_examples([example], Console(file=file, width=100, **options))  # type: ignore[arg-type]
    return file.getvalue()


def test_without_colour_what_is_learned_stands_in_brackets(renderer: Renderer) -> None:
    text = printed(shown(CHAT, renderer))
    assert "⟦Hel\\x1b[31mlo 🙂↵\nyou<|im_end|>⟧↵\n<|im_start|>user↵\nBye<|im_end|>↵\n" in text
    assert "⟦See you<|im_end|>⟧" in text and "<|im_start|>user↵\nHi 猫<|im_end|>↵" in text
    assert "a.jsonl:3, chat: " in text and "In ⟦brackets⟧: what is learned." in text
    assert "\x1b" not in text


def test_no_color_is_respected_on_a_terminal(renderer: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(shown(CHAT, renderer), force_terminal=True, color_system="truecolor")
    assert "⟦See you<|im_end|>⟧" in text


def test_with_colours_learned_and_masked_tokens_differ(renderer: Renderer) -> None:
    text = printed(shown(CHAT, renderer), force_terminal=True, color_system="standard", no_color=False)
    assert "\x1b[1;32mSee you<|im_end|>\x1b[0m" in text and "\x1b[2;36mBye<|im_end|>↵\x1b[0m" in text
    assert "⟦" not in text and "\\x1b[31m" in text


def test_a_terminal_that_knows_ascii_only_gets_ascii(renderer: Renderer) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    print_examples([shown(CHAT, renderer)], Console(file=file, width=100))
    file.seek(0)
    text = file.read()
    assert "[[See you<|im_end|>]]" in text and "\\u732b" in text


def test_the_ids_are_those_that_serving_reads_and_then_those_that_are_learned(renderer: Renderer) -> None:
    example = shown(CHAT, renderer)
    served = encode_chat(renderer.tokenizer, CHAT.messages[:3], add_generation_prompt=True).token_ids
    text = printed(example)
    assert f"ids that serving reads before it answers ({len(served)}):\n{' '.join(map(str, served))}\n" in text
    learned = [token_id for piece in example.sequences[0] if piece.learned for token_id in piece.token_ids]
    assert f"ids that are learned ({len(learned)}):\n{' '.join(map(str, learned))}\n" in text


def test_pieces_together_are_the_sequence(renderer: Renderer) -> None:
    (encoded,) = renderer.encode(CHAT)
    parts = list(pieces(encoded, renderer.tokenizer))
    assert [token_id for piece in parts for token_id in piece.token_ids] == encoded.token_ids.tolist()
    assert "".join(piece.text for piece in parts) == renderer.tokenizer.decode(encoded.token_ids.tolist(), skip_special=False)
    assert [piece.learned for piece in parts] == [False, True, False, True]


def test_each_kind_has_its_titles(renderer: Renderer) -> None:
    assert shown(Preference("Say", " yes", " no", ORIGIN), renderer).titles == ("chosen", "rejected")
    assert shown(PlainText("The cat", ORIGIN), renderer).titles == ("plaintext",)
    label = shown(Labelled("The cat", "good", ORIGIN), renderer)
    assert label.titles == ("label good",) and not any(piece.learned for piece in label.sequences[0])


def test_json_holds_everything(renderer: Renderer) -> None:
    found = json.loads(json.dumps(shown(CHAT, renderer).to_dict()))
    assert found["origin"] == "a.jsonl:3" and found["serving_reads"] == renderer.prompt_ids(CHAT)
    assert [piece["learned"] for piece in found["sequences"][0]["pieces"]] == [False, True, False, True]
    assert found["sequences"][0]["pieces"][3]["text"] == "See you<|im_end|>"
