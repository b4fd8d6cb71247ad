"""The report: a study's folder -> one HTML page that a person enjoys reading, and its figures as PNG.

    write_report(Path("runs/flowers"))        # runs/flowers/report/index.html

The page holds everything it shows and loads nothing from outside; it links to the CSV and JSON beside it.
"""

from __future__ import annotations

from pathlib import Path

from petalite.files import write_text
from petalite.report.gallery import write_gallery
from petalite.report.recommend import recommend

__all__ = ["recommend", "write_gallery", "write_report"]


def write_report(out: Path) -> Path:
    """Write `out/report/index.html` and `out/report/figures/*.png` from what the study left in `out`.

    Returns the page's path. Raises PetaliteError when `out` holds no results.json or one that lists no variants.
    """
    from petalite.report.figures import draw_ablation, draw_figures
    from petalite.report.inputs import read_study
    from petalite.report.page import render

    study = read_study(Path(out))
    folder = study.out / "report"
    pictures, missing = draw_figures(study, folder / "figures")
    ablation = draw_ablation(study.ablation, folder / "figures") if study.ablation else []
    page = folder / "index.html"
    write_text(page, render(study, pictures, missing, ablation))
    return page
