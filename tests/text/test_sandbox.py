"""A hostile template is cut off soon, in little memory, and reaches nothing of Python."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from owngpt.errors import ModelFolderError, UsageError
from owngpt.text.chat import ChatTemplate

FOLDER = Path(__file__).parent
HOSTILE: dict[str, str] = json.loads((FOLDER / "hostile_templates.json").read_text(encoding="utf-8"))
CONVERSATION = [{"role": "user", "content": "Hi <b>"}, {"role": "assistant", "content": "Hello!" * 20}]


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_never_ends_is_cut_off(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(ModelFolderError, match="cut off"):
        ChatTemplate(source).render(CONVERSATION)
    assert time.thread_time() - start < 2.5  # of processor time: other work on the machine does not count


def test_an_attack_takes_little_memory() -> None:
    attacks = [HOSTILE[name] for name in ("slices kept ns", "splitchars", "format many2", "literal set", "center loop")]
    script = (
        "import json, pathlib, resource, sys\n"
        "from owngpt.errors import ModelFolderError\n"
        "from owngpt.text.chat import ChatTemplate\n"
        "for source in json.load(sys.stdin):\n"
        "    try: ChatTemplate(source).render([{'role': 'user', 'content': 'Hi'}])\n"
        "    except ModelFolderError: pass\n"
        # ru_maxrss would count the process that this one was forked from, which is the whole suite
        "status = pathlib.Path('/proc/self/status')\n"
        "lines = status.read_text().splitlines() if status.exists() else []\n"
        "own = [line.split()[1] for line in lines if line.startswith('VmHWM')]\n"
        "print(int(own[0]) // 1024 if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=json.dumps(attacks), capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400  # MB, the libraries included


DEEP = {
    "parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "conditions": "{% if a %}" * 500 + "{% endif %}" * 500,
    "loops": "{% for a in b %}" * 60 + "{% endfor %}" * 60,
    "a sum": "{{ " + "+".join(["a"] * 20000) + " }}",
    "negations": "{{ " + "not " * 10000 + "a }}",
    "attributes": "{{ a" + ".a" * 30000 + " }}",
    "length": "x" * 70_000,
}


@pytest.mark.parametrize("source", DEEP.values(), ids=DEEP.keys())
def test_a_template_that_cannot_be_compiled_is_refused(source: str) -> None:
    start = time.thread_time()
    with pytest.raises(ModelFolderError, match="chat template"):
        ChatTemplate(source)
    assert time.thread_time() - start < 2.5


def test_endless_recursion_is_refused() -> None:
    for source in ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{% block a %}{{ self.a() }}{% endblock %}"):
        with pytest.raises(UsageError, match="nested too deeply"):
            ChatTemplate(source).render(CONVERSATION)


def test_a_long_conversation_is_not_cut_off() -> None:
    source = (FOLDER / "templates" / "qwen3.jinja").read_text(encoding="utf-8")
    messages = [
        message
        for turn in range(500)
        for message in (
            {"role": "user", "content": f"{turn} " * 500},
            {"role": "assistant", "content": "<think>\nhm\n</think>\n\n" + "Yes. " * 500},
        )
    ]
    assert ChatTemplate(source).render(messages).count("<|im_start|>") == 1000


NO_WAY_OUT = {
    "method of a number": "{{ (1).to_bytes(10**9, 'big') }}",
    "bytes": "{{ 'a'.encode().center(10**9) }}",
    "table of growth": "{{ ('a' * 1000000).translate({97: 'b' * 100000}) }}",
    "tabs": "{{ ('\\t' * 1000000).expandtabs(10000) }}",
    "frame of a generator": "{{ (messages | map('upper')).gi_frame.f_back }}",
    "code of a macro": "{% macro f() %}{% endmacro %}{{ f._func.__code__ }}",
    "format_map": "{{ '{a.__class__.__mro__}'.format_map({'a': 1}) }}",
    "globals of a function": "{{ strftime_now.__globals__.json }}",
    "globals of a class": "{{ joiner.__init__.__globals__ }}",
    "namespace": "{% set n = namespace(__class__=1) %}",
}


@pytest.mark.parametrize("source", NO_WAY_OUT.values(), ids=NO_WAY_OUT.keys())
def test_nothing_of_python_can_be_reached(source: str) -> None:
    with pytest.raises(UsageError, match="unsafe"):
        ChatTemplate(source).render(CONVERSATION)
