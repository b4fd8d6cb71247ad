"""The doctor's report as text, for a person and for pasting into an issue."""

from __future__ import annotations

from typing import Any

_MARKS = {True: "ok", False: "NOT", None: "-"}


def render(report: dict[str, Any]) -> str:
    """The report as plain text."""
    versions, cpu = report["versions"], report["cpu"]
    installed = [f"{name} {version}" for name, version in versions.items() if version]
    absent = [name for name, version in versions.items() if not version]
    lines = [
        "versions   " + ", ".join(installed),
        *(["absent     " + ", ".join(absent)] if absent else []),
        "system     " + ", ".join(str(value) for value in report["system"].values() if value),
        f"cpu        {cpu['name']}, {cpu['cores']} cores, {cpu['memory_gib']} GiB, "
        f"torch uses {cpu['torch_capability']} on {cpu['torch_threads']} threads",
        *(["           " + " ".join(cpu["flags"])] if cpu["flags"] else []),
    ]
    for gpu in report["gpus"]:
        lines.append(
            f"{gpu['device']:<11}{gpu['name']}, compute capability {gpu['compute_capability']}, "
            f"{gpu['memory_gib']} GiB, CUDA {gpu['cuda']}, cuDNN {gpu['cudnn']}"
        )
    if not report["gpus"]:
        lines.append("gpu        none that torch can use")
    for device, groups in report["runs"].items():
        lines += ["", f"on {device}"]
        lines += _runs_lines("engines", [(name, {None: reason}) for name, reason in groups["engines"].items()])
        lines += _runs_lines("compute", [(name, {None: reason}) for name, reason in groups["compute"].items()])
        lines += _runs_lines("formats", [(name, {None: reason}) for name, reason in groups["formats"].items()])
        lines += _runs_lines("attention", list(groups["attention"].items()))
    if report["advice"]:
        lines += ["", "what to do", *(f"  - {line}" for line in report["advice"])]
    if "checkpoint" in report:
        lines += [
            "",
            f"checkpoint {report['checkpoint']['path']}",
            *(f"  {line}" for line in report["checkpoint"]["lines"]),
            *(
                f"  {_MARKS[row['ok']]:<4} {row['name']:<14} {row['text']}"
                for row in report["checkpoint"]["deployment"]
            ),
        ]
    return "\n".join(lines)


def _runs_lines(group: str, entries: list[tuple[str, dict[str | None, str | None]]]) -> list[str]:
    """What of `group` runs, in one line, and a line for each reason why something does not.

    An entry is a name and the reason by precision (None: it runs); a single key None where precision plays no part.
    """
    runs: list[str] = []
    reasons: list[str] = []
    for name, by_precision in entries:
        for reason in dict.fromkeys(by_precision.values()):
            precisions = [precision for precision, found in by_precision.items() if found == reason and precision]
            label = name if len(precisions) == len(by_precision) else " ".join([name, *precisions])
            runs += [label] if reason is None else []
            reasons += [f"  {'':<10} not:  {label}: {reason}"] if reason is not None else []
    return [f"  {group:<10} runs: {', '.join(runs) or 'none'}", *reasons]
