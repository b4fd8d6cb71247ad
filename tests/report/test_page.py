"""The page: complete, self-contained, and safe whatever the study is made of."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from petalite.errors import PetaliteError
from petalite.report import write_report
from petalite.report.inputs import read_study
from petalite.report.page import banners, cards, render, verdict
from petalite.report.table import remarks, table
from tests.report.conftest import HOSTILE, LONG, UNICODE
from tests.report.synthetic import write_study
from tests.report.test_figures import NAMES

Tag = tuple[str, dict[str, str]]


class Reader(HTMLParser):
    """Tags with their attributes in order, and the text that a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[Tag] = []
        self.words: list[str] = []
        self.script = ""
        self._raw = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._raw = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self.script += data
        elif not self._raw:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace("\u00a0", " ")

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def read(page: str) -> Reader:
    return Reader(page)


@pytest.fixture(scope="module")
def rough_page(rough: Path) -> Reader:
    return Reader((rough / "report" / "index.html").read_text(encoding="utf-8"))


def test_nothing_comes_from_outside(read: Reader, page: str) -> None:
    addresses = [
        value
        for _, attributes in read.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "poster", "data")
    ]
    assert len(addresses) > 30
    assert [address for address in addresses if not re.match(r"data:|#|\.\./|figures/", address)] == []
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert not re.search(r"url\(", page)
    assert not {"link", "iframe", "object", "embed"} & {tag for tag, at in read.tags if at.get("href") != "data:,"}


def test_the_policy_allows_this_script_and_no_other(read: Reader) -> None:
    policy = next(meta["content"] for meta in read.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(read.script.encode()).digest()).decode()
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert len(read.all("script")) == 1
    assert "aria-sort" in read.script


def test_every_figure_is_in_the_page_in_both_themes(read: Reader) -> None:
    assert [figure["id"] for figure in read.all("figure")] == [f"figure-{name}" for name in NAMES]
    assert len(read.all("figcaption")) == len(NAMES)
    sources = read.all("source")
    assert len(sources) == len(NAMES)
    assert all(source["media"] == "screen and (prefers-color-scheme: dark)" for source in sources)
    pictures = [image for image in read.all("img") if image["src"].startswith("data:image/png")]
    assert len({image["src"] for image in pictures} | {source["srcset"] for source in sources}) == 2 * len(NAMES)


def test_the_page_is_light_and_complete_on_disk(study: Path, page: str) -> None:
    assert len(page.encode()) < 3_000_000
    written = {path.name for path in (study / "report").rglob("*") if path.is_file()}
    assert len(written) == 1 + 2 * len(NAMES)
    assert not [name for name in written if name.startswith(".")]


def test_links_lead_to_files_that_are_there(study: Path, read: Reader) -> None:
    links = [link["href"] for link in read.all("a") if not link["href"].startswith("#")]
    assert "../results.json" in links
    assert "../predictions/nf4-fa2.csv" in links
    assert all((study / "report" / unquote(link)).is_file() for link in links)
    anchors = [link["href"][1:] for link in read.all("a") if link["href"].startswith("#")]
    assert set(anchors) <= {attributes.get("id") for _, attributes in read.tags}


def test_the_page_can_be_read_without_seeing_it(read: Reader) -> None:
    assert read.tags[0] == ("html", {"lang": "en"})
    assert all(image["alt"] for image in read.all("img"))
    assert all("scope" in heading for heading in read.all("th"))
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    identifiers = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    labels = {attributes["aria-labelledby"] for _, attributes in read.tags if "aria-labelledby" in attributes}
    assert labels <= set(identifiers)


def test_the_verdict_comes_first_and_says_what_it_costs(study: Path, read: Reader) -> None:
    said = verdict(read_study(study)).replace("\u00a0", " ")
    assert (
        said
        == "nf4-fa2 is 6.1× smaller than fp32 but 1.4× slower at batch 1; it loses 0.83 points of top-1, of 1 allowed."
    )
    assert read.text.index(said) < read.text.index("Which variant to use") < read.text.index("All variants")
    assert [card.title for card in cards(read_study(study))] == ["Edge device", "Cloud", "Little memory"]
    assert "Edge: of the variants within the budget, the smallest on disk" in read.text


def test_the_table_has_every_variant_with_intervals_and_ratios(read: Reader) -> None:
    rows = [heading["data-sort"] for heading in read.all("th") if heading["scope"] == "row"]
    assert rows == ["fp32", "nf4-fa2", "int8-fa2", "nf4-sdpa", "int8-sdpa"]
    for said in ("97.5 %", "94.7–100.0 %", "6.1× smaller", "1.4× slower", "p = 1.00, within noise", "sdpa → fa2"):
        assert said in read.text
    assert "3,620,000 bytes" in {cell.get("title") for cell in read.all("td")}


def test_remarks_say_what_a_table_hides(study: Path) -> None:
    said = " ".join(remarks(read_study(study))).replace("\u00a0", " ")
    assert "At batch 1, slower than fp32 (23.9 ms) on this machine: nf4-fa2 1.4× slower (32.7 ms)" in said
    assert "No variant is faster." in said
    assert "is within noise: each interval includes 0" in said
    assert "nf4-fa2 and nf4-sdpa asked for different attention (fa2 and sdpa), but the same kernel ran (fa2)" in said


