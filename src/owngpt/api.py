"""The Python face of OwnGPT: assembles the rooms below.

>>> model = owngpt.load("runs/books")
>>> print(model.generate("Call me", max_new_tokens=60, temperature=0.8))
>>> for piece in model.stream("Call me"): print(piece, end="")
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from owngpt.config.generation import GenerationConfig
from owngpt.errors import UsageError
from owngpt.formats.folder import DTYPES, load_family, open_model
from owngpt.formats.locate import locate
from owngpt.model.config import GPTConfig
from owngpt.model.gpt import GPT
from owngpt.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from owngpt.data.prepare import prepare
    from owngpt.engine.load import LoadedEngine, PreparedEngine, Quantize
    from owngpt.engine.sequence import Generation
    from owngpt.engine.texts import TextStream
    from owngpt.evaluate.bits import Progress, Score
    from owngpt.finetune.result import FinetunedModel
    from owngpt.finetune.start import finetune
    from owngpt.formats.exports import Export, Format
    from owngpt.formats.hub.pull import pull
    from owngpt.pretraining import TrainedModel, train
    from owngpt.text.conversation import EncodedChat

__all__ = [
    "FinetunedModel",
    "Model",
    "TrainedModel",
    "evaluate",
    "export",
    "finetune",
    "load",
    "locate",
    "prepare",
    "pull",
    "train",
]

_HOMES = {
    "FinetunedModel": "owngpt.finetune.result",
    "TrainedModel": "owngpt.pretraining",
    "finetune": "owngpt.finetune.start",
    "prepare": "owngpt.data.prepare",
    "pull": "owngpt.formats.hub.pull",
    "train": "owngpt.pretraining",
}
"""Imported at their first use: who only loads a model does not wait for them."""


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""What a model folder's generation_config.json may set when it asks for sampling."""


