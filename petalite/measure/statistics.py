"""Intervals, tests and percentiles: how sure a measured number is.

    wilson(801, 819)                  # (0.966, 0.986): top-1 of 801 right in 819
    paired_difference(9, 3, 819)      # (0.0073, -0.0013, 0.0170): lost 9 and gained 3 of the same 819 images
    mcnemar_p(9, 3)                   # 0.146
    percentiles([1.0, 1.1, 1.4])      # {"mean": …, "p50": …, "p95": …, "p99": …}

Rates are fractions of 1 and intervals hold with 95 % confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from petalite.errors import PetaliteError

#: The 97.5 % quantile of the normal distribution: two-sided 95 %.
Z95 = 1.959963984540054


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate of `successes` in `n`, as fractions.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if n < 1 or not 0 <= successes <= n:
        raise PetaliteError(f"a rate needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def paired_difference(lost: int, gained: int, n: int) -> tuple[float, float, float]:
    """(difference, low, high): the rate lost by going from one classifier to another on the same `n` images.

    lost: images that only the first gets right; gained: those that only the second does. Positive is worse.
    The interval inverts Tango's score test, which stays right where few images change sides (a Wald interval of
    "0 lost, 0 gained" has no width at all; this one is about ±3.8/n).

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998).
    """
    if n < 1 or lost < 0 or gained < 0 or lost + gained > n:
        raise PetaliteError(f"a paired difference needs counts within n >= 1, got {lost} lost, {gained} gained of {n}")
    from scipy.optimize import brentq

    difference = (lost - gained) / n
    low = -1.0 if gained == n else brentq(lambda delta: _tango(lost, gained, n, delta) - Z95, -1.0, difference)
    high = 1.0 if lost == n else brentq(lambda delta: _tango(lost, gained, n, delta) + Z95, difference, 1.0)
    return difference, float(low), float(high)


def paired_bound(lost: int, gained: int, n: int, confidence: float = 0.95) -> float:
    """The largest difference that these counts leave possible, with one-sided `confidence`, as a fraction.

    The upper end of Tango's interval, as in `paired_difference`. With no image lost or gained it is about 2.7/n at 95 %:
    819 images cannot show that less than 0.33 points are lost.
    """
    if not 0.5 <= confidence < 1:
        raise PetaliteError(f"a confidence must be at least 0.5 and below 1, got {confidence}")
    from scipy.optimize import brentq
    from scipy.stats import norm

    difference = paired_difference(lost, gained, n)[0]
    quantile = float(norm.ppf(confidence))
    if lost == n or quantile == 0:
        return difference
    return float(brentq(lambda delta: _tango(lost, gained, n, delta) + quantile, difference, 1.0))


def _tango(lost: int, gained: int, n: int, delta: float) -> float:
    """Tango's score statistic for a true difference `delta`: standard normal, falling in `delta`."""
    error = lost - gained - n * delta
    if error == 0:
        return 0.0
    # the most likely rate of `gained` images if the difference were delta: the root of a quadratic
    b = -lost - gained + (2 * n - lost + gained) * delta
    c = -gained * delta * (1 - delta)
    rate = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * rate + delta * (1 - delta))
    return error / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, error)


def mcnemar_p(lost: int, gained: int) -> float:
    """Exact two-sided McNemar test: how likely at least so uneven a split of changed images is by chance.

    Source: McNemar, Psychometrika 12 (1947), with the binomial distribution instead of chi-squared.
    """
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    """`mean`, `p50`, `p95` and `p99` (linearly interpolated) of `samples`, in their unit."""
    if not samples:
        raise PetaliteError("percentiles need at least one sample")
    import numpy as np

    p50, p95, p99 = (float(value) for value in np.percentile(samples, [50, 95, 99]))
    return {"mean": float(np.mean(samples)), "p50": p50, "p95": p95, "p99": p99}
