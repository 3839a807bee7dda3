"""From a folder or file to an engine: packed as it is read, within the memory that is allowed, and it says what it runs on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.engine import poem
from torch.nn.functional import cross_entropy

from owngpt.config.generation import GenerationConfig
from owngpt.engine import load, quality, tuning
from owngpt.engine.load import Quantize, load_engine, open_engine
from owngpt.engine.packing import Packer, each_packed, pack_model, packed_bytes, packed_kinds, recordable, requantized
from owngpt.engine.request import Request
from owngpt.engine.runner import PackedRunner, Part
from owngpt.engine.torch_runner import TorchRunner
from owngpt.errors import UsageError
from owngpt.formats.folder import open_model, save_model
from owngpt.formats.gguf import save_gguf
from owngpt.kernels import tape
from owngpt.kernels.packed import FEW, NEVER, amx
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT

needs_tiles = pytest.mark.skipif(not tape.can_record(), reason="no matrix tiles on this machine")


@pytest.fixture(autouse=True)
def own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured here is not kept for the person who runs the tests."""
    monkeypatch.setattr("owngpt.engine.records.folder", lambda topic: tmp_path / "records" / topic)


def config_of(**changes: object) -> GPTConfig:
    values: dict[str, object] = {
        "vocab_size": poem.tokenizer().vocab_size + 8, "context_length": 256, "hidden_size": 64, "layers": 2, "heads": 2,
        "key_value_heads": 1, "head_size": 32, "intermediate_size": 96, "query_key_norm": False,
    }  # fmt: skip
    return GPTConfig(**{**values, **changes})  # type: ignore[arg-type]