def load(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    device: str | None = None,
    dtype: str = "auto",
    quantize: Quantize = "none",
    speculate: bool = False,
    draft: str | Path | None = None,
) -> Model:
    """Open a model.

    :param path: a folder in the Hugging Face layout, written by OwnGPT or by others; a .gguf file; the name under which a
        model was pulled, see :func:`owngpt.formats.locate.locate`; or the folder of a LoRA adapter, which is opened over the
        base that it names.
    :param adapter: the folder of a LoRA adapter, to be merged into this model; its tokenizer and chat template, if it has
        them, take the place of the model's.
    :param device: where to compute, as torch names it; by default the first GPU if there is one, else the CPU.
    :param dtype: what to compute in: float32, bfloat16, float16, or auto, which is what the weights are stored in.
    :param quantize: what writes: none computes in ``dtype``, int8 and int4 on smaller weights, auto on the fastest of all
        that write nearly as well (perplexity less than one percent higher). :meth:`Model.logits` is never quantized.
    :param speculate: guess tokens from what the text has already and check several in one step, where that pays.
    :param draft: a small model with the same tokenizer, which guesses too; it implies ``speculate``.
    :raises UsageError: an option is out of range, or the draft model has another tokenizer.
    :raises ModelFolderError: when something is missing, damaged or does not fit together.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; choose auto, {', '.join(DTYPES)}")
    adapter, draft = (None if given is None else locate(given) for given in (adapter, draft))
    source = _Source(locate(path), adapter, _device(device), DTYPES.get(dtype), quantize, speculate or draft is not None, draft)
    if quantize != "none" and source.device.type == "cpu":
        return source.written_by_packed_weights()
    network, tokenizer, generation = source.open()
    return Model(network, tokenizer, generation=generation, source=source)


@dataclass(frozen=True)
class _Source:
    """Where a model came from, so that what it needs later is read when it is needed."""

    path: Path
    adapter: Path | None
    device: torch.device
    dtype: torch.dtype | None
    quantize: Quantize
    speculate: bool
    draft: Path | None

    @property
    def takes_the_fastest(self) -> bool:
        """Whether neither a data type nor a kind of weights was asked for."""
        return self.dtype is None and self.quantize == "auto"

    def open(self) -> tuple[GPT, Tokenizer, dict[str, Any]]:
        """Its network in the data type that was asked for, its tokenizer, its generation_config.json."""
        network, tokenizer, generation = open_model(self.path, dtype=self.dtype, needs_tokenizer=False, adapter=self.adapter)
        return network.to(self.device).eval(), tokenizer, generation

    def engine(self) -> LoadedEngine:
        """Its weights packed for the kernels of this machine, where they run."""
        from owngpt.engine.load import load_engine  # not at the top: looking at logits does not need it

        return load_engine(self.path, quantize=self.quantize, dtype=self.dtype, adapter=self.adapter)

    def guessing(self, engine: PreparedEngine, tokenizer: Tokenizer) -> PreparedEngine:
        """The engine, with the guesses that were asked for."""
        if self.speculate:
            from owngpt.engine.guessing import speculation_with  # not at the top, as above

            engine.guess_with(speculation_with(self.draft, tokenizer, device=self.device, dtype=self.dtype))
        return engine

    def written_by_packed_weights(self) -> Model:
        """A model whose network is read only when somebody asks for it."""
        loaded = self.engine()
        self.guessing(loaded.engine, loaded.tokenizer)
        return Model(
            None, loaded.tokenizer, generation=loaded.generation, source=self, engine=loaded.engine, config=loaded.config
        )


def evaluate(
    model: Model | str | Path,
    *,
    data: str | Path | Iterable[str | Path],
    context_length: int | None = None,
    stride: int | None = None,
    dtype: str = "float32",
    adapter: str | Path | None = None,
    progress: Progress | None = None,
) -> Score:
    """Score a model on files it never saw, with a sliding window.

    :param data: files or folders; their text is decoded and otherwise left as it is.
    :param context_length: tokens of a window, by default the model's context length.
    :param stride: tokens between windows, by default half of the window.
    :param dtype: what a model that is named is computed in; float32 is exact, bfloat16 faster, auto as it is stored.
    :param adapter: the folder of a LoRA adapter to merge into a model that is named.
    :param progress: called with the number of tokens scored so far.
    :returns: bits per byte, perplexity and the counts they rest on.
    """
    from owngpt.evaluate.files import score_files  # not at the top: loading a model does not need it

    if isinstance(model, Model) and adapter is not None:
        raise UsageError("adapter is given for a model that is open already; give it to owngpt.load()")
    model = model if isinstance(model, Model) else load(model, dtype=dtype, adapter=adapter)
    paths = [data] if isinstance(data, str | Path) else list(data)
    return score_files(model.network, model.tokenizer, paths, context_length=context_length, stride=stride, progress=progress)


def export(
    model: str | Path,
    *,
    format: Format,
    output: str | Path,
    dtype: str | None = None,
    force: bool = False,
    adapter: str | Path | None = None,
) -> Export:
    """Write a model for other programs; an adapter is merged into its base.

    :param model: what :func:`load` takes.
    :param format: hf, a folder that transformers opens; gguf, one file for llama.cpp; ollama, a GGUF with its Modelfile.
    :param output: a folder; for gguf a file that ends in .gguf.
    :param dtype: hf: float32, bfloat16 or float16, by default as the model is stored; gguf and ollama: float32, float16,
        bfloat16, q8_0 or q4_0, by default q8_0.
    :param force: replace what is there.
    :param adapter: the folder of a LoRA adapter to merge into the model.
    :returns: the files written, and in sentences what is not quite as asked.
    :raises UsageError: an unknown format or dtype, or the output is there already.
    :raises ModelFolderError: the format cannot hold this model; the message says why.
    """
    from owngpt.formats.exports import check_output, export_model  # not at the top: few programs export

    check_output(format, Path(output), force=force)
    found = locate(model)
    family = load_family(found).model_type
    network, tokenizer, generation = open_model(found, dtype=None, adapter=None if adapter is None else locate(adapter))
    return export_model(
        network, tokenizer, format=format, output=output, dtype=dtype, force=force, generation=generation, family=family
    )


class Model:
    """A GPT with its tokenizer, ready to write.

    Options of :meth:`generate`, :meth:`stream` and :meth:`chat` are the fields of
    :class:`owngpt.config.generation.GenerationConfig`; what is not given is the model folder's own setting, then the default.
    """

    def __init__(
        self,
        network: GPT | None,
        tokenizer: Tokenizer,
        *,
        generation: Mapping[str, Any] | None = None,
        source: _Source | None = None,
        engine: PreparedEngine | None = None,
        config: GPTConfig | None = None,
    ) -> None:
        """
        :param network: the model; None reads it from the source when it is needed.
        :param generation: the content of generation_config.json, if any.
        :param source: where it came from, if from a file.
        :param engine: what writes; by default one that computes as the network does.
        :param config: the network's, where that is not given.
        """
        assert network is not None or (source is not None and config is not None)
        self.tokenizer = tokenizer
        self._network, self._source, self._engine, self._config = network, source, engine, config
        if engine is not None:
            weakref.finalize(self, engine.close)
        self._defaults = _sampling_defaults(generation or {})
        self._end_ids = _end_ids(tokenizer, generation or {})

    @property
    def network(self) -> GPT:
        """The model itself, with its own weights."""
        if self._network is None:
            assert self._source is not None
            self._network = self._source.open()[0]
        return self._network

    @property
    def engine(self) -> PreparedEngine:
        """What writes: many requests at once, see :class:`owngpt.engine.engine.Engine`; its ``setup`` says on what it runs."""
        if self._engine is None:
            self._engine = self._made_engine()
            if self._source is not None:
                self._source.guessing(self._engine, self.tokenizer)
            weakref.finalize(self, self._engine.close)
        return self._engine

    def _made_engine(self) -> PreparedEngine:
        from owngpt.engine.load import open_engine  # not at the top: looking at logits does not need it

        weight = self.network.embedding.weight
        if self._source is not None and weight.device.type == "cpu" and weight.dtype == torch.bfloat16:
            return self._source.engine().engine  # a second reading, packed: the network keeps its own weights
        network = self.network
        if weight.device.type == "cuda":  # bfloat16 writes twice as fast there, and nearly as well
            if weight.dtype == torch.float32 and self._source is not None and self._source.takes_the_fastest:
                network = copy.deepcopy(network).to(torch.bfloat16)
        elif weight.dtype != torch.float32:
            network = copy.deepcopy(network)  # its own weights are packed
        return open_engine(network, self.tokenizer, quantize="none")

    @property
    def config(self) -> GPTConfig:
        """The model's shape."""
        return self._config or self.network.config

    def generate(self, prompt: str, **options: Any) -> str | list[str]:
        """Continue a text.

        :returns: what was written, without the prompt; a list of texts when ``num_return_sequences`` is above 1.
        :raises UsageError: for an option out of range or a prompt that fills the model's context.
        """
        texts = [generation.text for generation in self.generations(prompt, **options)]
        return texts if self._generation_config(options).num_return_sequences > 1 else texts[0]

    def generations(self, prompt: str, **options: Any) -> list[Generation]:
        """Like :meth:`generate`, with the tokens and the reason each text ended."""
        from owngpt.engine.texts import generate

        config = self._generation_config(options)
        return generate(self.engine, self.tokenizer.encode_prompt(prompt), config, self._end_ids)

    def stream(self, prompt: str, **options: Any) -> TextStream:
        """Continue a text, piece by piece; each piece is valid UTF-8 and together they are what :meth:`generate` returns."""
        from owngpt.engine.texts import generate_stream

        config = self._generation_config(options)
        return generate_stream(self.engine, self.tokenizer.encode_prompt(prompt), config, self._end_ids)

    @overload
    def chat(self, messages: Sequence[Any], *, stream: Literal[False] = False, **options: Any) -> str: ...

    @overload
    def chat(self, messages: Sequence[Any], *, stream: Literal[True], **options: Any) -> TextStream: ...

    def chat(
        self,
        messages: Sequence[Any],
        *,
        stream: bool = False,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        continue_final_message: bool | str = False,
        special_in_contents: bool = False,
        **options: Any,
    ) -> str | TextStream:
        """Answer a conversation.

        :param messages: ``{"role": "system" | "user" | "assistant" | "tool", "content": …}``, oldest first.
        :param stream: return the answer piece by piece.
        :param tools: functions that the model may call: JSON schemas, or Python functions with type hints and a docstring.
        :param documents: ``{"title": …, "text": …}`` each, for templates that read them.
        :param template_variables: what else the model's chat template reads, such as ``{"enable_thinking": False}``.
        :param continue_final_message: go on with the last message instead of answering it.
        :param special_in_contents: let messages write control tokens such as "<|im_end|>"; for trusted text only.
        :raises UsageError: when the model has no chat template, or the conversation fills its context.
        """
        config = self._generation_config(options)
        if config.num_return_sequences != 1:
            raise UsageError(f"num_return_sequences is {config.num_return_sequences}; a chat has one answer: use 1")
        encoded = self.encode_chat(
            messages,
            tools=tools,
            documents=documents,
            template_variables=template_variables,
            continue_final_message=continue_final_message,
            special_in_contents=special_in_contents,
        )
        from owngpt.engine.texts import generate, generate_stream

        if stream:
            return generate_stream(self.engine, encoded.token_ids, config, self._end_ids)
        return generate(self.engine, encoded.token_ids, config, self._end_ids)[0].text

    def encode_chat(
        self,
        messages: Sequence[Any],
        *,
        template_variables: Mapping[str, Any] | None = None,
        continue_final_message: bool | str = False,
        **options: Any,
    ) -> EncodedChat:
        """What the model reads before it answers a conversation; the parameters are those of :meth:`chat`."""
        from owngpt.text.conversation import encode_chat  # not at the top: its template engine is only for conversations

        return encode_chat(
            self.tokenizer,
            messages,
            add_generation_prompt=not continue_final_message,
            continue_final_message=continue_final_message,
            **{**(template_variables or {}), **options},
        )

    def logits(
        self,
        token_ids: Tensor | Sequence[int] | Sequence[Sequence[int]],
        attention_mask: Tensor | Sequence[Sequence[int]] | None = None,
    ) -> Tensor:
        """Logits of the next token at every position.

        :param token_ids: (B, T), or (T,) for one sequence, of ids below ``config.vocab_size``; T at most
            ``config.context_length``.
        :param attention_mask: of the same shape, 1 for tokens and 0 for the padding before them, whose logits mean nothing.
        :returns: (B, T, V) float32 on the CPU.
        :raises UsageError: ids outside of the vocabulary, too many, or a mask of another shape or with gaps.
        """
        ids = self._checked_ids(torch.as_tensor(token_ids))
        mask = None if attention_mask is None else torch.atleast_2d(torch.as_tensor(attention_mask))
        if mask is not None and mask.shape != ids.shape:
            raise UsageError(f"attention_mask is {tuple(mask.shape)}, token_ids are {tuple(ids.shape)}; give both the same shape")
        with torch.inference_mode():
            logits = self.network.logits(ids.to(self.network.embedding.weight.device), attention_mask=mask)
        return logits.float().cpu().clone()  # a clone is an ordinary tensor, which autograd accepts

    def _generation_config(self, options: Mapping[str, Any]) -> GenerationConfig:
        known = [field.name for field in fields(GenerationConfig)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise UsageError(f"unknown generation option {unknown[0]}; there are: {', '.join(known)}")
        return GenerationConfig(**{**self._defaults, **options})

    def _checked_ids(self, ids: Tensor) -> Tensor:
        if ids.dim() == 1:
            ids = ids[None]
        if ids.dim() != 2 or ids.numel() == 0 or ids.is_floating_point():
            raise UsageError(
                f"token_ids are {tuple(ids.shape)} {ids.dtype}; they must be whole numbers, (T,) or (B, T), not empty"
            )
        if ids.shape[1] > self.config.context_length:
            raise UsageError(f"{ids.shape[1]} tokens are longer than the model's context of {self.config.context_length}")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.config.vocab_size:
            wrong = low if low < 0 else high
            raise UsageError(f"token id {wrong} is outside the model's vocabulary, 0 to {self.config.vocab_size - 1}")
        return ids.long()


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch refuses an unknown or absent device with either
        raise UsageError(f"device {name} cannot be used here; leave it out or use cpu") from error
    return device


def _sampling_defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling values of a folder that asks for it; without ``do_sample`` they are left over from its makers' tests, but for
    the penalty on repetition, which is as good for the likeliest text."""
    wanted = SAMPLING_FIELDS if settings.get("do_sample") else ("repetition_penalty",)
    return {name: settings[name] for name in wanted if settings.get(name) is not None}


def _end_ids(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> frozenset[int]:
    """Tokens that end a text: the tokenizer's, and those of the folder, as far as there are such tokens."""
    named = settings.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    vocabulary = tokenizer.vocab_size
    return tokenizer.stop_ids | {token_id for token_id in ids if isinstance(token_id, int) and 0 <= token_id < vocabulary}
