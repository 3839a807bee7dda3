"""The same messages give the same text, token ids and assistant masks as transformers, for the templates of published models."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
from tests.text.chat_tokenizers import KINDS, save

from owngpt.errors import UsageError
from owngpt.text.conversation import encode_chat
from owngpt.text.schema import function_schema
from owngpt.text.tokenizer import Tokenizer

FOLDER = Path(__file__).parent / "templates"
TEMPLATES = {file.stem: file.read_bytes().decode("utf-8") for file in sorted(FOLDER.glob("*.jinja"))}


def temperature(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius", days: int | None = None, tags: list[str] = []):  # noqa: B006
    """Get the weather of a city.

    It asks a service.

    Args:
        city: The city, for example "北京"
            or "Paris".
        unit: What to count in. (choices: ["celsius", "fahrenheit"])
        days: How far ahead
        tags: Words

    Returns:
        The temperature.
    """


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city <b>",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "名字", "enum": ["北京", "Paris"]},
                "days": {"type": "array", "items": {"type": "integer"}, "nullable": True, "default": [1, 2]},
                "more": {"type": "object", "properties": {"x": {"type": ["string", "null"]}}, "required": ["x"]},
            },
            "required": ["city"],
        },
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "北京", "n": 1.5}}}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [{"role": "user", "content": "Hi"}],
    "blanks": [{"role": "user", "content": "  \n Hi there \r\n\t "}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "你好 <b>&amp;"}],
    "turns": [
        {"role": "system", "content": "Be brief. {{ 7 * 7 }} {% raw %}"},
        {"role": "user", "content": "2 < 3 and [a] > (b), isn't it? <"},
        {"role": "assistant", "content": "Yes! | 猫 <|im_ 😀"},
        {"role": "user", "content": "> Bye"},
    ],
    "answered": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\nHello\n"}],
    "long": [
        message
        for turn in range(12)
        for message in (
            {"role": "user", "content": f"Question {turn} " * 20},
            {"role": "assistant", "content": "猫坐在垫子上。" * turn},
        )
    ],
    "thoughts inside": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello"},
        {"role": "user", "content": "So?"},
        {"role": "assistant", "content": "<think>more</think>Well."},
    ],
    "thoughts apart": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "reasoning_content": "hm", "content": "Hello"},
        {"role": "user", "content": "So?"},
        {"role": "assistant", "thinking": "more", "content": "Well."},
    ],
    "calls": [
        {"role": "system", "content": "Use tools."},
        {"role": "user", "content": "How warm?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": '{"t": 21}'},
        {"role": "assistant", "content": "21 degrees."},
        {"role": "user", "content": "Thanks"},
    ],
    "calls with words": [
        {"role": "user", "content": "How warm?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": {"content": 21}},
    ],
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": " What is it? "}, {"type": "text", "text": "x"}],
        },
    ],
    "wrong order": [{"role": "assistant", "content": "I begin"}, {"role": "assistant", "content": "and go on"}],
    "unknown role": [{"role": "user", "content": "Hi"}, {"role": "narrator", "content": "Night falls."}],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "prompt": {"add_generation_prompt": True},
    "thinking off": {"add_generation_prompt": True, "enable_thinking": False, "reasoning_effort": "high"},
    "tools": {"add_generation_prompt": True, "tools": [WEATHER, temperature], "builtin_tools": ["browser", "python"]},
    "documents": {
        "documents": [{"title": "A", "text": "once upon a time there was\na cat"}, {"title": "b", "text": ""}],
        "limit": 2,
    },
    "tools elsewhere": {"tools": [WEATHER], "tools_in_user_message": False, "date_string": "1 Jan 2000"},
    "continue": {"continue_final_message": True},
}
KIND_OF = {"mistral-v1-like": "metaspace", "mistral-v3-like": "prepended", "gemma3-like": "replaced_spaces"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("tokenizers")
    return {kind: save(make(), root / kind, extra_special_tokens=[]) for kind, make in KINDS.items()}


@pytest.fixture(scope="module")
def pairs(folders: dict[str, Path]) -> dict[str, tuple[Tokenizer, Any]]:
    from transformers import PreTrainedTokenizerFast

    return {kind: (Tokenizer.load(folder), PreTrainedTokenizerFast.from_pretrained(folder)) for kind, folder in folders.items()}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_same_text_and_ids_as_transformers(name: str, conversation: str, pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    tokenizer, theirs = pairs[KIND_OF.get(name, "byte_level")]
    tokenizer = tokenizer.with_chat_template(TEMPLATES[name])
    messages = CONVERSATIONS[conversation]
    for settings in SETTINGS.values():
        try:
            text = theirs.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False, **settings)
        except Exception:  # the template refuses, each library in its own words
            with pytest.raises(UsageError):
                encode_chat(tokenizer, messages, **settings)
            continue
        encoded = theirs.apply_chat_template(messages, chat_template=TEMPLATES[name], **settings)
        ours = encode_chat(tokenizer, messages, **settings)
        assert ours.text == text
        assert ours.token_ids == encoded["input_ids"]
        assert encode_chat(tokenizer, messages, special_in_contents=True, **settings) == ours


@pytest.mark.parametrize("kind", KINDS)
def test_same_assistant_tokens_as_transformers(kind: str, pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    tokenizer, theirs = pairs[kind]
    tokenizer = tokenizer.with_chat_template(TEMPLATES["features"])
    for messages in CONVERSATIONS.values():
        if not all(isinstance(message.get("content"), str) for message in messages):
            continue
        encoded = theirs.apply_chat_template(messages, chat_template=TEMPLATES["features"], return_assistant_tokens_mask=True)
        ours = encode_chat(tokenizer, messages)
        assert ours.assistant_mask == encoded["assistant_masks"]
        assert any(ours.assistant_mask) == any(message["role"] == "assistant" for message in messages)


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_a_field_is_continued_as_in_transformers(field: str, pairs: dict[str, tuple[Tokenizer, Any]]) -> None:
    tokenizer, theirs = pairs["byte_level"]
    for name in ("qwen3", "smollm2", "gpt-oss"):
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "thinking": "hm ", "content": "Well <"}]
        ours = tokenizer.with_chat_template(TEMPLATES[name])
        try:
            encoded = theirs.apply_chat_template(messages, chat_template=TEMPLATES[name], continue_final_message=field)
        except Exception:
            with pytest.raises(UsageError):
                encode_chat(ours, messages, continue_final_message=field)
            continue
        assert encode_chat(ours, messages, continue_final_message=field).token_ids == encoded["input_ids"]


def test_functions_are_described_as_transformers_describes_them() -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")

    def place(
        x: float, at: tuple[int, str], how: dict[str, bool] | list[int] | None, of: str | int = "a"
    ) -> list[dict[str, int]]:
        """Place it.

        Args:
            x: where
            at: how far: and what
            how: any way
            of: what
        """

    def nothing() -> None:
        """Do nothing."""

    for function in (temperature, place, nothing):
        assert function_schema(function) == utilities.get_json_schema(function)


def test_a_function_that_cannot_be_described_says_why() -> None:
    def bare(x: int) -> None: ...
    def untyped(x) -> None:
        """Do.

        Args:
            x: what
        """

    def undescribed(x: int) -> None:
        """Do."""

    def odd(x: Path) -> None:
        """Do.

        Args:
            x: what
        """

    for function, words in ((bare, "no docstring"), (untyped, "type hint"), (undescribed, "describe"), (odd, "JSON schema")):
        with pytest.raises(UsageError, match=words):
            function_schema(function)
