"""Collecting: what is kept, what is held out, that nothing leaks, and what a person is told when it cannot work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from texts import chinese, english

from owngpt.config.data import DataConfig
from owngpt.data.corpus import Corpus, TextSplit, collect
from owngpt.errors import DataError, UsageError


def write_documents(folder: Path, count: int, size: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    texts = [english(size, seed) for seed in range(count)]
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_text(text)
    return texts


def paragraphs(split: TextSplit) -> set[str]:
    return {part.strip() for text in split.texts() for part in text.split("\n") if len(part.strip()) > 100}


def test_many_documents_are_held_out_whole_and_apart(tmp_path: Path) -> None:
    texts = write_documents(tmp_path / "in", 200, 3000)
    corpus = collect([tmp_path / "in"], tmp_path / "out")
    train, validation = list(corpus.train.texts()), list(corpus.validation.texts())
    assert sorted(train + validation) == sorted(texts)
    assert not set(train) & set(validation)
    assert 0.07 < corpus.validation.bytes / corpus.train.bytes < 0.13


@pytest.mark.parametrize("write", [english, chinese])
def test_one_big_file_gives_up_sections_spread_over_it(tmp_path: Path, write: object) -> None:
    text = write(3_000_000, 1)  # type: ignore[operator]
    (tmp_path / "book.txt").write_text(text)
    corpus = collect([tmp_path / "book.txt"], tmp_path / "out")
    held = list(corpus.validation.texts())
    places = [text.index(section) / len(text) for section in held]
    assert len(held) == 8 and places == sorted(places) and places[0] < 0.2 and places[-1] > 0.8
    assert 48_000 < corpus.validation.bytes < 80_000
    assert all(text[text.index(section) - 1] == "\n" for section in held if text.index(section))
    assert not paragraphs(corpus.validation) & paragraphs(corpus.train)
    assert corpus.train.bytes + corpus.validation.bytes == len(text.encode())
    assert corpus.train.characters + corpus.validation.characters == len(text)


def test_plays_stay_whole_documents_but_for_the_sections_cut_out(tmp_path: Path) -> None:
    texts = write_documents(tmp_path / "in", 20, 150_000)
    corpus = collect([tmp_path / "in"], tmp_path / "out")
    train = list(corpus.train.texts())
    assert sum(text in train for text in texts) >= 20 - corpus.validation.documents
    assert corpus.train.documents <= 20 + corpus.validation.documents


def test_ten_tiny_documents_hold_out_a_tenth_at_most_and_warn(tmp_path: Path) -> None:
    write_documents(tmp_path / "in", 10, 2000)
    corpus = collect([tmp_path / "in"], tmp_path / "out")
    assert 0 < corpus.validation.bytes <= 0.15 * corpus.train.bytes
    assert any("only" in warning for warning in corpus.report.warnings)


def test_the_share_asked_for_is_held_out(tmp_path: Path) -> None:
    write_documents(tmp_path / "in", 200, 3000)
    corpus = collect([tmp_path / "in"], tmp_path / "out", DataConfig(validation_fraction=0.2))
    assert abs(corpus.validation.bytes / (corpus.train.bytes + corpus.validation.bytes) - 0.2) < 0.02


def test_the_split_follows_content_and_seed_only(tmp_path: Path) -> None:
    texts = write_documents(tmp_path / "in", 200, 2000)
    first = set(collect([tmp_path / "in"], tmp_path / "a").validation.texts())
    (tmp_path / "renamed").mkdir()
    for number, text in enumerate(reversed(texts)):
        (tmp_path / "renamed" / f"{number}.txt").write_text(text)
    assert set(collect([tmp_path / "renamed"], tmp_path / "b").validation.texts()) == first
    assert set(collect([tmp_path / "in"], tmp_path / "c", DataConfig(seed=1)).validation.texts()) != first


def test_duplicates_are_removed_and_reported_with_samples(tmp_path: Path) -> None:
    texts = write_documents(tmp_path / "in", 40, 4000)
    (tmp_path / "in" / "copy.txt").write_text(texts[5])
    (tmp_path / "in" / "nearly.txt").write_text(texts[7] + "One more line.\n")
    (tmp_path / "in" / "empty.txt").write_text(" \n\n")
    corpus = collect([tmp_path / "in"], tmp_path / "out")
    removed = {reason: entry.documents for reason, entry in corpus.report.removed.items()}
    assert removed == {"equal to an earlier document": 1, "nearly equal to an earlier document": 1, "empty": 1}
    assert "copy.txt" in corpus.report.removed["equal to an earlier document"].samples[0]
    assert corpus.report.documents == 40
    assert sorted([*corpus.train.texts(), *corpus.validation.texts()]) == sorted(texts)


@pytest.mark.parametrize("config", [DataConfig(near_duplicates=False), DataConfig(deduplicate=False)])
def test_duplicates_that_are_kept_stay_on_one_side(tmp_path: Path, config: DataConfig) -> None:
    texts = write_documents(tmp_path / "in", 150, 2500)
    for number, text in enumerate(texts):
        (tmp_path / "in" / f"again-{number}.txt").write_text(text.replace("whale", "cow", 1))
    corpus = collect([tmp_path / "in"], tmp_path / "out", config)
    assert corpus.report.documents == 300 and corpus.validation.documents >= 8
    assert not paragraphs(corpus.validation) & paragraphs(corpus.train)


def test_a_passage_that_training_holds_too_is_dropped_from_validation(tmp_path: Path) -> None:
    licence = english(700, 99).strip()
    (tmp_path / "in").mkdir()
    for number in range(300):
        (tmp_path / "in" / f"{number}.txt").write_text(f"{licence}\n\n{english(2500, number)}")
    corpus = collect([tmp_path / "in"], tmp_path / "out")
    assert corpus.report.repeated_validation_bytes > 0
    assert not paragraphs(corpus.validation) & paragraphs(corpus.train)
    assert paragraphs(corpus.validation)


def test_a_corpus_that_only_repeats_itself_is_told_so(tmp_path: Path) -> None:
    paragraph = english(400, 3).strip() + "\n\n"
    (tmp_path / "a.txt").write_text(paragraph * 500)
    corpus = collect([tmp_path / "a.txt"], tmp_path / "out")
    assert corpus.validation.bytes > 0
    assert any("repeats itself" in warning for warning in corpus.report.warnings)


def test_an_unchanged_corpus_is_used_again_and_a_changed_one_is_not(tmp_path: Path) -> None:
    write_documents(tmp_path / "in", 30, 2000)
    first = collect([tmp_path / "in"], tmp_path / "out")
    written = os.stat(tmp_path / "out" / "text.utf8").st_mtime_ns
    assert collect([tmp_path / "in"], tmp_path / "out").fingerprint == first.fingerprint
    assert os.stat(tmp_path / "out" / "text.utf8").st_mtime_ns == written
    (tmp_path / "in" / "new.txt").write_text(english(2000, 1000))
    assert collect([tmp_path / "in"], tmp_path / "out").report.documents == 31
    assert collect([tmp_path / "in"], tmp_path / "out", DataConfig(seed=5)).fingerprint != first.fingerprint


def test_a_damaged_corpus_is_named_and_collected_anew(tmp_path: Path) -> None:
    write_documents(tmp_path / "in", 30, 2000)
    good = collect([tmp_path / "in"], tmp_path / "out")
    text = tmp_path / "out" / "text.utf8"
    content = text.read_bytes()
    text.write_bytes(content[:100] + b"X" + content[101:])
    with pytest.raises(DataError, match=r"out is damaged \(the text differs"):
        Corpus.load(tmp_path / "out")
    assert collect([tmp_path / "in"], tmp_path / "out").text_sha256 == good.text_sha256


def test_pieces_and_samples_are_whole_characters_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(chinese(400_000, 5))
    corpus = collect([tmp_path / "a.txt"], tmp_path / "out")
    pieces = list(corpus.train.pieces(5000))
    joined = "".join(piece + ("\0" if last else "") for piece, last in pieces)
    assert joined.split("\0")[:-1] == list(corpus.train.texts())
    sample = corpus.train.sample(50_000)
    assert 40_000 < sum(len(piece.encode()) for piece in sample) < 70_000
    assert all(any(piece in text for text in corpus.train.texts()) for piece in sample)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
def test_one_enormous_line_becomes_a_corpus_in_bounded_memory(tmp_path: Path) -> None:
    block = english(1_000_000, 1).replace("\n", " ")
    with open(tmp_path / "line.txt", "w") as file:
        for number in range(50):
            file.write(f"{number} {block}")
    code = (
        "import sys, pathlib; from owngpt.data.corpus import collect;"
        "peak = lambda: int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]);"
        "before = peak();"
        "c = collect([sys.argv[1]], sys.argv[2]);"
        "print(c.train.bytes + c.validation.bytes, peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "line.txt"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    size, grown = map(int, done.stdout.split())
    assert size == (tmp_path / "line.txt").stat().st_size
    assert grown * 1024 < 150 * 2**20  # the text file itself is mapped: its 50 MB count while they are in memory


def test_masking_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(english(3000, 1) + "Mail ann@example.org.\n")
    corpus = collect([tmp_path / "a.txt"], tmp_path / "out", DataConfig(mask_personal_data=True))
    assert corpus.report.masked == {"EMAIL": 1}
    assert "[EMAIL]" in "".join([*corpus.train.texts(), *corpus.validation.texts()])


def test_what_cannot_work_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no files"):
        collect([tmp_path / "empty"], tmp_path / "out")
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "data").write_bytes(os.urandom(4000))
    with pytest.raises(DataError, match=r"no text could be read from .*binary: 1 × binary, not text \(.*data\)"):
        collect([tmp_path / "binary"], tmp_path / "out")
    (tmp_path / "tiny.txt").write_text("Hello.\n")
    with pytest.raises(DataError, match="holds only 7 bytes of text, and at least 256 are needed"):
        collect([tmp_path / "tiny.txt"], tmp_path / "out")
    with pytest.raises(DataError, match="neither a file or folder here nor a named corpus; did you mean shakespeare"):
        collect(["shakespear"], tmp_path / "out")


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(english(5000, 1))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("years of work")
    with pytest.raises(UsageError, match=r"already holds something else \(thesis.doc\)"):
        collect([tmp_path / "a.txt"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.doc"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is a file; choose an empty or a new folder"):
        collect([tmp_path / "a.txt"], tmp_path / "file")


def test_the_report_survives_its_file_and_reads_well(tmp_path: Path) -> None:
    write_documents(tmp_path / "in", 30, 4000)
    (tmp_path / "in" / "zh.txt").write_bytes(chinese(30_000, 1).encode("gb18030"))
    report = Corpus.load(collect([tmp_path / "in"], tmp_path / "out").folder).report
    text = "\n".join(report.lines())
    assert "31 documents" in text and "gb18030" in text and "zh" in text and "documents by length" in text
    assert len(report.sources) == 31 and all(len(source["sha256"]) == 64 for source in report.sources)


def test_the_report_shows_how_long_documents_are(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for seed, size in enumerate((150, 700, 800, 6000)):
        (tmp_path / "in" / f"{seed}.txt").write_text(english(size, seed)[:size])
    report = collect([tmp_path / "in"], tmp_path / "out").report
    assert report.lengths == {"200": 1, "1000": 2, "10000": 1}
    assert (report.median_length, report.longest) == (750, 6000)
    rows = [line.split()[:4] for line in report.lines() if line.startswith("  <")]
    assert rows[0] == ["<", "200", "bytes", "1"] and [row[3] for row in rows[:5]] == ["1", "0", "2", "0", "0"]


def test_names_that_are_not_text_do_not_upset_the_report(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, seed in ((b"\xff\xfe.txt", 1), (b"red\x1b[31m\n.txt", 2), ("三国.txt".encode(), 3)):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(english(3000, seed))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xfe.pdf")).write_bytes(b"%PDF")
    report = collect([folder], tmp_path / "out").report
    assert {Path(source["path"]).name for source in report.sources} == {r"\xff\xfe.txt", r"red\x1b[31m\n.txt", "三国.txt"}
    assert all(source["bytes"] >= 3000 for source in report.sources)
    assert report.skipped_samples["not a text file"][0].endswith(r"\xfe.pdf")


def test_a_masked_corpus_shows_no_masked_value_anywhere(tmp_path: Path) -> None:
    person = (
        "客户张三，身份证11010519491231002X，手机13812345678，邮箱zhang.san@163.com，住在城南的一条小街上，每天早晨散步{}。\n"
    )
    texts = [person.format(""), person.format(""), person.format("一小时"), english(3000, 1)]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    corpus = collect([tmp_path / "people.jsonl"], tmp_path / "out", DataConfig(mask_personal_data=True))
    assert (
        corpus.report.masked == {"EMAIL": 3, "ID": 3, "PHONE": 3}
        and sum(r.documents for r in corpus.report.removed.values()) >= 1
    )
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir()).decode("utf-8", errors="replace")
    assert "身份证[ID]，手机[PHONE]，邮箱[EMAIL]" in written
    assert not any(value in written for value in ("1949", "13812345678", "zhang.san"))


def test_a_full_disk_is_said_and_other_folders_are_untouched(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(english(1_000_000, 1))
    good = collect([tmp_path / "a.txt"], tmp_path / "good")
    # A limit on the size of files makes writes fail half-way, as a full disk does.
    code = (
        "import resource, sys; from owngpt.data.corpus import collect; from owngpt.errors import StorageError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try: collect([sys.argv[1]], sys.argv[2])\n"
        "except StorageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.txt"), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "out") in done.stdout and "limit" in done.stdout
    assert Corpus.load(tmp_path / "good").text_sha256 == good.text_sha256
    with pytest.raises(DataError, match=r"corpus.json is missing"):
        Corpus.load(tmp_path / "out")


def test_a_change_behind_a_restored_time_is_noticed(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("one way to say it, at some length. " * 40)
    before = source.stat()
    first = collect([source], tmp_path / "text")
    source.write_text("two way to say it, at some length. " * 40)
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert collect([source], tmp_path / "text").text_sha256 != first.text_sha256
