"""The report's charts, in the order in which the page shows them.

    [chart.name for make, _ in CHARTS if (chart := make(study))]

Add a chart here: a function from a Study to a Chart, or to None when the study has nothing to draw, and the words for
what is missing then.
"""

from __future__ import annotations

from collections.abc import Callable

from petalite.report.charts.base import Chart
from petalite.report.charts.comparison import comparison
from petalite.report.charts.cost import size_memory
from petalite.report.charts.kernels import kernel_time
from petalite.report.charts.speed import latency_spread, throughput
from petalite.report.charts.tradeoff import accuracy_latency
from petalite.report.charts.training import training
from petalite.report.inputs import Study

CHARTS: tuple[tuple[Callable[[Study], Chart | None], str], ...] = (
    (accuracy_latency, "accuracy against latency: no variant has both measured"),
    (comparison, "the comparison of all measures: it needs the baseline and another variant"),
    (size_memory, "size and memory: neither was measured"),
    (kernel_time, "kernel times: nothing was profiled"),
    (throughput, "throughput over batch size: no batch sizes were swept"),
    (latency_spread, "the scatter of latencies: no raw samples were kept"),
    (training, "training curves: this study did not train, or kept no metrics"),
)

__all__ = ["CHARTS", "Chart"]
