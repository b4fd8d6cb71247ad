"""The figures: that each is there, says what the data says, and gives way where data is missing."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from petalite.report.charts import CHARTS
from petalite.report.charts.comparison import comparison, gains
from petalite.report.charts.cost import size_memory
from petalite.report.charts.kernels import kernel_time
from petalite.report.charts.speed import latency_spread, throughput
from petalite.report.charts.tradeoff import accuracy_latency, pareto_front, spread_ms
from petalite.report.charts.training import training
from petalite.report.figures import draw_figures
from petalite.report.inputs import read_study
from petalite.report.palette import DARK, LIGHT, THEMES, looks, on
from petalite.report.variants import Variant, variants
from tests.report.synthetic import write_study

NAMES = (
    "accuracy-latency",
    "comparison",
    "size-memory",
    "kernel-time",
    "throughput",
    "latency-spread",
    "training",
)


def rows(*points: tuple[str, float, float]) -> list[Variant]:
    """Variants from (name, top1, milliseconds)."""
    return variants(
        {"variants": [{"name": n, "accuracy": {"top1": a}, "latency": {"p50_ms": ms}} for n, a, ms in points]}
    )


def test_every_figure_is_a_png_on_both_surfaces(study: Path, page: str) -> None:
    folder = study / "report" / "figures"
    assert {path.name for path in folder.iterdir()} == {
        f"{name}{suffix}.png" for name in NAMES for suffix in ("", "-dark")
    }
    for theme, suffix in ((LIGHT, ""), (DARK, "-dark")):
        for name in NAMES:
            with Image.open(folder / f"{name}{suffix}.png") as image:
                picture = image.convert("RGB")
            assert picture.width == 1080
            assert len(picture.getcolors(256) or ()) > 20, f"{name} looks empty"
            assert "#{:02x}{:02x}{:02x}".format(*picture.getpixel((0, 0))) == theme.surface


def test_captions_follow_the_data(study: Path) -> None:
    read = read_study(study)
    captions = {chart.name: chart.caption.replace("\u00a0", " ") for make, _ in CHARTS if (chart := make(read))}
    assert tuple(captions) == NAMES
    assert captions["accuracy-latency"].endswith("is at least as fast and as accurate as every other variant.")
    assert captions["comparison"].startswith("No variant beats fp32 throughout: nf4-fa2 gives smaller on disk (6.1×)")
    assert "nf4-fa2 and nf4-sdpa are smallest on disk with 3.62 MB, 6.1× smaller than fp32" in captions["size-memory"]
    assert captions["kernel-time"].startswith("Matrix products take the most time in 3 of 5 variants")
    assert "no variant is faster than the baseline" in captions["throughput"]
    assert "99.5 %, was at epoch 5" in captions["training"]


def test_missing_data_leaves_a_figure_out_and_says_which(tmp_path: Path) -> None:
    out = write_study(tmp_path / "s", variants=("fp32",), blocks=("accuracy",), train=False, photos=False)
    study = read_study(out)
    for make in (accuracy_latency, comparison, size_memory, kernel_time, throughput, latency_spread, training):
        assert make(study) is None
    pictures, missing = draw_figures(study, tmp_path / "figures")
    assert pictures == []
    assert len(missing) == len(CHARTS)


def test_one_variant_is_enough_for_what_needs_no_comparison(tmp_path: Path) -> None:
    out = write_study(tmp_path / "s", variants=("nf4-fa2",), photos=False)
    pictures, missing = draw_figures(read_study(out), tmp_path / "figures")
    assert [picture.name for picture in pictures] == [name for name in NAMES if name != "comparison"]
    assert "comparison" in missing[0]
    assert all(picture.caption.endswith(".") for picture in pictures)


def test_pareto_front() -> None:
    front = pareto_front(rows(("slow", 0.9, 30), ("best", 0.9, 20), ("fast", 0.8, 10), ("bad", 0.7, 15)))
    assert [variant.name for variant in front] == ["fast", "best"]
    twins = pareto_front(rows(("a", 0.9, 10), ("b", 0.9, 10)))
    assert [variant.name for variant in twins] == ["a", "b"]


def test_gains_say_how_many_times_better() -> None:
    base, other = variants(
        {
            "variants": [
                {"name": "a", "latency": {"p50_ms": 10}, "throughput": {"images_per_s": 50}, "memory": {"disk_bytes": 8}},
                {"name": "b", "latency": {"p50_ms": 20}, "throughput": {"images_per_s": 75}, "memory": {"disk_bytes": 2}},
            ]
        }
    )  # fmt: skip
    assert gains(other, base) == {"smaller on disk": 4.0, "lower latency": 0.5, "more images/s": 1.5}


def test_the_spread_of_latency_comes_from_raw_samples_where_there_are_any(study: Path, tmp_path: Path) -> None:
    read = read_study(study)
    low, high = spread_ms(read, read.variants[0])
    assert low < (read.variants[0].p50_ms or 0) < high
    bare = read_study(write_study(tmp_path / "s", samples=False, photos=False))
    first = bare.variants[0]
    assert spread_ms(bare, first) == (first.p50_ms, first.latency["p95_ms"])


def test_a_variant_keeps_its_look_and_no_two_share_one() -> None:
    names = ["fp32", *(f"v{number}" for number in range(20))]
    for theme in THEMES:
        look = looks(names, "fp32", theme)
        assert len({(item.color, item.marker) for item in look.values()}) == len(names)
        assert looks(names[:4], "fp32", theme)["v1"] == look["v1"]


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_colours_stand_out_from_their_surface(theme: Any) -> None:
    """WCAG 2.1: 3:1 for marks, 4.5:1 for text."""
    for color in (*theme.series, theme.baseline):
        assert contrast(color, theme.surface) >= 3, color
    for color in (theme.ink, theme.muted):
        assert contrast(color, theme.surface) >= 4.5, color
    for color in theme.kinds:
        assert contrast(on(color), color) >= 4.5, color


#: Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency" (2009).
DEFICIENCIES = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_variants_can_be_told_apart_by_any_eye(theme: Any, deficiency: str) -> None:
    """CIE 1976 colour differences; 2.3 is just noticeable side by side."""
    seen = [lab(np.array(DEFICIENCIES[deficiency]) @ linear(color)) for color in (theme.baseline, *theme.series)]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 10
    parts = [lab(np.array(DEFICIENCIES[deficiency]) @ linear(color)) for color in theme.kinds]
    assert min(float(np.linalg.norm(a - b)) for a, b in pairwise(parts)) > 10


def linear(color: str) -> Any:
    """`#rrggbb` as linear light."""
    parts = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(light: Any) -> Any:
    """Linear sRGB as CIE L*a*b*."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(matrix @ np.clip(light, 0, 1) / np.array([0.9505, 1, 1.089]), 0.0089, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    return float(linear(color) @ np.array([0.2126, 0.7152, 0.0722]))
