"""Which variant to use where, by three rules that the report states in words.

    recommend(results)["edge"]      # {"variant": "nf4-fa2", "why": "The smallest on disk, 5.30 MB (6.8× smaller …"}

The rules are deliberately plain: one number decides, within the accuracy budget, and the sentence says which, what it
beat, and how sure the accuracy is. Speed and accuracy come from the same run on the same images, so nothing here
looks at formats by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from petalite.report import words
from petalite.report.variants import Variant, baseline, number, variants

Recommendation = dict[str, str | None]


@dataclass(frozen=True)
class Rule:
    """One place to run a model, and the number that decides there."""

    title: str
    rule: str  # the sentence that the page shows
    what: str  # "smallest on disk"
    verb: str  # completes "No other variant within the budget …"
    value: Callable[[Variant], float | None]  # the number that decides
    shown: Callable[[Variant], str]
    more: str  # what a variant with a larger number is
    less: str
    highest: bool = False  # whether the largest number wins, not the smallest


def _latency(variant: Variant) -> float:
    return variant.p50_ms if variant.p50_ms is not None else float("inf")


def _shown_rate(variant: Variant) -> str:
    at = f" at batch {variant.throughput_batch}" if variant.throughput_batch else ""
    return f"{words.per_second(variant.images_per_s)} images/s{at}"


RULES: dict[str, Rule] = {
    "edge": Rule(
        title="Edge device",
        rule="Edge: of the variants within the budget, the smallest on disk; "
        "between equal sizes, the lower median latency at batch 1.",
        what="smallest on disk",
        verb="is smaller on disk",
        value=lambda variant: variant.disk_bytes,
        shown=lambda variant: words.megabytes(variant.disk_bytes),
        more="larger",
        less="smaller",
    ),
    "cloud": Rule(
        title="Cloud",
        rule="Cloud: of the variants within the budget, the highest throughput at its best batch size; "
        "between equal rates, the lower median latency at batch 1.",
        what="highest throughput",
        verb="has a higher throughput",
        value=lambda variant: variant.images_per_s,
        shown=_shown_rate,
        more="faster",
        less="slower",
        highest=True,
    ),
    "memory": Rule(
        title="Little memory",
        rule="Little memory: of the variants within the budget, the lowest peak memory; "
        "between equal peaks, the lower median latency at batch 1.",
        what="lowest peak memory",
        verb="needs less memory",
        value=lambda variant: variant.peak_bytes,
        shown=lambda variant: words.megabytes(variant.peak_bytes),
        more="more",
        less="less",
    ),
}

BUDGET_RULE = (
    "Within the budget: the measured drop of top-1 against the baseline, on the same images, is at most the budget. "
    "The baseline always is. A drop is an estimate: where its 95 % interval reaches beyond the budget, the sentence says so."
)


def recommend(results: dict[str, Any]) -> dict[str, Recommendation]:
    """The contract's `recommendations` for a results.json: `{"edge": {"variant", "why"}, "cloud": …, "memory": …}`.

    `variant` is None only when nothing ran. Deterministic: what remains equal is decided by the order in `results`.
    Raises PetaliteError when `results` lists no variants.
    """
    rows = variants(results)
    base = baseline(results, rows)
    budget = number(results.get("budget_points"))
    ran = [row for row in rows if row.ok]
    chosen = {key: _apply(rule, ran, base, budget) for key, rule in RULES.items()}
    return {key: {**found, "why": (found["why"] or "").replace(words.NBSP, " ")} for key, found in chosen.items()}


def within_budget(variant: Variant, base: Variant | None, budget: float | None) -> bool:
    """Whether the measured drop is allowed; the baseline's is, one that was never measured is not."""
    if variant is base:
        return True
    return variant.drop is not None and (budget is None or variant.drop <= budget)


