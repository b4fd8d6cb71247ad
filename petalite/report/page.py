"""The study as one HTML page: nothing is loaded from outside, whatever the study holds is text and never markup.

    html = render(study, pictures, missing)

`verdict`, `banners` and the cards are put together here; the table, the disagreements and the method come from the
modules of these names; template.html decides how it looks, frame.html what all pages have.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from petalite.report import words
from petalite.report.disagreements import Disagreements, disagreements
from petalite.report.figures import Picture
from petalite.report.gallery import spaced
from petalite.report.inputs import Prediction, Study
from petalite.report.method import command, files, machine, method, recipe, steps
from petalite.report.palette import DARK, LIGHT, SHAPES, looks
from petalite.report.photos import data_uri, find, png_uri, thumbnail
from petalite.report.recommend import BUDGET_RULE, RULES, recommend, within_budget
from petalite.report.table import COLUMNS, remarks, table
from petalite.report.variants import Variant, block, number, text

if TYPE_CHECKING:
    from jinja2 import Environment

PHOTOS = 12
CLASS_LENGTH = 64


@dataclass(frozen=True)
class Card:
    """A recommendation as the page shows it."""

    title: str
    variant: Variant | None
    figure: str  # the number that decided
    why: str


@dataclass(frozen=True)
class Shown:
    """A photo with one or two variants' answers."""

    photo: str | None  # a data: address
    first: Prediction
    second: Prediction | None = None


def render(study: Study, pictures: list[Picture], missing: list[str], ablation: Sequence[Picture] = ()) -> str:
    """The page's HTML, with the pictures inside it; `missing` says in words which figures there are not.

    ablation: the pictures of the layer ablation, which has a section of its own where there was one.
    """
    found = disagreements(study)
    sampled = _sampled(study)
    return (
        environment()
        .get_template("template.html")
        .render(
            study=study,
            title=text(study.data.get("name")) or study.out.resolve().name,
            facts=_facts(study),
            verdict=verdict(study),
            banners=banners(study),
            cards=cards(study),
            rules=[rule.rule for rule in RULES.values()],
            budget_rule=BUDGET_RULE,
            columns=COLUMNS,
            rows=table(study),
            remarks=remarks(study),
            pictures=pictures,
            missing=missing,
            ablation=list(ablation),
            ablation_findings=text(study.ablation.get("sentence")).splitlines(),
            differ=found,
            differ_shown=_differ_shown(study, found),
            sampled=sampled,
            samples=_samples(study, sampled),
            method=method(study),
            command=command(study),
            recipe=recipe(study),
            steps=steps(study),
            files=files(study),
            looks=_looks(study),
            light=LIGHT,
            dark=DARK,
        )
    )


