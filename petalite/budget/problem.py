"""The search as tables: what each layer's formats damage and cost, and what merging tokens does to both.

problem = Problem(damage, bytes, ms={}, merges=[Merge((), 0.0, 0.0, 1.0)], objective="size")
proposal = problem.solve(most=0.05)       # the cheapest plan with at most 0.05 nats of estimated damage
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from petalite.budget.choose import Table, choose, total
from petalite.plan import MIXED, Plan, block_count

OBJECTIVES = ("size", "latency", "throughput")
#: Bytes break ties between formats that are equally fast: a thousandth of the time for the whole size.
_TIE = 1e-3


@dataclass(frozen=True)
class Merge:
    """A way to merge tokens: `counts` a block (empty for none), what it damages alone, and how long the model then takes.

    base_ms: the whole plain model. shares: tokens that each block's layers see, as a fraction of all.
    """

    counts: tuple[int, ...]
    damage: float
    base_ms: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Proposal:
    """A plan that the tables favour, with their estimates: damage in nats, bytes on disk, milliseconds a pass."""

    plan: Plan
    damage: float
    bytes: float
    ms: float | None


@dataclass(frozen=True)
class Problem:
    """damage, bytes: layer → format → value. ms: the same, for layers that multiply (objective latency, throughput)."""

    damage: Table
    bytes: Table
    ms: Table
    merges: tuple[Merge, ...]
    objective: str
    plain: str
    rest: str

    def solve(self, most: float) -> Proposal | None:
        """The cheapest plan whose estimated damage is at most `most` nats; None when there is none."""
        found = [proposal for merge in self.merges if (proposal := self._solve(merge, most)) is not None]
        return min(found, key=self.cost, default=None)

    def cost(self, proposal: Proposal) -> float:
        """What the objective minimizes."""
        return proposal.bytes if self.objective == "size" or proposal.ms is None else proposal.ms

    def extremes(self) -> tuple[float, float]:
        """Total damage of the gentlest and of the harshest choice."""
        gentlest = sum(min(max(value, 0.0) for value in formats.values()) for formats in self.damage.values())
        harshest = sum(max(formats.values()) for formats in self.damage.values())
        return gentlest, harshest + max(merge.damage for merge in self.merges)

    def corrected(self, factors: Mapping[str, float]) -> Problem:
        """The same problem with each layer's damages multiplied."""
        damage = {
            layer: {name: value * factors.get(layer, 1.0) for name, value in formats.items()}
            for layer, formats in self.damage.items()
        }
        return replace(self, damage=damage)

    def damage_of(self, plan: Plan) -> float:
        """The estimated damage of a plan."""
        merge = next((merge.damage for merge in self.merges if merge.counts == plan.merge), 0.0)
        return total(self.damage, plan.layers) + merge

    def _solve(self, merge: Merge, most: float) -> Proposal | None:
        if merge.damage > most:
            return None
        chosen = choose(self.damage, self._costs(merge), most - merge.damage)
        if chosen is None:
            return None
        plan = Plan(_name(chosen), chosen, self.rest, merge.counts)
        ms = merge.base_ms + total(self._layer_ms(merge), chosen) if self.ms else None
        return Proposal(plan, total(self.damage, chosen) + merge.damage, total(self.bytes, chosen), ms)

    def _costs(self, merge: Merge) -> Table:
        if not self.ms:
            return self.bytes
        ms, whole = self._layer_ms(merge), max(sum(max(formats.values()) for formats in self.bytes.values()), 1.0)
        least = min(min(formats.values()) for formats in ms.values())
        tie = _TIE * max(merge.base_ms, 1e-6) / whole
        # the solver wants costs that are not negative; a constant for each layer changes no choice
        return {
            layer: {name: value - min(least, 0.0) + tie * self.bytes[layer][name] for name, value in formats.items()}
            for layer, formats in ms.items()
        }

    def _layer_ms(self, merge: Merge) -> dict[str, dict[str, float]]:
        """What each format adds to the whole plain model's time: layer by layer, for the tokens that are left there."""
        added = {}
        for layer, formats in self.bytes.items():
            share = merge.shares[int(layer.split(".")[1])] if block_count([layer]) else 1.0
            times = self.ms.get(layer, {})
            plain = times.get(self.plain, 0.0)
            added[layer] = {name: share * (times.get(name, plain) - plain) for name in formats}
        return added


def _name(chosen: Mapping[str, str]) -> str:
    """The format of the blocks' layers when they have one in common, else `mixed`."""
    inside = {stored for layer, stored in chosen.items() if block_count([layer])}
    return inside.pop() if len(inside) == 1 else MIXED
