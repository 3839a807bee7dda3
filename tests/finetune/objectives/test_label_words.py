"""Labels as words: learned as answers, and guessed as the answer that is the most probable of all labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.finetune.tiny_tuning import ADAMW, make_model

from owngpt.errors import DataError
from owngpt.finetune.examples.example import Labelled, Origin
from owngpt.finetune.objectives import label_words
from owngpt.finetune.objectives.label_words import LabelWords, WordRenderer
from owngpt.finetune.objectives.supervised import Supervised
from owngpt.finetune.sequences.batches import ExampleBatches
from owngpt.finetune.sequences.encoded import Encoded
from owngpt.finetune.sequences.store import write_store
from owngpt.model.gpt import GPT
from owngpt.text.chat import CHATML
from owngpt.text.tokenizer import Tokenizer
from owngpt.text.training import train_tokenizer
from owngpt.train.step import TrainModule

LABELS = ("animals", "weather", "weather report", "sport", "music", "cooking", "天气")
TEXTS = {
    "the cat sleeps": "animals", "a dog barks": "animals", "rain tomorrow": "weather", "明天下雨": "天气",
    "cloudy, 12 degrees, wind from the west": "weather report", "a late goal": "sport", "she sings": "music", "boil": "cooking",
}  # fmt: skip
ORIGIN = Origin("texts.jsonl", 3)


@pytest.fixture(scope="module", params=["plain", "chat"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = train_tokenizer([" ".join((*TEXTS, *LABELS))] * 5, vocab_size=320)
    return made.with_chat_template(CHATML) if request.param == "chat" else made


def model_for(tokenizer: Tokenizer) -> GPT:
    return make_model(vocab_size=tokenizer.vocab_size, context_length=96)


def whole(model: GPT, renderer: WordRenderer, text: str) -> list[float]:
    """Log-probability of each label's words after the text, from whole logits."""
    found = []
    for label in LABELS:
        (sequence,) = renderer.encode(Labelled(text, label, ORIGIN))
        ids = torch.from_numpy(sequence.token_ids)
        values = model.logits(ids[None])[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
        found.append(float(values[torch.from_numpy(sequence.learned)[1:]].sum()))
    return found


def test_what_is_learned_is_the_label_and_the_end_behind_what_serving_shows(tokenizer: Tokenizer) -> None:
    renderer = WordRenderer(tokenizer, labels=LABELS)
    example = Labelled("rain tomorrow", "weather", ORIGIN)
    (sequence,) = renderer.encode(example)
    assert isinstance(sequence, Encoded) and sequence.label == 1 and str(sequence.origin) == "texts.jsonl:3"
    learned = sequence.token_ids[sequence.learned].tolist()
    assert tokenizer.decode(learned[:-1]).strip() == "weather"
    assert learned[-1] in tokenizer.stop_ids
    shown = sequence.token_ids[~sequence.learned].tolist()
    assert shown == renderer.prompt_ids(renderer.answered(example))


@torch.no_grad()
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_scores_are_those_of_whole_answers(tokenizer: Tokenizer, batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_words, "BATCH_TOKENS", batch_tokens)
    renderer, model = WordRenderer(tokenizer, labels=LABELS), model_for(tokenizer).eval()
    words = LabelWords(renderer, LABELS)
    for text in TEXTS:
        (sequence,) = renderer.encode(Labelled(text, "sport", ORIGIN))
        (scores,) = words.scores(model, [sequence])
        wanted = torch.tensor(whole(model, renderer, text))
        read = scores.isfinite()
        assert 4 <= int(read.sum()) <= len(LABELS)
        torch.testing.assert_close(scores[read], wanted[read], rtol=1e-4, atol=1e-4)
        assert int(scores.argmax()) == int(wanted.argmax()), "what was not read to its end could not have won"


def test_labels_are_learned_and_guessed(tokenizer: Tokenizer, tmp_path: Path) -> None:
    renderer, model = WordRenderer(tokenizer, labels=LABELS), model_for(tokenizer)
    examples = [Labelled(text, label, ORIGIN) for text, label in TEXTS.items()]
    store = write_store(renderer.encode_all(examples), tmp_path, context_length=96)
    assert [LABELS[label] for label in store.labels] == list(TEXTS.values())
    module = TrainModule(model, ADAMW, objective=Supervised())
    batches = ExampleBatches(store, context_length=96, batch_size=8, seed=0)
    for _ in range(40):
        module.run([batches.next()], 0.5)
    assert LabelWords(renderer, LABELS).guess(model, list(TEXTS)) == list(TEXTS.values())


def test_reading_ends_at_the_deadline(tokenizer: Tokenizer) -> None:
    renderer, model = WordRenderer(tokenizer, labels=LABELS), model_for(tokenizer)
    sequences = [renderer.encode(Labelled(text, "sport", ORIGIN))[0] for text in TEXTS]
    assert len(list(LabelWords(renderer, LABELS).scores(model, sequences, deadline=0.0))) == 1


def test_labels_that_are_not_known_or_not_different_are_refused(tokenizer: Tokenizer) -> None:
    renderer = WordRenderer(tokenizer, labels=LABELS)
    with pytest.raises(DataError, match=r"texts.jsonl:3: unknown label 'politics'"):
        renderer.encode(Labelled("a vote", "politics", ORIGIN))
    with pytest.raises(DataError, match="two labels are the same words"):
        LabelWords(renderer, ["sport", "sport"])
