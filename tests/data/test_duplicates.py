"""MinHash agrees with the true Jaccard similarity, and near-duplicates find each other."""

from __future__ import annotations

import numpy as np

from owngpt.data.duplicates import PERMUTATIONS, SHINGLE_BYTES, Signatures, groups

GENERATOR = np.random.Generator(np.random.PCG64(7))


def sentence_text(words: int, generator: np.random.Generator = GENERATOR) -> bytes:
    vocabulary = ["".join(map(chr, generator.integers(97, 123, 6))) for _ in range(400)]
    return " ".join(vocabulary[index] for index in generator.integers(0, 400, words)).encode()


def signatures_of(*texts: bytes) -> np.ndarray:
    signatures = Signatures()
    for text in texts:
        signatures.add(text)
    return signatures.matrix()


def jaccard(one: bytes, other: bytes) -> float:
    sets = [{text[i : i + SHINGLE_BYTES] for i in range(len(text) - SHINGLE_BYTES + 1)} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_the_estimate_is_the_jaccard_similarity() -> None:
    base = sentence_text(600).replace(b" ", b"")
    for cut in (0.95, 0.8, 0.5):
        other = base[: int(cut * len(base))] + sentence_text(300).replace(b" ", b"")[: int((1 - cut) * len(base))]
        one_row, other_row = signatures_of(base, other)
        assert abs((one_row == other_row).mean() - jaccard(base, other)) < 4 * 0.5 / PERMUTATIONS**0.5


def test_case_spaces_and_punctuation_do_not_count() -> None:
    text = sentence_text(100)
    rows = signatures_of(text, text.upper().replace(b" ", b",\n"))
    assert (rows[0] == rows[1]).all()


def test_a_text_added_in_parts_has_the_signature_of_the_whole() -> None:
    text = sentence_text(3000)
    whole = signatures_of(text)
    parts = Signatures()
    for start in range(0, len(text), 997):
        parts.add(text[start : start + 997], last=start + 997 >= len(text))
    assert (parts.matrix() == whole).all()


def test_near_duplicates_are_grouped_with_the_first_and_others_left_alone() -> None:
    texts = [sentence_text(150) for _ in range(50)]
    texts += [texts[3] + b" changed at the end", b"changed first " + texts[3], texts[10].replace(b"a", b"A")]
    expected = [*range(50), 3, 3, 10]
    assert groups(signatures_of(*texts), 0.8).tolist() == expected


def test_documents_too_short_to_compare_stay_alone() -> None:
    assert groups(signatures_of(b"", b"short", b"short", b""), 0.8).tolist() == [0, 1, 2, 3]
