"""Numbers as people read them."""

from __future__ import annotations

import pytest

from petalite.report import words


def clean(text: str) -> str:
    return text.replace(words.NBSP, " ")


@pytest.mark.parametrize(
    ("rate", "images", "expected"),
    [
        (0.98534, 819, "98.5 %"),
        (0.98534, 10_000, "98.53 %"),
        (1.0, None, "100.0 %"),
        (None, 819, "–"),
    ],
)
def test_percent_has_a_second_decimal_only_where_the_images_carry_it(
    rate: float | None, images: int | None, expected: str
) -> None:
    assert clean(words.percent(rate, images)) == expected


@pytest.mark.parametrize(
    ("value", "reference", "expected"),
    [
        (20.0, 10.0, "2.0× slower"),
        (10.0, 20.0, "2.0× faster"),
        (10.1, 10.0, "the same"),
        (10.5, 10.0, "1.05× slower"),
        (1200.0, 10.0, "120× slower"),
        (None, 10.0, ""),
        (10.0, 0.0, ""),
    ],
)
def test_compared(value: float | None, reference: float | None, expected: str) -> None:
    assert words.compared(value, reference, "slower", "faster") == expected


def test_points_never_show_a_negative_zero() -> None:
    assert words.points(-0.001) == "0.00"
    assert words.points(-0.5) == "−0.50"
    assert words.points_interval((-0.121, 0.854)) == "−0.12 to 0.85"


def test_sizes_and_times_keep_three_digits() -> None:
    assert [clean(words.megabytes(size)) for size in (3_624_000, 22_100_000, 1_157_000_000)] == [
        "3.62 MB",
        "22.1 MB",
        "1,157 MB",
    ]
    assert clean(words.milliseconds(58.94)) == "58.9 ms"
    assert [clean(words.seconds(value)) for value in (1.234, 42.0, 200.0, 7500.0)] == [
        "1.2 s",
        "42 s",
        "3 min 20 s",
        "2 h 05 min",
    ]


@pytest.mark.parametrize(("p", "expected"), [(0.00001, "p < 0.001"), (0.0312, "p = 0.031"), (1.0, "p = 1.00")])
def test_p_value(p: float, expected: str) -> None:
    assert clean(words.p_value(p)) == expected


def test_lists_and_counts() -> None:
    assert words.listed([]) == ""
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert words.counted(1, "class", "classes") == "1 class"
    assert words.counted(1200, "photo") == "1,200 photos"


@pytest.mark.parametrize("length", [1, 2, 5, 8, 9])
def test_shortened_text_is_as_long_as_asked(length: int) -> None:
    assert len(words.shortened("abcdefghij", length)) == length
    assert words.shortened("abc", 3) == "abc"


def test_quantile_interpolates() -> None:
    assert words.quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert words.quantile([0.0, 10.0], 0.25) == 2.5
    assert words.quantile([7.0], 0.95) == 7.0
