"""Several comparisons on the same images at once: intervals and tests for means, and what many tests at once allow.

    low, high = mean_intervals(differences)[0]     # differences (K, N): K comparisons on N images
    p = sign_flip_p(differences)                   # how likely a mean so far from 0 is by chance, for each of the K
    holm(p)                                        # the same, corrected for there being K of them

Means rather than counts: a divergence differs on every image, where top-1 differs on a handful of them. Nothing is
assumed about the distribution, since a few images carry most of a divergence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from petalite.errors import PetaliteError

RESAMPLES = 9_999
_CELLS = 8_000_000  # random numbers held at once

Numbers = NDArray[np.float64]


def mean_intervals(values: Numbers, resamples: int = RESAMPLES, seed: int = 0) -> list[tuple[float, float]]:
    """The 95 % interval of each row's mean; values (K, N). Images are drawn anew, the same ones for every row.

    Source: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7 (1979): percentiles.
    """
    count = _checked(values).shape[1]
    random = np.random.default_rng(seed)
    even = np.full(count, 1 / count)
    means = [random.multinomial(count, even, size) @ values.T / count for size in _sizes(resamples, count)]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def sign_flip_p(differences: Numbers, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """Two-sided p of each row's mean against 0; differences (K, N), each of a pair that would be exchangeable by chance.

    Source: Fisher, "The Design of Experiments" (1935), section 21: the sign of each difference is as likely the other.
    """
    count = _checked(differences).shape[1]
    random = np.random.default_rng(seed)
    seen = np.abs(differences.sum(axis=1))
    reached = np.zeros(len(differences))
    for size in _sizes(resamples, count):
        signs = random.integers(0, 2, (size, count), dtype=np.int8) * 2.0 - 1.0
        reached += (np.abs(signs @ differences.T) >= seen * (1 - 1e-12)).sum(axis=0)
    return [float(p) for p in (1 + reached) / (1 + resamples)]


def holm(p_values: Sequence[float]) -> list[float]:
    """p corrected for their number: below 0.05 means at most 5 % chance of calling any idle one of them real.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979).
    """
    corrected = [1.0] * len(p_values)
    least = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = least
    return corrected


def _sizes(resamples: int, count: int) -> Iterator[int]:
    """`resamples` in portions that fit in memory."""
    portion = max(1, _CELLS // count)
    for start in range(0, resamples, portion):
        yield min(portion, resamples - start)


def _checked(values: Numbers) -> Numbers:
    if values.ndim != 2 or values.shape[1] == 0 or not np.isfinite(values).all():
        raise PetaliteError(f"paired comparisons need finite numbers (comparisons, images), got {values.shape}")
    return values