def test_a_real_loss_is_not_called_noise(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path / "s", extra_wrong=20, photos=False))
    said = " ".join(remarks(study))
    assert "more than noise in nf4-fa2" in said
    assert "within noise" not in said
    assert all(row.beyond for row in table(study)[1:])


def test_disagreements_stand_side_by_side(read: Reader) -> None:
    assert "fp32 and nf4-fa2 disagree on 3 of 120 photos (2.5 %): 2 that fp32 had right are lost" in read.text
    photos = [image for image in read.all("img") if image["src"].startswith("data:image/jpeg")]
    assert len(photos) == 3 + 12


def test_how_to_repeat_it(read: Reader) -> None:
    assert "petalite run --data 'photos of flowers' --model vit_tiny_patch16_224 --out x" in read.text
    for said in (
        "valid/31/image_08067.jpg = train/31/image_08077.jpg",
        "AMD EPYC 9B45, 2 cores",
        "torch 2.15.0+cpu",
        "5 rounds, interleaved",
        "140 timed passes a variant",
        "33 min 4 s",
        "9f2c" * 16,
    ):
        assert said in read.text
    assert "running" not in read.text


def test_names_are_text_and_never_markup(rough_page: Reader) -> None:
    assert len(rough_page.all("script")) == 1
    assert "alert" not in rough_page.script
    assert not [tag for tag, attributes in rough_page.tags if any(name.startswith("on") for name in attributes)]
    assert HOSTILE in rough_page.text
    assert UNICODE in rough_page.text
    assert "b" not in {tag for tag, attributes in rough_page.tags if "thorn" in str(attributes)}
    assert "rose & <b>thorn</b>" in rough_page.text


def test_what_went_wrong_is_said_first(rough: Path, rough_page: Reader) -> None:
    said = [sentence for _, sentence in banners(read_study(rough))]
    assert said[0].startswith("No variant meets the budget of 1 point of top-1: nf4-fa2 (loses ")
    assert f"int8-fa2 failed: CUDA error: {HOSTILE}" in said
    assert "int8-sdpa was skipped: needs a GPU of SM80+" in said
    for sentence in said:
        assert sentence.replace("\u00a0", " ") in rough_page.text
    assert rough_page.text.count("needs a GPU of SM80+") == 2
    assert LONG in rough_page.text


def test_figures_that_are_missing_are_named_and_photos_that_are_gone_are_blank(rough_page: Reader) -> None:
    assert {figure["id"] for figure in rough_page.all("figure")} == {
        "figure-accuracy-latency",
        "figure-comparison",
        "figure-size-memory",
        "figure-latency-spread",
    }
    assert "Not shown: kernel times: nothing was profiled" in rough_page.text
    assert "photo not found" in rough_page.text
    assert not [image for image in rough_page.all("img") if image["src"].startswith("data:image/jpeg")]


@pytest.mark.parametrize("blocks", [(), ("latency", "throughput", "memory", "kernels")], ids=["nothing", "speed only"])
def test_a_study_without_accuracy_still_reads(tmp_path: Path, blocks: tuple[str, ...]) -> None:
    study = read_study(write_study(tmp_path / "s", blocks=blocks, photos=False, run=False, train=False))
    text = Reader(render(study, [], ["none"])).text
    assert "No drop of accuracy was measured" in text
    assert "None" not in text
    assert "nan" not in text


def test_a_study_in_which_nothing_ran_still_reads(tmp_path: Path) -> None:
    failed = dict.fromkeys(("fp32", "nf4-fa2"), ("failed", "out of memory"))
    out = write_study(tmp_path / "s", variants=tuple(failed), failed=failed, photos=False, train=False)
    text = Reader(write_report(out).read_text(encoding="utf-8")).text
    assert "Nothing can be recommended: the baseline did not run." in text
    assert text.count("out of memory") == 4


def test_unreadable_photos_are_counted(tmp_path: Path) -> None:
    out = write_study(tmp_path / "s", variants=("fp32", "nf4-fa2"), photos=False)
    with (out / "predictions" / "fp32.csv").open("a") as file:
        file.write("broken.jpg,rose,,,,,,,,,,,broken.jpg is damaged\n")
    assert ("note", "1 photo could not be read; it is a row with its error in predictions.") in banners(read_study(out))


def test_stored_recommendations_are_shown_as_they_are(tmp_path: Path) -> None:
    out = write_study(tmp_path / "s", variants=("fp32", "nf4-fa2"), photos=False)
    results = json.loads((out / "results.json").read_text())
    results["recommendations"] = {"edge": {"variant": "fp32", "why": "Because someone said so."}}
    (out / "results.json").write_text(json.dumps(results))
    shown = cards(read_study(out))
    assert (shown[0].variant and shown[0].variant.name, shown[0].why) == ("fp32", "Because someone said so.")
    assert shown[2].variant is not None
    assert shown[2].variant.name == "nf4-fa2"


def test_a_second_report_replaces_the_first_and_is_equal(tmp_path: Path) -> None:
    out = write_study(tmp_path / "s", variants=("fp32",), blocks=("accuracy", "memory"), train=False)
    first = write_report(out).read_bytes()
    assert write_report(out).read_bytes() == first


def test_a_folder_that_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PetaliteError, match=r"holds no results\.json"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
