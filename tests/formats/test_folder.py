"""A model folder is whole or refused, with the reason; saving never leaves half of one."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import owngpt
from owngpt.errors import ModelFolderError, StorageError, UsageError
from owngpt.formats.folder import load_config, load_model, open_model, save_model
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.stream import byte_of_symbol
from owngpt.text.training import train_tokenizer

CONFIG = GPTConfig(
    vocab_size=280, context_length=32, hidden_size=32, layers=2, heads=4, key_value_heads=2, head_size=8, intermediate_size=64
)
TOKENIZER = train_tokenizer([], kind="byte")


def model() -> GPT:
    return GPT(CONFIG, generator=torch.Generator().manual_seed(1)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", model(), TOKENIZER, card="# Mine\n", generation={"temperature": 0.7})
    return tmp_path / "model"


def edit(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **values}))


def test_what_is_saved_comes_back(folder: Path) -> None:
    again, tokenizer = load_model(folder)
    assert again.config == CONFIG
    assert tokenizer.fingerprint == TOKENIZER.fingerprint
    for name, tensor in model().state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not again.training
    assert all(parameter.requires_grad for parameter in again.parameters())
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again.logits(ids), model().logits(ids))


def test_the_files_are_the_usual_ones(folder: Path) -> None:
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert {file.name for file in folder.iterdir()} == names
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")  # tied: once
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"], config["dtype"]) == ("qwen3", ["Qwen3ForCausalLM"], "float32")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "temperature": 0.7}
    modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert len(modes) == 1


def test_a_loaded_model_trains(folder: Path) -> None:
    again, _ = load_model(folder)
    again.train().loss(torch.arange(8)[None], torch.arange(1, 9)[None]).backward()
    assert all(parameter.grad is not None for parameter in again.parameters())


def test_saving_replaces_what_an_earlier_model_left(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("old")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    save_model(folder, model(), TOKENIZER)
    assert not (folder / "chat_template.jinja").exists()
    assert (folder / "notes.txt").read_text() == "mine"
    assert load_model(folder)[1].chat_template is None


def test_shards_and_names_without_prefix_are_read(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, part in zip(files, parts, strict=True):
        save_file({key.removeprefix("model."): tensor for key, tensor in part.items()}, folder / name)
    where = {key.removeprefix("model."): name for name, part in zip(files, parts, strict=True) for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    again, _ = load_model(folder)
    assert torch.equal(again.embedding.weight, model().embedding.weight)
    (folder / files[1]).unlink()
    with pytest.raises(ModelFolderError, match="00002-of-00002"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(ModelFolderError, match="secret"):
        load_model(folder)


def test_a_repeated_tied_head_must_be_the_embedding(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    load_model(folder)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, folder / "model.safetensors")
    with pytest.raises(ModelFolderError, match="tie_word_embeddings"):
        load_model(folder)


def change_tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = {**load_file(folder / "model.safetensors"), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    norm = "model.norm.weight"
    whole = load_file(folder / "model.safetensors")
    for change, message in (
        ({norm: None}, f"missing .*{norm}"),
        ({"model.extra.weight": torch.zeros(1)}, "not part of the model .*model.extra.weight"),
        ({norm: torch.zeros(5)}, f"wrong shape .*{norm} 5 instead of 32"),
        ({norm: torch.zeros(32, dtype=torch.int32)}, f"floating point .*{norm} I32"),
        ({"norm.weight": torch.zeros(32)}, "stored twice"),
    ):
        save_file(whole, folder / "model.safetensors")
        change_tensors(folder, **change)
        with pytest.raises(ModelFolderError, match=message):
            load_model(folder)


def test_damaged_and_missing_files_are_named(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ModelFolderError, match="damaged"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelFolderError, match="damaged"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"no model\.safetensors"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ModelFolderError, match=r"pickle.*save_pretrained"):
        load_model(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json does not exist"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelFolderError, match="not JSON"):
        load_config(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelFolderError, match="holds a list, not a JSON object"):
        load_config(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ModelFolderError, match="model_type"):
        load_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ModelFolderError, match=r"no config\.json"):
        load_config(folder)
    with pytest.raises(ModelFolderError, match="not a folder"):
        load_config(folder / "nowhere")


def test_claims_of_a_config_are_checked_before_anything_is_built(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=9999, layer_types=["full_attention"] * 9999)
    with pytest.raises(ModelFolderError, match="9999 layers"):
        load_model(folder)
    edit(folder / "config.json", num_hidden_layers=2, layer_types=["full_attention"] * 2, hidden_size=10**9)
    with pytest.raises(ModelFolderError, match="wrong shape"):
        load_model(folder)
    edit(folder / "config.json", hidden_size=32, num_attention_heads=3)
    with pytest.raises(ModelFolderError, match=r"model: heads 3 is not a multiple"):
        load_model(folder)


def test_a_byte_order_mark_before_the_files_is_no_content(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    (folder / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    for file in folder.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    opened, tokenizer, generation = open_model(folder)
    assert opened.config == CONFIG
    assert tokenizer.fingerprint == TOKENIZER.fingerprint
    assert tokenizer.chat_template == "{{ messages }}"
    assert generation["temperature"] == 0.7


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_settings_that_are_too_large_or_too_deep_are_refused(name: str, folder: Path) -> None:
    (folder / name).write_text("[" * 200_000)
    with pytest.raises(ModelFolderError, match=f"{name} is not JSON"):
        open_model(folder)
    with (folder / name).open("wb") as file:
        file.truncate((64 << 20) + 1)
    with pytest.raises(ModelFolderError, match=f"{name} has 67,108,865 bytes; a {name} has at most"):
        open_model(folder)


def test_a_folder_with_the_two_files_of_gpt2_only_opens(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=257, n_positions=32, n_embd=32, n_layer=1, n_head=2, eos_token_id=256)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    symbols = {**byte_of_symbol(), "<|endoftext|>": 256}
    (tmp_path / "vocab.json").write_text(json.dumps(symbols))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    opened, tokenizer = load_model(tmp_path)
    assert tokenizer.encode("aé") == [97, 195, 169]
    assert tokenizer.end_of_text_id == 256
    assert tokenizer.vocab_size == opened.config.vocab_size


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    big = train_tokenizer(["".join(map(chr, range(0x4E00, 0x4F00)))], kind="char", vocab_size=500)
    with pytest.raises(ModelFolderError, match="500 ids, the model only 280"):
        save_model(folder, model(), big)
    big.save(folder)
    with pytest.raises(ModelFolderError, match="do not belong together"):
        load_model(folder)
    with pytest.raises(UsageError, match="float8"):
        save_model(folder, model(), TOKENIZER, dtype="float8")


def test_a_refusing_disk_leaves_the_old_model(folder: Path) -> None:
    """A limit on the size of files stands in for a full disk: writing the weights fails halfway."""
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    script = textwrap.dedent(f"""
        import resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        import torch
        from owngpt.errors import StorageError
        from owngpt.formats.folder import load_model, save_model
        model, tokenizer = load_model({str(folder)!r})
        with torch.no_grad():
            model.embedding.weight.add_(1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            save_model({str(folder)!r}, model, tokenizer)
        except StorageError as error:
            sys.exit(str(error))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="cannot write"):
        save_model(tmp_path / "file", model(), TOKENIZER)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_weights_file_is_as_readable_as_the_others(folder: Path) -> None:
    """safetensors alone would make it 0600, and a shared folder useless to everybody else."""
    for file in folder.iterdir():
        file.unlink()
    save_model(folder, model(), TOKENIZER)
    (folder / "mine").write_text("x")
    assert (folder / "model.safetensors").stat().st_mode == (folder / "mine").stat().st_mode


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_stay_as_stored_unless_asked(dtype: str, folder: Path) -> None:
    save_model(folder, model(), TOKENIZER, dtype=dtype)
    stored = getattr(torch, dtype)
    assert {parameter.dtype for parameter in load_model(folder, dtype=None)[0].parameters()} == {stored}
    again, _ = load_model(folder)
    for name, tensor in model().state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.to(stored).float()), name
    assert owngpt.load(folder, device="cpu").network.embedding.weight.dtype == stored
    assert owngpt.load(folder, device="cpu", dtype="float32").network.embedding.weight.dtype == torch.float32
    with pytest.raises(UsageError, match="unknown dtype 'int8'; choose auto, float32"):
        owngpt.load(folder, dtype="int8")


