"""Held-out prompts are asked as serving asks them, and a network that is asked stays what it was."""

from __future__ import annotations

import pytest
import torch

from owngpt.engine.packing import packed_copy, recordable
from owngpt.finetune.examples.example import Chat, Completion, Example, Labelled, Origin, PlainText, Preference
from owngpt.finetune.rendering.renderer import Renderer
from owngpt.finetune.report.answers import answer, answer_limit, question_of
from owngpt.finetune.writing import open_writer
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.chat import CHATML
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer

ORIGIN = Origin("rows.jsonl", 1)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ASKED = (said("system", "Be kind."), said("user", "你好！"), said("assistant", "Hello."), said("user", "Open today?"))
EXAMPLES: list[tuple[Example, str, str]] = [
    (Chat((*ASKED, said("assistant", "Until six. Mira")), ORIGIN), "Open today?", "Until six. Mira"),
    (Completion("Open today?", " Until six.", ORIGIN), "Open today?", "Until six."),
    (Preference("Open today?", " Until six.", " No idea.", ORIGIN), "Open today?", "Until six."),
    (Preference(ASKED, (said("assistant", "Until six."),), (said("assistant", "No."),), ORIGIN), "Open today?", "Until six."),
]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer([], kind="byte").with_chat_template(CHATML)


@pytest.mark.parametrize(("example", "shown", "reference"), EXAMPLES)
def test_a_question_is_the_prompt_that_serving_reads(words: Tokenizer, example: Example, shown: str, reference: str) -> None:
    renderer = Renderer(words)
    question = question_of(0, example, renderer.encode(example), words)
    assert question is not None
    assert list(question.prompt_ids) == renderer.prompt_ids(example)
    assert (question.shown, question.reference) == (shown, reference)


def test_a_text_is_gone_on_with_from_its_beginning(words: Tokenizer) -> None:
    text = "The ferry was late, and nobody on the quay seemed to mind. An old man fed a gull."
    example = PlainText(text, ORIGIN)
    question = question_of(0, example, Renderer(words).encode(example), words)
    assert question is not None
    assert text.startswith(words.decode(question.prompt_ids)) and text.endswith(question.reference)
    assert len(question.prompt_ids) == 32


def test_a_text_with_a_label_asks_nothing(words: Tokenizer) -> None:
    example = Labelled("good", "yes", ORIGIN)
    assert question_of(0, example, Renderer(words, labels=["yes"]).encode(example), words) is None


def test_the_limit_follows_the_owners_longer_answers(words: Tokenizer) -> None:
    def limit(*lengths: int) -> int:
        examples = [Completion("?", "x" * length, ORIGIN) for length in lengths]
        questions = [question_of(0, example, Renderer(words).encode(example), words) for example in examples]
        return answer_limit([question for question in questions if question is not None])

    assert limit(10, 10) == 48
    assert limit(*range(1, 101)) == 95 * 3 // 2 + 16
    assert limit(5000) == 384


@pytest.fixture(scope="module")
def network(words: Tokenizer) -> GPT:
    config = GPTConfig(
        vocab_size=words.vocab_size, context_length=96, hidden_size=64, layers=2, heads=2, key_value_heads=1, head_size=32,
        intermediate_size=128,
    )  # fmt: skip
    return GPT(config, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)


def test_a_packed_copy_writes_as_the_model_does_and_leaves_it_alone(words: Tokenizer, network: GPT) -> None:
    if (reason := recordable(network)) is not None:
        pytest.skip(reason)
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in network.state_dict().items()}
    network.train()
    ids = torch.tensor([words.encode("Open today?")])
    with open_writer(network, words, longest=96, most=4) as (engine, rows):
        assert engine.runner.model is not network and rows == 4
    assert network.training
    for name, tensor in network.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1])
    copy = packed_copy(network, "bf16")
    weight = copy.blocks[0].mlp.down.packed.unpacked()
    assert torch.equal(weight.to(torch.bfloat16), network.blocks[0].mlp.down.weight)
    network.eval()
    with torch.no_grad():
        assert network.logits(ids).isfinite().all()


def test_a_prompt_that_nearly_fills_the_context_is_left_out(words: Tokenizer, network: GPT) -> None:
    renderer = Renderer(words)
    examples = [Completion("x" * length, "yes", ORIGIN) for length in (20, 90)]
    questions = [question_of(index, example, renderer.encode(example), words) for index, example in enumerate(examples)]
    answers = answer(network, words, questions, limit=48, deadline=None, most=10)
    assert [each.index for each in answers] == [0]
    assert answer(network, words, [], limit=48, deadline=None, most=10) == []