def model_of(**changes: object) -> GPT:
    model = GPT(config_of(**changes), generator=torch.Generator().manual_seed(3)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 6
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", model_of(), poem.tokenizer(), dtype="bfloat16")
    return tmp_path / "model"


def written(engine: load.PreparedEngine) -> tuple[int, ...]:
    with engine:
        request = Request((3, 5, 8), GenerationConfig(max_new_tokens=12, temperature=0.0), end_ids=frozenset())
        return tuple(engine.submit(request).result()[0].token_ids)


@needs_tiles
@pytest.mark.parametrize(
    ("quantize", "kinds", "called"),
    [
        ("none", {"compact"}, "bf16"),
        ("int8", {"int8"}, "int8"),
        ("int4", {"int4", "int6"}, "int4"),
        ("auto", {"compact"}, "bf16"),
    ],
)
def test_weights_are_packed_as_asked(folder: Path, quantize: Quantize, kinds: set[str], called: str) -> None:
    loaded = load_engine(folder, quantize=quantize)
    assert isinstance(loaded.engine.runner, PackedRunner)
    assert packed_kinds(loaded.engine.runner.model) == kinds
    setup = loaded.engine.setup
    assert setup.weights == called
    assert setup.compact == (called == "bf16")
    assert (f"{called} weights in 12 bits each without loss" in str(setup)) == setup.compact
    assert loaded.engine.setup.weight_bytes == packed_bytes(loaded.engine.runner.model)
    assert len(written(loaded.engine)) == 12


@needs_tiles
def test_an_engine_from_a_path_writes_what_one_from_a_model_writes(folder: Path) -> None:
    model, tokenizer, _ = open_model(folder, dtype=None)
    from_model = written(open_engine(model, tokenizer, quantize="none"))
    assert written(load_engine(folder, quantize="none").engine) == from_model


def test_float32_that_was_asked_for_stays_exact(folder: Path) -> None:
    loaded = load_engine(folder, dtype=torch.float32)
    assert isinstance(loaded.engine.runner, TorchRunner)
    assert loaded.engine.setup.weights == "float32"
    with torch.inference_mode():
        ids = [3, 5, 8]
        network = open_model(folder)[0]
        for _ in range(12):
            ids.append(int(network.logits(torch.tensor([ids]))[0, -1, : poem.tokenizer().vocab_size].argmax()))
    assert list(written(loaded.engine)) == ids[3:]


@pytest.mark.parametrize("dtype", ["q4_0", "q8_0"])
@needs_tiles
def test_groups_of_a_file_are_kept_exactly(tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "model.gguf"
    model = model_of(query_key_norm=True)
    save_gguf(file, model, poem.tokenizer(), dtype=dtype)
    loaded = load_engine(file)
    assert isinstance(loaded.engine.runner, PackedRunner)
    packed_model, reference = loaded.engine.runner.model, open_model(file)[0]
    assert loaded.engine.setup.weights == ("int4" if dtype == "q4_0" else "int8")
    assert "as the file has them" in str(loaded.engine.setup)
    for name in ("blocks.0.attention.query_key_value", "blocks.1.mlp.gate_up", "blocks.1.mlp.down"):
        assert torch.equal(packed_model.get_submodule(name).packed.unpacked(), reference.get_submodule(name).weight.detach())
    loaded.engine.close()


def test_a_model_without_packed_kernels_runs_on_pytorch_and_says_why(tmp_path: Path) -> None:
    save_model(tmp_path / "model", model_of(head_size=16), poem.tokenizer(), dtype="bfloat16")
    loaded = load_engine(tmp_path / "model")
    assert isinstance(loaded.engine.runner, TorchRunner)
    assert loaded.engine.setup.reason == recordable(config_of(head_size=16))
    assert len(written(loaded.engine)) == 12
    with pytest.raises(UsageError, match="int8 weights cannot run here"):
        load_engine(tmp_path / "model", quantize="int8")


def test_what_is_out_of_range_is_refused_with_its_limit(folder: Path) -> None:
    with pytest.raises(UsageError, match="quantize is 'int5'; choose auto, none, int8, int4"):
        load_engine(folder, quantize="int5")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="most_rows is 0"):
        load_engine(folder, most_rows=0)
    with pytest.raises(UsageError, match="two blocks takes"):
        load_engine(folder, memory=10)


def test_the_cache_is_as_large_as_was_said(folder: Path) -> None:
    with load_engine(folder, memory=1 << 20).engine as engine:
        assert engine.setup.memory_bytes <= 1 << 20 < engine.setup.memory_bytes * 2
        assert engine.setup.memory_tokens == (engine.runner.blocks - 1) * engine.runner.block_size


@needs_tiles
def test_no_tensor_is_kept_beside_its_packed_form(folder: Path) -> None:
    packers: list[Packer] = []

    def prepare(config: GPTConfig) -> Packer:
        packers.append(Packer(config, "int8"))
        return packers[0]

    model, _, _ = open_model(folder, dtype=None, prepare=prepare)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    assert matrices
    assert all(parameter.is_meta for parameter in matrices)
    assert not any(parameter.is_meta for parameter in packers[0].install(model).parameters())


@needs_tiles
def test_another_kind_of_the_same_weights_leaves_the_first_as_it_is() -> None:
    model = pack_model(model_of().bfloat16(), "bf16")
    before = model.blocks[0].mlp.down.packed
    twin = requantized(model, "int4")
    assert model.blocks[0].mlp.down.packed is before
    assert twin.blocks[0].mlp.down.packed.kind == "int4"
    assert twin.embedding.packed.kind == "int6"
    assert twin.blocks[0].mlp_norm.weight is model.blocks[0].mlp_norm.weight


@needs_tiles
def test_perplexity_is_that_of_the_forward_pass() -> None:
    model = model_of(context_length=64).bfloat16()
    ids = quality.text_ids(poem.tokenizer())[:200]
    with torch.inference_mode():
        windows = [torch.tensor(ids[start : start + 64]) for start in range(0, 200, 64)]
        logits = [model.logits(window[None])[0, :-1] for window in windows]
        expected = cross_entropy(torch.cat(logits), torch.cat([window[1:] for window in windows]), reduction="none")
        found = torch.cat(list(quality.losses(pack_model(model, "bf16"), ids)))
    assert found.shape == expected.shape
    assert abs(float(found.mean() / expected.mean()) - 1) < 0.01


@needs_tiles
def test_auto_takes_what_was_measured_before(folder: Path) -> None:
    key = quality.file_key(folder)
    quality.remember(key, quality.Quality("tiny", 100, {"bf16": 10.0, "int8": 10.02, "int4": 11.0}, "int8"))
    with load_engine(folder).engine as engine:
        assert engine.setup.weights == "int8"
        assert engine.setup.reason == "perplexity rises by: int4 +10.00%, int8 +0.20%"
    assert [found.chosen for found in quality.remembered()] == ["int8"]


@needs_tiles
def test_an_idle_engine_measures_how_its_weights_quantize(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "PAUSE", 0.05)
    monkeypatch.setattr(quality, "text_ids", lambda tokenizer: tokenizer.encode(poem.POEM * 4))
    engine = load_engine(folder).engine
    assert engine._learner is not None
    engine._learner.join(timeout=60)
    found = quality.recall(quality.file_key(folder))
    assert found is not None
    assert abs(found.rise("int8")) < 0.05
    assert found.chosen in ("int4", "int8", "bf16")
    assert len(written(engine)) == 12


@needs_tiles
def test_an_engine_that_is_closed_soon_does_not_wait_for_measurements(folder: Path) -> None:
    engine = load_engine(folder).engine
    assert len(written(engine)) == 12  # closes it
    assert engine._learner is not None
    assert not engine._learner.is_alive()
    assert quality.recall(quality.file_key(folder)) is None


def test_damaged_records_are_as_good_as_none(folder: Path, tmp_path: Path) -> None:
    key = quality.file_key(folder)
    file = tmp_path / "records" / "quality" / f"{key}.json"
    file.parent.mkdir(parents=True)
    for text in ("", "[]", "{}", '{"perplexity": {"bf16": -1}, "chosen": "bf16"}', "x" * 100_000, '{"chosen": []}'):
        file.write_text(text)
        assert quality.recall(key) is None


def test_a_fingerprint_follows_the_weights(folder: Path) -> None:
    before, model = quality.file_key(folder), model_of()
    assert quality.model_key(model) == quality.model_key(model_of())
    model.blocks[0].mlp.down.weight.data[0, 0] += 1
    assert quality.model_key(model) != quality.model_key(model_of())
    save_model(folder, model, poem.tokenizer(), dtype="bfloat16")
    assert quality.file_key(folder) != before


@needs_tiles
def test_what_was_tuned_once_is_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuning.tune(PackedRunner(pack_model(model_of().bfloat16(), "int8"), 8))
    assert 2 <= found.tiles_from <= FEW + 1 if amx() else found.tiles_from == NEVER
    assert found.threads >= 1
    monkeypatch.setattr(tuning, "_measure", None)
    runner = PackedRunner(pack_model(model_of().bfloat16(), "int8"), 8)
    assert tuning.tune(runner) == found
    assert runner.model.blocks[0].mlp.down.packed.tiles_from == found.tiles_from
    assert len(runner.model.blocks) == 2
    assert runner.run([Part([1, 2, 3], 0, [1])]).shape == (1, poem.tokenizer().vocab_size + 8)


@needs_tiles
def test_bfloat16_needs_no_choice_between_products() -> None:
    model = pack_model(model_of().bfloat16(), "bf16")
    chosen: set[int] = set()
    each_packed(model, lambda weight: chosen.add(weight.tiles_from))
    tuning.tune(PackedRunner(model, 8))
    each_packed(model, lambda weight: chosen.add(weight.tiles_from))
    assert chosen == {tuning.tune(PackedRunner(model, 8)).tiles_from} == {1 if amx() else NEVER}
