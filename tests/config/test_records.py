"""Configuration records refuse values out of range, with the value, the limit and the option's name."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest

from owngpt.config.data import DataConfig
from owngpt.config.generation import GenerationConfig
from owngpt.config.training import TrainConfig
from owngpt.errors import UsageError


@pytest.mark.parametrize(
    ("record", "settings", "words"),
    [
        (GenerationConfig, {"max_new_tokens": 0}, ["--max-new-tokens", "0", "at least 1"]),
        (GenerationConfig, {"temperature": -0.1}, ["--temperature", "-0.1"]),
        (GenerationConfig, {"temperature": math.inf}, ["--temperature", "inf"]),
        (GenerationConfig, {"top_p": 1.5}, ["--top-p", "1.5"]),
        (GenerationConfig, {"min_p": math.nan}, ["--min-p", "nan"]),
        (GenerationConfig, {"repetition_penalty": 0}, ["--repetition-penalty", "more than 0"]),
        (GenerationConfig, {"stop": ("",)}, ["--stop"]),
        (GenerationConfig, {"num_beams": 2, "num_return_sequences": 3}, ["--num-return-sequences 3", "--num-beams 2"]),
        (GenerationConfig, {"seed": -1}, ["--seed", "-1"]),
        (GenerationConfig, {"typical_p": 0}, ["--typical-p", "more than 0"]),
        (GenerationConfig, {"presence_penalty": 2.5}, ["--presence-penalty", "2.5", "-2 to 2"]),
        (GenerationConfig, {"frequency_penalty": -3}, ["--frequency-penalty", "-3"]),
        (GenerationConfig, {"no_repeat_ngram_size": -1}, ["--no-repeat-ngram-size", "-1"]),
        (GenerationConfig, {"logit_bias": {5: 101}}, ["--logit-bias", "101", "-100 to 100"]),
        (GenerationConfig, {"logit_bias": {"five": 1}}, ["--logit-bias", "five"]),
        (GenerationConfig, {"logit_bias": dict.fromkeys(range(1025), 1)}, ["--logit-bias", "1025", "at most 1024"]),
        (GenerationConfig, {"length_penalty": math.nan}, ["--length-penalty", "nan"]),
        (GenerationConfig, {"stop_token_ids": (-1,)}, ["--stop-token-ids", "-1"]),
        (GenerationConfig, {"log_probabilities": 21}, ["--log-probabilities", "21", "0 to 20"]),
        (GenerationConfig, {"regex": "a", "choices": ("b",)}, ["--regex", "--choices", "only one"]),
        (GenerationConfig, {"choices": ("",)}, ["--choices", "empty"]),
        (GenerationConfig, {"regex": ""}, ["--regex", "empty"]),
        (GenerationConfig, {"grammar": "x" * 200_000}, ["--grammar", "200000", "at most 131072"]),
        (GenerationConfig, {"max_new_tokens": 2**40}, ["--max-new-tokens", str(2**40), "at most 2147483647"]),
        (GenerationConfig, {"max_new_tokens": True}, ["--max-new-tokens", "True", "whole number"]),
        (GenerationConfig, {"top_k": 1.5}, ["--top-k", "1.5", "whole number"]),
        (GenerationConfig, {"num_beams": 1.5}, ["--num-beams", "1.5", "whole number"]),
        (GenerationConfig, {"seed": "a"}, ["--seed", "'a'", "whole number"]),
        (GenerationConfig, {"top_p": "a"}, ["--top-p", "'a'", "a number"]),
        (GenerationConfig, {"temperature": None}, ["--temperature", "None", "a number"]),
        (GenerationConfig, {"stop": (5,)}, ["--stop", "(5,)", "texts"]),
        (GenerationConfig, {"stop": 5}, ["--stop", "5", "texts"]),
        (GenerationConfig, {"stop_token_ids": 5}, ["--stop-token-ids", "5", "token ids"]),
        (GenerationConfig, {"stop_token_ids": (2**40,)}, ["--stop-token-ids", "at most 2147483647"]),
        (GenerationConfig, {"logit_bias": {1.5: 1}}, ["--logit-bias", "1.5"]),
        (GenerationConfig, {"logit_bias": {2**70: 1}}, ["--logit-bias", "at most 2147483647"]),
        (GenerationConfig, {"regex": 5}, ["--regex", "5", "a text"]),
        (GenerationConfig, {"regex": Path("digits.txt")}, ["--regex", "digits.txt", "a text"]),
        (GenerationConfig, {"temperature": 10**400}, ["--temperature", "not so large"]),
        (GenerationConfig, {"ignore_end": "no"}, ["--ignore-end", "'no'", "true or false"]),
        (DataConfig, {"validation_fraction": 0.0}, ["--validation-fraction"]),
        (DataConfig, {"validation_fraction": 0.9}, ["--validation-fraction", "0.9"]),
        (DataConfig, {"workers": -1}, ["--workers"]),
        (TrainConfig, {"minutes": 0}, ["minutes", "0"]),
        (TrainConfig, {"minutes": math.nan}, ["minutes", "nan"]),
        (TrainConfig, {"steps": 0}, ["steps", "0"]),
        (TrainConfig, {"minutes": 1, "steps": 1}, ["--minutes", "--steps"]),
        (TrainConfig, {"preset": "gpt5"}, ["gpt5", "gpt2-medium"]),
        (TrainConfig, {"dropout": 1.0}, ["dropout", "1.0"]),
        (TrainConfig, {"layers": 0}, ["layers", "0"]),
    ],
    ids=str,
)
def test_a_value_out_of_range_is_named_with_its_limit(record, settings, words):
    with pytest.raises(UsageError) as caught:
        record(**settings)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("record", [GenerationConfig, DataConfig, TrainConfig])
def test_records_are_frozen_and_every_field_has_a_help_text(record):
    from docstring_parser import parse_from_object

    config = record()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    helped = {parameter.arg_name for parameter in parse_from_object(record).params if parameter.description}
    assert helped == {field.name for field in dataclasses.fields(record)}


def test_one_stop_text_may_be_given_as_it_is():
    assert GenerationConfig(stop="end").stop == ("end",)


def test_what_json_requests_hold_is_taken_as_it_is():
    config = GenerationConfig(logit_bias={"50": 2}, json_schema={"type": "object"}, stop_token_ids=[3])
    assert config.logit_bias == {50: 2.0}
    assert config.json_schema == '{"type": "object"}'
    assert config.stop_token_ids == (3,)
    assert (config.constrained, GenerationConfig().constrained) == ("json_schema", None)
