"""Numbers as people read them: one place decides how a rate, a size, a time or a ratio is written.

    percent(0.98534, images=819)        # "98.5 %"
    megabytes(5_300_000)                # "5.30 MB"
    compared(20.0, 10.0, "slower", "faster")   # "2.0× slower"

Every function takes None for "not measured" and answers with a dash, so that no table cell is ever "None" or "nan".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

DASH = "–"
NBSP = "\u00a0"
MINUS = "\u2212"

#: From here on the second decimal of a percentage says something: one image is at most 0.05 points.
IMAGES_FOR_TWO_DECIMALS = 2_000
#: Ratios closer to 1 than this are called equal.
SAME_WITHIN = 0.02


def percent(rate: float | None, images: int | None = None) -> str:
    """`rate` (a fraction of 1) in percent, with one decimal, or two where the number of images carries them."""
    return DASH if rate is None else f"{100 * rate:.{_decimals(images)}f}{NBSP}%"


def percent_interval(interval: tuple[float, float] | None, images: int | None = None) -> str:
    """An interval of fractions as `97.5–99.2 %`; empty when there is none."""
    if interval is None:
        return ""
    decimals = _decimals(images)
    return f"{100 * interval[0]:.{decimals}f}–{100 * interval[1]:.{decimals}f}{NBSP}%"


def points(value: float | None) -> str:
    """Percentage points with two decimals and a real minus sign."""
    if value is None:
        return DASH
    text = f"{abs(value):.2f}"
    return f"{MINUS}{text}" if value < 0 and float(text) else text


def points_interval(interval: tuple[float, float] | None) -> str:
    """An interval of percentage points as `−0.12 to 0.85`; empty when there is none."""
    return "" if interval is None else f"{points(interval[0])} to {points(interval[1])}"


def plain(value: float) -> str:
    """A budget as it was given: `1`, `0.5`."""
    return f"{value:g}"


def budget(value: float) -> str:
    """A budget with its unit: `1 point`, `0.5 points`."""
    return f"{plain(value)} {'point' if value == 1 else 'points'}"


def megabytes(size: float | None) -> str:
    """Bytes in MB (10^6), three digits where they help."""
    return DASH if size is None else f"{_three_digits(size / 1e6)}{NBSP}MB"


def milliseconds(value: float | None) -> str:
    """Milliseconds, three digits where they help."""
    return DASH if value is None else f"{_three_digits(value)}{NBSP}ms"


def per_second(value: float | None) -> str:
    """Images a second."""
    return DASH if value is None else f"{_three_digits(value)}"


def seconds(value: float | None) -> str:
    """A duration as `12 s`, `3 min 20 s` or `2 h 05 min`."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.1f}{NBSP}s" if value < 10 else f"{value:.0f}{NBSP}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}{NBSP}min {rest}{NBSP}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}{NBSP}h {minutes:02d}{NBSP}min"


def times(ratio: float) -> str:
    """A ratio as `7.1×`, with the digits that keep it from reading as 1.0× or 0.0×."""
    if ratio >= 10:
        return f"{ratio:,.0f}×"
    return f"{ratio:.1f}×" if ratio >= 1.1 else f"{ratio:.2f}×"


def compared(value: float | None, reference: float | None, more: str, less: str, same: str = "the same") -> str:
    """`value` against `reference` in words: `2.0× slower`, `1.3× faster`; empty when either is missing.

    `more` names a larger value, `less` a smaller one; within 2 % it is `same`.
    """
    if not value or not reference:
        return ""
    ratio = value / reference
    if abs(ratio - 1) <= SAME_WITHIN:
        return same
    return f"{times(ratio)} {more}" if ratio > 1 else f"{times(1 / ratio)} {less}"


def p_value(value: float | None) -> str:
    """McNemar's p as `p = 0.03` or `p < 0.001`; empty when there is none."""
    if value is None:
        return ""
    if value < 0.001:
        return f"p{NBSP}<{NBSP}0.001"
    return f"p{NBSP}={NBSP}{min(value, 1):.2f}" if value >= 0.095 else f"p{NBSP}={NBSP}{value:.3f}"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    parts = list(words)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """`1 photo`, `3 photos`, `1,200 photos`."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def shortened(text: str, length: int) -> str:
    """`text`, its middle replaced by an ellipsis when it is longer than `length` characters."""
    if len(text) <= length:
        return text
    head = (length - 1 + 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def quantile(values: Sequence[float], q: float) -> float:
    """The `q` quantile (0 to 1) of `values` by linear interpolation between neighbours; `values` is not empty."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def _decimals(images: int | None) -> int:
    return 2 if images is not None and images >= IMAGES_FOR_TWO_DECIMALS else 1


def _three_digits(value: float) -> str:
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
