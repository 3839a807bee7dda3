"""The command as a person meets it: quick help, clear sentences, exit codes, clean streams."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from owngpt.cli.main import GROUPS, VERBS, main

EVERY_VERB = [[verb] for verb in VERBS] + [[group, verb] for group, (_, verbs) in GROUPS.items() for verb in verbs]


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "owngpt", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )


def processor_seconds_of_children() -> float:
    """Of those that have ended; other programs on a busy machine do not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_within_half_a_second_and_without_torch():
    durations = []
    for _ in range(3):
        start = processor_seconds_of_children()
        result = run_command("--help")
        durations.append(processor_seconds_of_children() - start)
        assert result.returncode == 0
    assert min(durations) < 0.5
    code = "import sys; from owngpt.cli.main import main; main(['--help']); print('torch' in sys.modules, 'numpy' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert loaded.stdout.splitlines()[-1] == "False False"


def test_import_costs_less_than_a_tenth_of_a_second():
    code = "import time; start = time.process_time(); import owngpt; print(time.process_time() - start)"
    durations = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) for _ in range(3)]
    assert min(durations) < 0.1


def test_help_names_every_verb(capsys):
    code, out, err = run_main(capsys, "--help")
    assert code == 0
    assert not err
    for name in (*VERBS, *GROUPS):
        assert f" {name} " in out


@pytest.mark.parametrize("verb", EVERY_VERB, ids=" ".join)
def test_every_verb_has_help_without_importing_torch(verb):
    code = f"import sys; from owngpt.cli.main import main; code = main({[*verb, '--help']}); print(code, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "0 False", result.stderr
    assert f"Usage: owngpt {' '.join(verb)}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], ["frobnicate", "owngpt --help"]),
        (["generat", "m"], ["Did you mean", "generate"]),
        (["generate"], ["MODEL"]),
        (["generate", "m", "--temperatur", "1"], ["--temperatur", "Did you mean --temperature"]),
        (["generate", "m", "--prompt", "x", "--top-k", "many"], ["--top-k", "many"]),
        (["generate", "m", "--prompt", "x", "--top-k", "-1"], ["--top-k", "-1", "at least 0"]),
        (["generate", "m", "--prompt", "x", "--top-p", "0"], ["--top-p", "more than 0"]),
        (["generate", "m", "--prompt", "x", "--temperature", "nan"], ["--temperature", "nan"]),
        (["eval", "m"], ["--data"]),
        (["eval", "m", "--data", "x", "--stride", "0"], ["--stride", "at least 1"]),
        (["train", "-o", "out"], ["nothing to train on", "--corpus"]),
        (["train", "--resume"], ["--output"]),
        (["train", "--resume-from", "out/model.safetensors"], ["--resume-from", "out/model.safetensors"]),
        (["train", "books", "--tokenizer", "words"], ["--tokenizer", "words", "bpe"]),
        (["train", "books", "--vocab-size", "100"], ["--vocab-size", "100", "272"]),
        (["train", "books", "--context-length", "1"], ["--context-length", "1", "at least 2"]),
        (["train", "books", "-o", "out", "--minutes", "0"], ["minutes", "0"]),
        (["train", "books", "-o", "out", "--minutes", "soon"], ["--minutes", "soon"]),
        (["train", "books", "-o", "out", "--preset", "gpt5"], ["gpt5", "gpt2"]),
        (["train", "books", "-o", "out", "--config", "absent.yaml"], ["absent.yaml", "--config"]),
        (["data", "prepare", "-o", "out"], ["nothing to prepare", "data prepare"]),
        (["tokenizer", "train", "x", "-o", "out", "--kind", "word"], ["word", "bpe", "byte", "char"]),
        (["tokenizer", "train", "x", "-o", "out", "--vocab-size", "10"], ["--vocab-size", "10"]),
        (["doctor", "--minutes", "-1"], ["--minutes", "-1", "more than 0"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(capsys, arguments, words):
    code, out, err = run_main(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("owngpt: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


def test_wrong_usage_never_imports_torch():
    wrong = ["train", "x", "-o", "y", "--minutes", "0"]
    code = f"import sys; from owngpt.cli.main import main; main({wrong}); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "False"


def test_a_missing_model_is_one_sentence_and_exit_code_1(capsys, tmp_path):
    code, out, err = run_main(capsys, "generate", str(tmp_path / "absent"), "--prompt", "x")
    assert code == 1
    assert out == ""
    assert err.count("\n") == 1
    assert "absent" in err


def test_debug_shows_the_traceback(tmp_path):
    result = run_command("generate", str(tmp_path / "absent"), "--prompt", "x", "--debug")
    assert result.returncode == 1
    assert "Traceback" in result.stderr


def test_no_color_is_respected():
    result = run_command("--help", NO_COLOR="1", FORCE_COLOR="1")
    assert "\x1b[3" not in result.stdout


def test_version_is_the_package_version(capsys):
    import owngpt

    code, out, _ = run_main(capsys, "--version")
    assert code == 0
    assert out.strip() == owngpt.__version__


def test_a_closed_pipe_ends_quietly():
    process = subprocess.Popen(
        [sys.executable, "-m", "owngpt", "data", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err


def wait_until_it_reads(process: subprocess.Popen[str]) -> None:
    """Until it is blocked in a call whose first argument is stdin's descriptor, 0, where Linux tells; else for a while."""
    call = Path(f"/proc/{process.pid}/syscall")
    if not call.exists():
        time.sleep(10)
        return
    before = now = ""
    while now != before or now.split()[1:2] != ["0x0"]:
        before, now = now, call.read_text()
        time.sleep(0.1)


def test_an_interrupt_ends_with_130_and_one_sentence():
    process = subprocess.Popen(
        [sys.executable, "-m", "owngpt", "generate", "model"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a shell in the background has ignored
    )  # fmt: skip
    wait_until_it_reads(process)  # a prompt that is piped in
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err == "owngpt: interrupted\n"
