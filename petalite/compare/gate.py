"""A gate for CI: conditions on the newest study's numbers, any of which fails the build when it holds.

    rule = parse("nf4.drop_points > 1")
    judge(rule, newest, before)["fails"]       # True where the condition holds

`VARIANT.MEASURE`, then `.change` (after less before) or `.ratio` (after / before) for what happened since the study
before; a comparison; a number. `*` is every variant that ran. A variant that did not run fails its rules; a number that
was never measured is an error, since a gate that cannot judge must not pass.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from petalite.compare.entries import Labelled
from petalite.errors import PetaliteError, did_you_mean
from petalite.report.variants import Variant

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
#: The measures by their names in results.json. Rates are fractions of 1, drops percentage points.
FIELDS: dict[str, Callable[[Variant], float | None]] = {
    "top1": lambda variant: variant.top1,
    "top1_low": lambda variant: variant.top1_ci[0] if variant.top1_ci else None,
    "top5": lambda variant: variant.top5,
    "f1_macro": lambda variant: variant.f1_macro,
    "f1_weighted": lambda variant: variant.f1_weighted,
    "agreement": lambda variant: variant.agreement,
    "drop_points": lambda variant: variant.drop,
    "drop_high": lambda variant: variant.drop_ci[1] if variant.drop_ci else None,
    "mcnemar_p": lambda variant: variant.mcnemar_p,
    "mean_ms": lambda variant: variant.latency.get("mean_ms"),
    "p50_ms": lambda variant: variant.p50_ms,
    "p95_ms": lambda variant: variant.latency.get("p95_ms"),
    "p99_ms": lambda variant: variant.latency.get("p99_ms"),
    "images_per_s": lambda variant: variant.images_per_s,
    "disk_bytes": lambda variant: variant.disk_bytes,
    "peak_bytes": lambda variant: variant.peak_bytes,
}
_RULE = re.compile(r"^\s*(?P<left>\S+)\s*(?P<compare><=|>=|<|>)\s*(?P<number>[-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*$")


@dataclass(frozen=True)
class Rule:
    """A condition under which the gate fails. since: `change`, `ratio` or empty."""

    text: str
    variant: str
    field: str
    since: str
    compare: str
    number: float


def parse(text: str) -> Rule:
    """Read a condition. Raises PetaliteError for anything else, with an example."""
    found = _RULE.match(text)
    left = found["left"] if found else ""
    since = next((word for word in ("change", "ratio") if left.endswith(f".{word}")), "")
    variant, _, field = left.removesuffix(f".{since}").rpartition(".")
    try:
        number = float(found["number"]) if found else None
    except ValueError:
        number = None
    if found is None or number is None or not variant:
        raise PetaliteError(f"--fail-if '{text}' is no condition; write e.g. \"nf4.drop_points > 1\"")
    if field not in FIELDS:
        raise PetaliteError(
            f"--fail-if '{text}': unknown measure '{field}'{did_you_mean(field, FIELDS)}; known: {', '.join(FIELDS)}"
        )
    return Rule(text.strip(), variant, field, since, found["compare"], number)


def judge(rule: Rule, newest: Labelled, before: Labelled) -> list[dict[str, Any]]:
    """What a rule says of each variant that it names: `rule`, `variant`, `value`, `fails`, `reason`.

    Raises PetaliteError for a variant that the study does not have, and for a number that was not measured.
    """
    known = {variant.name: variant for variant in newest.study.variants}
    if rule.variant != "*" and rule.variant not in known:
        hint = did_you_mean(rule.variant, known)
        raise PetaliteError(
            f"--fail-if '{rule.text}': {newest.label} has no variant '{rule.variant}'{hint}; it has {', '.join(known)}"
        )
    chosen = [variant for variant in known.values() if rule.variant in ("*", variant.name)]
    return [
        _judged(rule, variant, newest, before)
        for variant in chosen
        if rule.variant != "*" or _concerns(rule, variant, newest)
    ]


def _concerns(rule: Rule, variant: Variant, newest: Labelled) -> bool:
    """Whether `*` means this variant: the baseline has no drop against itself."""
    own = FIELDS[rule.field](variant) is None and newest.study.baseline is variant
    return not own


def _judged(rule: Rule, variant: Variant, newest: Labelled, before: Labelled) -> dict[str, Any]:
    said: dict[str, Any] = {"rule": rule.text, "variant": variant.name, "value": None, "fails": True, "reason": None}
    if not variant.ok:
        return {**said, "reason": f"{variant.name} {variant.status}: {variant.reason}"}
    value = _measured(rule, variant, newest.label)
    if rule.since:
        old = next((other for other in before.study.variants if other.name == variant.name and other.ok), None)
        if old is None:
            raise PetaliteError(f"--fail-if '{rule.text}': {variant.name} did not run in {before.label}")
        earlier = _measured(rule, old, before.label)
        if rule.since == "ratio" and not earlier:
            raise PetaliteError(f"--fail-if '{rule.text}': {rule.field} was 0 in {before.label}; use .change")
        value = value - earlier if rule.since == "change" else value / earlier
    fails = _COMPARE[rule.compare](value, rule.number)
    return {**said, "value": value, "fails": fails}


def _measured(rule: Rule, variant: Variant, label: str) -> float:
    value = FIELDS[rule.field](variant)
    if value is None:
        raise PetaliteError(f"--fail-if '{rule.text}': {label} did not measure {rule.field} of {variant.name}")
    return value
