"""Cleaning and masking change what they should and nothing else."""

from __future__ import annotations

from collections import Counter

import pytest

from owngpt.data.clean import clean
from owngpt.data.personal import chinese_id_holds, luhn_holds, mask


@pytest.mark.parametrize(
    "text",
    [
        "Plain text,  two spaces\tand a tab.\n",
        "你好，世界！“引号”　全角ＡＢＣ\n",
        "naïve café — “quoted” … Ångström Über\n",
        "👩‍👩‍👧 emoji\n",
    ],
)
def test_good_text_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_wrongly_decoded_lines_are_mended_and_their_neighbours_left() -> None:
    broken = "l’été à Paris".encode().decode("cp1252") + "\nfine café\n" + "分久必合".encode().decode("latin-1")
    counts: Counter[str] = Counter()
    assert clean(broken, counts=counts) == "l’été à Paris\nfine café\n分久必合"
    assert counts["repaired lines"] == 2
    assert clean(broken, repair=False) != clean(broken)


def test_line_ends_controls_and_composition_are_normalised() -> None:
    assert clean("a\r\nb\rc\x0cd\x00e\x1b") == "a\nb\nc\nde"
    assert clean("\ufeffe\u0301\u200b\u2028é\ud800") == "é\né"


def test_personal_data_is_masked_by_kind() -> None:
    text = (
        "Write to ann.smith+news@mail.example.org or call +86 138 0013 8000, 13800138000 or (212) 555-0123. "
        "Card 4111 1111 1111 1111, id 11010519491231002X, host 192.168.0.1 or 2001:db8::8a2e:370:7334, "
        "key sk-abcdefghijklmnopqrstuvwxyz123456 and AKIAIOSFODNN7EXAMPLE."
    )
    counts: Counter[str] = Counter()
    assert mask(text, counts) == (
        "Write to [EMAIL] or call [PHONE], [PHONE] or [PHONE]. Card [CARD], id [ID], host [IP] or [IP], key [KEY] and [KEY]."
    )
    assert counts == {"EMAIL": 1, "PHONE": 3, "CARD": 1, "ID": 1, "IP": 2, "KEY": 2}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("手机13812345678，座机010-62345678或（010）6234 5678。", "手机[PHONE]，座机[PHONE]或[PHONE]。"),
        ("电话：１３８１２３４５６７８，+86 139-1234-5678", "电话：[PHONE]，[PHONE]"),
        ("身份证11010519491231002X、ID11010519491231002x", "身份证[ID]、ID[ID]"),
        ("邮箱zhang.san@163.com请联系，卡6222 0212 3456 7890 128", "邮箱[EMAIL]请联系，卡[CARD]"),
        ("号码110105194912310021不对，订单20230101000123，2023-10-01，价１２３４元", None),
    ],
)
def test_personal_data_in_chinese_text_is_masked(text: str, masked: str | None) -> None:
    assert mask(text) == (masked or text)


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112 fails Luhn",
        "110105194912310021 fails its check digit",
        "version 1.2.3, 999.1.1.1 and section 3.1.4.1.5",
        "std::vector<int> a::b and 12:34:56",
        "the years 1914-1918, $1,234,567.89, 3.14159265358979",
        "user@localhost and @decorator",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert mask(text) == text


def test_check_digits_follow_the_standards() -> None:
    assert luhn_holds("5500 0000 0000 0004") and not luhn_holds("5500 0000 0000 0005") and not luhn_holds("0000000000000000")
    assert chinese_id_holds("11010519491231002X") and not chinese_id_holds("110105194912310020")
