"""What can be named instead of a file is listed, with its licence."""

from __future__ import annotations

import json

import pytest

from owngpt.cli.main import main
from owngpt.data.corpora import CORPORA
from owngpt.finetune.examples.named import named_sets


def test_every_named_set_is_listed_with_its_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "sets"]) == 0

    listed = capsys.readouterr().out
    for name, corpus in [*CORPORA.items(), *((name, each.corpus) for name, each in named_sets().items())]:
        assert f"  {name}\n    {corpus.description}\n" in listed
        assert f"licence: {corpus.licence}" in listed


def test_the_list_is_json_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "sets", "--json"]) == 0

    listed = json.loads(capsys.readouterr().out)
    assert listed["texts"].keys() == CORPORA.keys()
    assert listed["examples"]["faq-zaragoza"]["examples"] == 503
