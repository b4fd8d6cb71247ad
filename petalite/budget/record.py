"""What a search leaves behind: every plan that was tried, the one that was chosen, the certificate, the Pareto front."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from petalite.budget.certificate import Certificate
from petalite.budget.problem import Merge, Problem, Proposal
from petalite.checkpoint import Checkpoint
from petalite.files import atomic, read_json, write_json

COLUMNS = (
    "name", "accepted", "disk_bytes", "ratio", "estimated_ms", "estimated_damage", "kl_divergence", "top1", "drop_points",
    "drop_ci95_low", "drop_ci95_high", "agreement", "merged_tokens", "formats",
)  # fmt: skip


@dataclass(frozen=True)
class Try:
    """A plan that was built and measured on the validation split. Rates are fractions of 1, drops points of top-1."""

    name: str
    proposal: Proposal
    disk_bytes: int
    ratio: float
    top1: float
    drop_points: float
    drop_ci95: tuple[float, ...]
    agreement: float
    kl_divergence: float
    accepted: bool

    @property
    def cost(self) -> float:
        """What the objective minimizes: the estimated time where there is one, else the bytes on disk."""
        return self.disk_bytes if self.proposal.ms is None else self.proposal.ms

    def line(self) -> str:
        """The try in words."""
        low, high = self.drop_ci95
        speed = "" if self.proposal.ms is None else f", {self.proposal.ms:.2f} ms estimated"
        return (
            f"{self.name}: {self.disk_bytes / 1e6:.2f} MB, {self.ratio:.2f}x smaller{speed}; drop {self.drop_points:+.2f} "
            f"points [{low:+.2f}, {high:+.2f}], {'within' if self.accepted else 'over'} the budget ({self.formats()})"
        )

    def formats(self) -> str:
        """How many layers have which format."""
        counts: dict[str, int] = {}
        for stored in self.proposal.plan.layers.values():
            counts[stored] = counts.get(stored, 0) + 1
        return " ".join(f"{stored}:{count}" for stored, count in sorted(counts.items(), key=lambda item: -item[1]))

    def as_dict(self) -> dict[str, Any]:
        """A row of the table."""
        values = (
            self.name, self.accepted, self.disk_bytes, self.ratio, self.proposal.ms, self.proposal.damage,
            self.kl_divergence, self.top1, self.drop_points, *self.drop_ci95, self.agreement,
            sum(self.proposal.plan.merge), self.formats(),
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


def write_record(
    out: Path,
    problem: Problem,
    parent: Checkpoint,
    tries: list[Try],
    best: Try | None,
    proof: Certificate | None,
    against: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write search.csv, search.json, the chosen plan.json and the Pareto front; what search.json holds."""
    rows = [attempt.as_dict() for attempt in tries]
    with atomic(out / "search.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    found: dict[str, Any] = {
        "schema": 1,
        "objective": problem.objective,
        "parent": str(parent.path),
        "tries": rows,
        "chosen": best.as_dict() if best else None,
        "checkpoint": str(out / "checkpoint") if best else None,
        "certificate": proof.as_dict() if proof else None,
        "race": against,
    }
    write_json(out / "search.json", found)
    if best is not None:
        write_json(out / "plan.json", best.proposal.plan.as_dict())
    from petalite.report.figures import draw_search

    draw_search(found, out / "figures")
    return found


def save_estimates(out: Path, inputs: list[Any], problem: Problem) -> None:
    """Keep the tables, which take longest to measure, for `--resume`."""
    write_json(out / "estimates.json", {"inputs": _plain(inputs), "problem": asdict(problem)})


def read_estimates(out: Path, inputs: list[Any]) -> Problem | None:
    """The tables of the same search, if it was interrupted after they were made."""
    if not (out / "estimates.json").exists():
        return None
    saved = read_json(out / "estimates.json")
    if saved.get("inputs") != _plain(inputs):
        return None
    return problem_of(saved["problem"])


def problem_of(values: Mapping[str, Any]) -> Problem:
    """The tables as estimates.json holds them."""
    merges = tuple(
        Merge(tuple(merge["counts"]), merge["damage"], merge["base_ms"], tuple(merge["shares"]))
        for merge in values["merges"]
    )
    return Problem(**{**values, "merges": merges})


def _plain(inputs: list[Any]) -> list[Any]:
    return [list(item) if isinstance(item, tuple) else item for item in inputs]