def _apply(rule: Rule, ran: list[Variant], base: Variant | None, budget: float | None) -> Recommendation:
    if not ran:
        return {"variant": None, "why": "No variant ran, so there is nothing to recommend."}
    allowed = [variant for variant in ran if within_budget(variant, base, budget)]
    others = [variant for variant in allowed if variant is not base]
    if not others:
        return _only_the_baseline(ran, base, budget)
    sign = -1 if rule.highest else 1
    measured = [(rule.value(variant), variant) for variant in allowed]
    known = [(sign * value, _latency(variant), variant) for value, variant in measured if value is not None]
    if not known:
        name = base.name if base else others[0].name
        return {"variant": name, "why": f"The {rule.what} was measured for no variant, so the rule cannot choose."}
    first, _, best = min(known, key=lambda item: item[:2])
    tied = [variant for value, _, variant in known if value == first and variant is not best]
    if best is base and not tied:
        why = f"No other variant within the budget {rule.verb} than {best.name} with {rule.shown(best)}."
        return {"variant": best.name, "why": why}
    sentences = [_won(rule, best, base), *_tie(best, tied), *_accuracy(best, base, budget)]
    return {"variant": best.name, "why": " ".join(sentences)}


def _won(rule: Rule, best: Variant, base: Variant | None) -> str:
    against = ""
    if base is not None and best is not base:
        ratio = words.compared(rule.value(best), rule.value(base), rule.more, rule.less)
        against = f" ({ratio} {'as' if ratio == 'the same' else 'than'} {base.name})" if ratio else ""
    return f"The {rule.what} within the budget: {rule.shown(best)}{against}."


def _tie(best: Variant, tied: list[Variant]) -> list[str]:
    if not tied:
        return []
    timed = [variant for variant in tied if variant.p50_ms is not None]
    if best.p50_ms is None or not timed:
        return [f"Equal to {words.listed(variant.name for variant in tied)}; the first listed is named."]
    others = words.listed(f"{variant.name} ({words.milliseconds(variant.p50_ms)})" for variant in timed)
    sentence = f"Equal to {others}, and chosen for {words.milliseconds(best.p50_ms)} at batch 1"
    ran = (best.checkpoint, best.compute, best.attention_ran)
    same = [v for v in timed if best.attention_ran and (v.checkpoint, v.compute, v.attention_ran) == ran]
    if same:
        return [f"{sentence}; the same attention kernel ran in both, so this difference is noise."]
    return [f"{sentence}."]


def _accuracy(best: Variant, base: Variant | None, budget: float | None) -> list[str]:
    if best is base or best.drop is None:
        return []
    moved = f"loses {words.points(best.drop)}" if best.drop > 0 else f"gains {words.points(-best.drop)}"
    if best.drop == 0:
        moved = "loses 0"
    if best.drop_ci is None:
        return [f"It {moved} points of top-1; no interval was computed."]
    sentence = f"It {moved} points of top-1 (95 % interval of the drop {words.points_interval(best.drop_ci)})"
    if budget is not None and best.drop_ci[1] > budget:
        return [f"{sentence}, so these images cannot exclude a drop beyond the budget of {words.budget(budget)}."]
    return [f"{sentence}."]


def _only_the_baseline(ran: list[Variant], base: Variant | None, budget: float | None) -> Recommendation:
    others = [variant for variant in ran if variant is not base]
    drops = [(variant.drop, variant.name) for variant in others if variant.drop is not None]
    if base is None:
        return {"variant": None, "why": "The baseline did not run, so no drop can be judged against the budget."}
    if not others:
        why = "It is the only variant that ran."
    elif not drops:
        why = "No drop of accuracy was measured, so nothing but the baseline is known to be within the budget."
    else:
        drop, name = min(drops)
        why = (
            f"No other variant stays within the budget of {words.budget(budget or 0.0)}, so the baseline it is; "
            f"the closest, {name}, loses {words.points(drop)}."
        )
    return {"variant": base.name, "why": why}
