"""The ablation's charts and its section of the page: there when there was one, true to it, safe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from petalite.errors import PetaliteError
from petalite.report import write_report
from petalite.report.charts.ablation import REFERENCE, ablation_charts
from petalite.report.figures import draw_ablation
from tests.report.ablated import document
from tests.report.conftest import HOSTILE
from tests.report.synthetic import write_study


def test_the_charts_say_what_is_real_and_what_the_reference_found() -> None:
    kept, first_last = ablation_charts(document())
    assert kept.name == "ablation-blocks"
    assert "real after Holm's correction over 12 blocks: 1 of 24 differences of top-1" in kept.caption
    assert "ViT-L/16, which has 24 blocks where this model has 12; it gave no intervals" in kept.caption
    assert "nf4 0.00 points of top-1 (not told from chance)".replace("0.00", "+0.00") in first_last.caption
    assert "The reference study's best were blocks 21 (4 bits) and 23 (8 bits) of 24." in first_last.caption


def test_a_format_or_a_depth_of_the_reference_s_is_not_taken_for_another() -> None:
    assert "where this model has" not in ablation_charts(document(blocks=24))[0].caption
    assert "reference" not in " ".join(chart.caption for chart in ablation_charts(document(formats=("int4",))))


def test_the_reference_s_numbers_are_the_published_ones() -> None:
    assert REFERENCE["nf4"] == (88.63, 88.51, {21: 89.61, 22: 89.0, 23: 88.9})
    assert REFERENCE["int8"] == (90.10, 90.10, {23: 90.46})


@pytest.mark.parametrize(
    ("blocks", "formats"), [(12, ("nf4", "int8")), (24, ("int4",)), (1, ("nf4",)), (3, ("a", "b", "c"))]
)
def test_every_chart_is_drawn_on_both_surfaces(tmp_path: Path, blocks: int, formats: tuple[str, ...]) -> None:
    pictures = draw_ablation(document(blocks, formats, reverse=True), tmp_path)
    assert [picture.name for picture in pictures] == ["ablation-blocks", "ablation-first-last", "ablation-alone"]
    for picture in pictures:
        assert picture.caption.endswith(".")
        for path in (picture.light, picture.dark):
            with Image.open(path) as image:
                assert image.size == picture.size
                assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 8


def test_blocks_alone_add_up_in_words() -> None:
    alone = ablation_charts(document(reverse=True))[2]
    assert "all added up" in alone.caption
    assert len(ablation_charts(document())) == 2


def test_the_page_has_the_section_only_when_there_was_an_ablation(tmp_path: Path, page: str) -> None:
    assert "ablation" not in page
    out = write_study(tmp_path / "study", photos=False)
    found = document()
    (out / "ablation.json").write_text(json.dumps({**found, "sentence": found["sentence"] + f"\n{HOSTILE}"}))
    (out / "ablation_results.csv").write_text("format\n")
    html = write_report(out).read_text(encoding="utf-8")
    assert '<section id="ablation"' in html
    assert 'href="#ablation"' in html
    assert "nf4: with everything quantized, top-1 differs from the parent&#39;s by -3.00 points" in html
    assert HOSTILE not in html
    assert html.count('<figure class="card" id="figure-ablation') == 2
    assert (out / "report" / "figures" / "ablation-blocks-dark.png").is_file()


@pytest.mark.parametrize("text", ['{"schema": 1}', "[]", '{"schema": 2, "formats": [1]}', "{"])
def test_a_damaged_ablation_is_one_line(tmp_path: Path, text: str) -> None:
    out = write_study(tmp_path / "study", variants=("fp32",), photos=False)
    (out / "ablation.json").write_text(text)
    with pytest.raises(PetaliteError, match=r"ablation\.json"):
        write_report(out)