def test_changing_a_loaded_model_does_not_change_its_file(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    again, _ = load_model(folder)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.mul_(2)
    assert (folder / "model.safetensors").read_bytes() == before
    assert torch.equal(again.embedding.weight, 2 * model().embedding.weight)
    save_model(folder, again, TOKENIZER)  # over the very file that is mapped
    assert torch.equal(again.embedding.weight, 2 * model().embedding.weight)
    assert torch.equal(load_model(folder)[0].embedding.weight, again.embedding.weight)


PEAK = """
import sys, torch
from pathlib import Path
from owngpt.formats.folder import load_config, load_weights
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
folder, dtype = Path(sys.argv[1]), {"auto": None}.get(sys.argv[2], torch.float32)
config = load_config(folder)
small = load_weights(Path(sys.argv[3]), load_config(sys.argv[3]))  # what is needed once, whatever is loaded
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
before = kilobytes("VmRSS")
model = load_weights(folder, config, dtype=dtype)
total = sum(parameter.double().sum() if parameter.numel() < 1000 else parameter.amax() for parameter in model.parameters())
print((kilobytes("VmHWM") - before) * 1024 / sum(p.numel() * p.element_size() for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a process")
@pytest.mark.parametrize(("stored", "dtype"), [("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "float32")])
def test_the_peak_of_loading_is_about_the_weights(stored: str, dtype: str, folder: Path, tmp_path: Path) -> None:
    """60 MB in bfloat16, 120 MB in float32; every value is touched."""
    wide = {"vocab_size": 8000, "hidden_size": 768, "layers": 4, "head_size": 64, "heads": 12, "key_value_heads": 4}
    config = GPTConfig(context_length=64, intermediate_size=2048, **wide)
    save_model(tmp_path / "big", GPT(config, generator=torch.Generator().manual_seed(1)), TOKENIZER, dtype=stored)
    command = [sys.executable, "-c", PEAK, str(tmp_path / "big"), dtype, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 <= float(done.stdout) <= 1.2


def test_chat_templates_inside_the_settings_are_read(folder: Path) -> None:
    for template in ("{{ 1 }}", [{"name": "tool_use", "template": "{{ 2 }}"}, {"name": "default", "template": "{{ 1 }}"}]):
        edit(folder / "tokenizer_config.json", chat_template=template)
        assert load_model(folder)[1].chat_template == "{{ 1 }}"
    (folder / "chat_template.jinja").write_text("{{ 3 }}")
    assert load_model(folder)[1].chat_template == "{{ 3 }}"


@pytest.mark.parametrize(
    "index",
    [
        "", "{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": ["x.safetensors"]}}',
        '{"weight_map": {"a": "../model.safetensors"}}', '{"weight_map": {"a": "/etc/x.safetensors"}}',
        '{"weight_map": {"a": "..\\\\x.safetensors"}}', '{"weight_map": {"a": "C:x.safetensors"}}',
        '{"weight_map": {"a": "x\\u0000.safetensors"}}', '{"weight_map": {"a": "model.bin"}}', "[" * 100_000,
    ],
)  # fmt: skip
def test_a_hostile_index_is_refused(index: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelFolderError, match=r"index\.json"):
        load_model(folder)


def test_an_index_of_too_many_or_too_large_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {str(n): f"{n}.safetensors" for n in range(10_001)}}))
    with pytest.raises(ModelFolderError, match=r"10,001 files; at most 10,000"):
        load_model(folder)
    with index.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ModelFolderError, match="has at most 67,108,864"):
        load_model(folder)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**50]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
        {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        {"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}},
        {"a": 7},
        [],
    ],
)
def test_a_hostile_safetensors_header_is_refused(header: Any, folder: Path) -> None:
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ModelFolderError, match=r"model\.safetensors is missing, damaged or not safetensors"):
        load_model(folder)


def test_a_header_that_is_not_padded_is_read(folder: Path) -> None:
    """Tensors then lie at odd places in the file."""
    tensors = load_file(folder / "model.safetensors")
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = tensor.numpy().tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * ((1 - len(text)) % 4)  # so that the data begins at an odd place
    assert (8 + len(text)) % 4 == 1
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    again, _ = load_model(folder)
    for name, tensor in model().state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_loading_imports_and_draws_nothing_that_it_does_not_need(folder: Path) -> None:
    """Each of these takes from a tenth of a second to seconds."""
    script = f"""
import sys, torch
torch.manual_seed(1)
state = torch.get_rng_state()
import owngpt
owngpt.load({str(folder)!r}, device="cpu")
assert torch.equal(state, torch.get_rng_state())
slow = {{"sympy", "torch._dynamo", "jinja2", "yaml", "rich", "owngpt.pretraining", "owngpt.data", "owngpt.formats.gguf"}}
print(sorted(slow & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
