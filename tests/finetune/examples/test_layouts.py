"""Every layout that rows come in, from columns to an example."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from owngpt.errors import UsageError
from owngpt.finetune.examples.columns import Columns
from owngpt.finetune.examples.example import Chat, Completion, Example, Labelled, Origin, PlainText, Preference
from owngpt.finetune.examples.fault import Fault
from owngpt.finetune.examples.layouts import LAYOUTS, layout_named
from owngpt.finetune.examples.messages import USUAL_TAGS

HERE = Origin("a.jsonl", 7)
USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


def read(layout: str, values: Any, **named: str) -> Example:
    return LAYOUTS[layout].read(Columns(named).fields(values), HERE, USUAL_TAGS)


def reason(layout: str, values: Mapping[str, Any]) -> str:
    with pytest.raises(Fault) as found:
        read(layout, values)
    assert found.value.fix
    return found.value.reason


def said(example: Example) -> list[tuple[str, str]]:
    assert isinstance(example, Chat)
    return [(message["role"], message["content"]) for message in example.messages]


def test_messages_are_taken_as_templates_read_them() -> None:
    system = {"role": "developer", "content": "Be kind."}
    parts = {"role": "assistant", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}], "name": None}
    example = read("messages", {"messages": [system, {**USER, "content": "Hi"}, parts]})
    assert example == Chat(({"role": "system", "content": "Be kind."}, USER, ASSISTANT), HERE)


def test_a_system_column_goes_first_unless_there_is_a_system_message() -> None:
    assert said(read("messages", {"messages": [USER, ASSISTANT], "system": "S"}))[0] == ("system", "S")
    own = [{"role": "system", "content": "Own"}, USER, ASSISTANT]
    assert said(read("messages", {"messages": own, "system": "S"}))[0] == ("system", "Own")
    empty = [{"role": "system", "content": ""}, USER, ASSISTANT]
    assert said(read("messages", {"messages": empty})) == [("user", "Hi"), ("assistant", "Hello")]


def test_tool_calls_tools_and_answers_of_tools_are_kept() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rom"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "", "tool_call_id": "1"},
        ASSISTANT,
    ]
    tool = {"name": "weather", "parameters": {"type": "object", "properties": {"city": None}}}
    example = read("messages", {"messages": messages, "tools": json.dumps([tool])})
    assert isinstance(example, Chat)
    assert example.messages[1] == {"role": "assistant", "content": "", "tool_calls": [call]}
    assert example.messages[2] == {"role": "tool", "content": "", "tool_call_id": "1"}
    assert example.tools == ({"type": "function", "function": {**tool, "parameters": {"type": "object", "properties": {}}}},)


def test_sharegpt_speakers_calls_and_observations() -> None:
    conversations = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rom"}}'},
        {"from": "observation", "value": "sunny"},
        {"from": "gpt", "value": "It is sunny."},
    ]
    example = read("sharegpt", {"conversations": conversations, "system": "S", "tools": '[{"name": "weather"}]'})
    assert isinstance(example, Chat)
    assert [message["role"] for message in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    called = example.messages[2]["tool_calls"]
    assert called == [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Rom"}}}]
    assert example.tools == ({"type": "function", "function": {"name": "weather"}},)
    bad = [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{"}]
    assert reason("sharegpt", {"conversations": bad}) == "message 2 is a function_call without valid JSON"


def test_conversations_in_cells_and_in_tables_of_columns_are_read() -> None:
    for value in (
        json.dumps([USER, ASSISTANT]),
        {"role": ["user", "assistant"], "content": ["Hi", "Hello"]},
        [{"role": "user", "content": "Hi", "weight": None}, {"role": "Assistant", "value": None, "content": "Hello"}],
    ):
        assert said(read("messages", {"messages": value})) == [("user", "Hi"), ("assistant", "Hello")]


def test_weights_mask_turns() -> None:
    example = read("messages", {"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "train": False}, ASSISTANT]})
    assert isinstance(example, Chat)
    assert [message.get("weight") for message in example.messages] == [None, 0, None, 0, None]
    assert reason("messages", {"messages": [USER, {**ASSISTANT, "weight": 0}]}) == "every assistant turn has the weight 0"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "the conversation is empty"),
        ("", "the conversation is empty"),
        ("[{", "a cell is not valid JSON (Expecting property name enclosed in double quotes: line 1 column 3 (char 2))"),
        (12, "the conversation is a number"),
        (["Hi", "Hello"], "message 1 is a text"),
        ([USER], "no assistant turn"),
        ([ASSISTANT], "only the assistant speaks"),
        ([USER, {"role": "moderator", "content": "x"}], "message 2 has the role 'moderator'"),
        ([USER, {"content": "x"}], "message 2 has no role or from"),
        ([USER, {"role": "assistant", "content": " \n"}], "message 2 (assistant) is empty"),
        ([USER, {"role": "assistant"}], "message 2 (assistant) is empty"),
        ([{"role": "user", "content": ""}, ASSISTANT], "message 1 (user) is empty"),
        ([USER, {"role": "assistant", "content": 3}], "the content of message 2 is a number"),
        ([USER, {"role": "system", "content": "S"}, ASSISTANT], "message 2 is a system message"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ASSISTANT], "message 1 holds an image_url"),
        (
            [USER, {"role": "assistant", "content": "\ud800"}],
            "a message of the assistant holds half of a surrogate pair (\\ud800…)",
        ),
    ],
)
def test_bad_conversations_say_what_is_wrong(messages: Any, expected: str) -> None:
    assert reason("messages", {"messages": messages}) == expected


def test_tools_that_would_break_what_reads_them_are_refused() -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"items": deep}
    expected = "a message or tool is nested more than 50 levels deep"
    assert reason("messages", {"messages": [USER, ASSISTANT], "tools": [{"name": "f", "parameters": deep}]}) == expected
    called = [USER, {"from": "function_call", "value": json.dumps({"name": "f", "arguments": deep})}]
    assert reason("messages", {"messages": called}) == expected
    half = [{"name": "f", "parameters": {"\ud800": 1}}]
    assert reason("messages", {"messages": [USER, ASSISTANT], "tools": half}).startswith("a name holds half of a surrogate")


def test_prompt_and_completion_are_plain_text() -> None:
    assert read("completion", {"Prompt ": "2+2=", "completion": " 4"}) == Completion("2+2=", " 4", HERE)
    assert read("completion", {"prompt": "", "completion": "Once"}) == Completion("", "Once", HERE)
    assert read("completion", {"frage": "a", "antwort": "b"}, prompt="frage", completion="Antwort") == Completion("a", "b", HERE)
    assert reason("completion", {"prompt": "x", "completion": ""}) == "the completion is empty"
    assert reason("completion", {"prompt": "x", "completion": 4}) == "the completion is a number"
    assert reason("completion", {"prompt": "x", "completion": None}) == "no completion"


def test_a_prompt_and_a_completion_of_messages_learn_the_completion_only() -> None:
    example = read("completion", {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]})
    assert isinstance(example, Chat)
    assert [message.get("weight") for message in example.messages] == [None, 0, None, None]
    assert reason("completion", {"prompt": [USER], "completion": [USER]}) == "no assistant turn in the completion"


@pytest.mark.parametrize(
    "columns", [("question", "answer"), ("query", "response"), ("q", "a"), ("input", "output"), ("问题", "答案")]
)
def test_questions_and_answers_are_chats(columns: tuple[str, str]) -> None:
    question, answer = columns
    assert said(read("question-answer", {question: "Hi", answer: "Hello"})) == [("user", "Hi"), ("assistant", "Hello")]


def test_a_question_with_context_history_and_system() -> None:
    values = {"question": "Q", "answer": "A", "context": "C", "history": '[["q", "a"]]', "system_prompt": "S"}
    expected = [("system", "S"), ("user", "q"), ("assistant", "a"), ("user", "C\n\nQ"), ("assistant", "A")]
    assert said(read("question-answer", values)) == expected


def test_alpaca_joins_instruction_and_input_and_learns_its_history() -> None:
    values = {"instruction": "Translate.", "input": "Hund", "output": "dog", "history": [["a", "b"]], "system": "S"}
    expected = [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "Translate.\nHund"), ("assistant", "dog")]
    assert said(read("alpaca", values)) == expected
    assert said(read("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"})) == [("user", "Hi"), ("assistant", "Hello")]
    assert said(read("alpaca", {"instruction": "Hi", "context": "c", "response": "Hello"}))[0] == ("user", "Hi\nc")  # Dolly
    assert reason("alpaca", {"instruction": "", "output": "x"}) == "the instruction is empty"
    assert reason("alpaca", {"instruction": "x", "output": "x", "history": ["a"]}) == "part 1 of the history is no pair"


def test_texts_and_labels() -> None:
    assert read("text", {"text": "Once."}) == PlainText("Once.", HERE)
    assert read("text", "Once.") == PlainText("Once.", HERE)
    assert read("label", {"review": "Great", "label": 1}) == Labelled("Great", "1", HERE)
    assert read("label", {"review": "Great", "label": 1.0}) == Labelled("Great", "1", HERE)
    assert read("label", {"text": "好", "类别": " 好评 "}) == Labelled("好", "好评", HERE)
    assert reason("label", {"text": "x", "label": 0.5}) == "the label is a number"
    assert reason("label", {"text": "x", "label": " "}) == "the label is empty"
    assert reason("text", {"text": "  "}) == "the text is empty"


def test_preferences_of_plain_texts() -> None:
    assert read("preference", {"prompt": "P", "chosen": "C", "rejected": "R"}) == Preference("P", "C", "R", HERE)
    shared = read("preference", {"chosen": "The sky is blue.", "rejected": "The sky is black."})
    assert shared == Preference("The sky is", " blue.", " black.", HERE)
    chinese = read("preference", {"chosen": "今天天气很好", "rejected": "今天天气很差"})
    assert chinese == Preference("今天天气很", "好", "差", HERE)
    assert reason("preference", {"chosen": "a", "rejected": "b"}) == "no prompt, and chosen and rejected begin differently"
    assert reason("preference", {"prompt": "P", "chosen": "C", "rejected": "C"}) == "chosen and rejected are the same"
    assert reason("preference", {"prompt": "P", "chosen": "C", "rejected": ""}) == "the rejected is empty"


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "Go"}]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "Go"}]},
        {"prompt": "Hi", "chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "Go"}]},
        {"prompt": [USER], "chosen": [USER, ASSISTANT], "rejected": [USER, {"role": "assistant", "content": "Go"}]},
        {"prompt": "Hi", "chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "Go"}]},
        {"question": "Hi", "chosen": "Hello", "rejected": "Go"},
        {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "Go"},
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "Go"},
        },
        {"chosen": json.dumps([USER, ASSISTANT]), "rejected": json.dumps([USER, {"role": "assistant", "content": "Go"}])},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Go"},
    ],
)
def test_preferences_of_messages_in_every_form(values: dict[str, Any]) -> None:
    expected = Preference((USER,), (ASSISTANT,), ({"role": "assistant", "content": "Go"},), HERE)
    assert read("preference", values) == expected


def test_preferences_keep_earlier_turns_tools_and_system() -> None:
    earlier = [USER, ASSISTANT, {"role": "user", "content": "And?"}]
    better, worse = {"role": "assistant", "content": "Good."}, {"role": "assistant", "content": "Bad."}
    values = {"chosen": [*earlier, better], "rejected": [*earlier, worse], "system": "S", "tools": [{"name": "t"}]}
    example = read("preference", values)
    assert isinstance(example, Preference)
    assert [message["role"] for message in example.prompt if isinstance(message, Mapping)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert (example.chosen, example.rejected) == ((better,), (worse,)) and example.tools


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"chosen": [USER, ASSISTANT], "rejected": "Go"}, "one of chosen and rejected is a text, the other messages"),
        ({"chosen": [ASSISTANT], "rejected": [{"role": "assistant", "content": "Go"}]}, "chosen and rejected share no prompt"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER]}, "rejected is no answer of the assistant to the prompt"),
        (
            {"prompt": [USER], "chosen": [ASSISTANT, USER], "rejected": [USER, USER]},
            "chosen is no answer of the assistant to the prompt",
        ),
    ],
)
def test_bad_preferences_say_what_is_wrong(values: dict[str, Any], expected: str) -> None:
    assert reason("preference", values) == expected


def test_rows_that_are_no_objects_are_refused() -> None:
    assert said(read("messages", [USER, ASSISTANT])) == [("user", "Hi"), ("assistant", "Hello")]
    for values in (3, None, [1, 2], []):
        with pytest.raises(Fault, match="the row is no object"):
            read("messages", values)


def test_an_unknown_layout_names_all() -> None:
    with pytest.raises(UsageError, match=r'--layout is chatml, but must be one of these: messages: \{"messages".*label: '):
        layout_named("chatml")