def environment() -> Environment:
    """Jinja2 for the templates of this folder, whatever goes into them escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        percent=words.percent,
        png_uri=png_uri,
        sha256=_csp_hash,
        counted=words.counted,
        budget=words.budget,
        short=_short,
    )
    return made


def verdict(study: Study) -> str:
    """The study in one sentence: what the smallest allowed variant gives and costs."""
    recommended = _recommendations(study)
    named = {variant.name: variant for variant in study.ran}
    base, best = study.baseline, named.get(text(recommended["edge"].get("variant")))
    if base is None or best is None:
        return "Nothing can be recommended: the baseline did not run."
    if best is base:
        others = [variant for variant in study.ran if variant is not base]
        allowed = any(within_budget(variant, base, study.budget) for variant in others)
        return f"{base.name} stays: no other variant {'within the budget is smaller' if allowed else 'is within the budget'}."
    size = words.compared(best.disk_bytes, base.disk_bytes, "larger", "smaller", "as large as it was")
    gives = [f"is {size} than {base.name}" if size.endswith(("larger", "smaller")) else ""]
    speed = words.compared(best.p50_ms, base.p50_ms, "slower", "faster", "as fast")
    gives.append(f"{'but' if speed.endswith('slower') else 'and'} {speed} at batch 1" if speed else "")
    loses = ""
    if best.drop is not None:
        change = f"loses {words.points(best.drop)}" if best.drop > 0 else f"gains {words.points(-best.drop)}"
        loses = f"{change if best.drop else 'loses 0'} points of top-1"
        if study.budget is not None:
            loses += f", of {words.plain(study.budget)} allowed"
    return f"{best.name} {' '.join(filter(None, gives))}{'; it ' if any(gives) else ''}{loses}."


def banners(study: Study) -> list[tuple[str, str]]:
    """(tone, sentence) on what a reader has to know first: budget not met, variants that did not run, lost photos."""
    found = []
    others = [variant for variant in study.ran if variant is not study.baseline]
    judged = [variant for variant in others if variant.drop is not None]
    beyond = [variant for variant in judged if not within_budget(variant, study.baseline, study.budget)]
    if beyond:
        lost = words.listed(f"{variant.name} (loses {words.points(variant.drop)})" for variant in beyond)
        allowed = f"the budget of {words.budget(study.budget or 0.0)} of top-1"
        if len(beyond) == len(judged):
            found.append(("bad", f"No variant meets {allowed}: {lost}."))
        else:
            found.append(("note", f"Beyond {allowed}: {lost}."))
    if others and not judged:
        found.append(("note", "No drop of accuracy was measured, so no variant can be held against a budget."))
    for variant in study.variants:
        if not variant.ok:
            said = {"failed": "failed", "skipped": "was skipped"}.get(variant.status, f"is “{variant.status}”")
            found.append(("bad" if variant.status == "failed" else "note", f"{variant.name} {said}: {variant.reason}"))
    unread = {row.path for rows in study.predictions.values() for row in rows if row.error}
    if unread:
        rows = "it is a row with its error" if len(unread) == 1 else "they are rows with their errors"
        found.append(("note", f"{words.counted(len(unread), 'photo')} could not be read; {rows} in predictions."))
    if isinstance(left_out := study.data.get("unreadable"), list) and left_out:
        was = "was" if len(left_out) == 1 else "were"
        found.append(("note", f"{words.counted(len(left_out), 'image')} could not be read and {was} left out."))
    for name, step in block(study.run, "steps").items():
        if block(step).get("status") == "failed":
            found.append(
                ("bad", f"The step “{name}” failed: {text(block(step).get('reason')) or 'no reason was recorded'}")
            )
    return found


def cards(study: Study) -> list[Card]:
    """The three recommendations."""
    named = {variant.name: variant for variant in study.ran}
    made = []
    for key, found in _recommendations(study).items():
        variant = named.get(text(found.get("variant")))
        figure = RULES[key].shown(variant) if variant and RULES[key].value(variant) is not None else ""
        made.append(Card(RULES[key].title, variant, figure, text(found.get("why"))))
    return made


def _recommendations(study: Study) -> dict[str, dict[str, Any]]:
    """As results.json has them; worked out again where it has none."""
    stored = block(study.results, "recommendations")
    fresh = recommend(study.results)
    return {key: block(stored, key) or fresh[key] for key in RULES}


def _facts(study: Study) -> list[str]:
    """The line under the title: how many images and classes, on what machine."""
    split = text(study.data.get("split"))
    classes = study.data.get("classes")
    count = len(classes) if isinstance(classes, list) else number(classes)
    return [
        *([f"{words.counted(study.images, f'{split} image'.strip())}"] if study.images else []),
        *([words.counted(int(count), "class", "classes")] if count else []),
        f"{len(study.ran)} of {words.counted(len(study.variants), 'variant')} ran",
        *machine(study)[:1],
    ]


def _looks(study: Study) -> dict[str, dict[str, str]]:
    names, base = [variant.name for variant in study.variants], str(study.results.get("baseline"))
    light, dark = looks(names, base, LIGHT), looks(names, base, DARK)
    return {
        name: {"light": light[name].color, "dark": dark[name].color, "shape": SHAPES[light[name].marker]}
        for name in names
    }


def _roots(study: Study) -> list[Path]:
    root = text(study.data.get("root"))
    return [*([Path(root)] if root else []), study.out]


def _photo(study: Study, path: str) -> str | None:
    image = thumbnail(find(path, _roots(study)))
    return None if image is None else data_uri(image)


def _differ_shown(study: Study, found: Disagreements | None) -> list[Shown]:
    return [Shown(_photo(study, old.path), old, new) for old, new in (found.photos[:PHOTOS] if found else ())]


def _sampled(study: Study) -> Variant | None:
    """Whose predictions to show: those of the variant recommended for the edge, else the first there are."""
    wanted = text(_recommendations(study)["edge"].get("variant"))
    ran = [variant for variant in study.ran if variant.name in study.predictions]
    return next((variant for variant in ran if variant.name == wanted), ran[0] if ran else None)


def _samples(study: Study, variant: Variant | None) -> list[Shown]:
    rows = [row for row in study.predictions[variant.name] if row.best is not None] if variant else []
    return [Shown(_photo(study, row.path), row) for row in spaced(rows, PHOTOS)]


def _short(name: str) -> str:
    """A class's name, as much of it as fits beside a photo."""
    return words.shortened(name, CLASS_LENGTH)


def _csp_hash(script: str) -> str:
    """The source expression that lets a browser run this very script and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}"
