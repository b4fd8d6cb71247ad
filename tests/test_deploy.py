"""The files in deploy/ speak of what is there: files, options, addresses, the metric, the times that belong together."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from petalite.cli.app import app
from petalite.serve.metrics import Metrics
from petalite.serve.settings import Settings
from tests.serve.asgi import Application

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
UNIT = (ROOT / "deploy" / "petalite.service").read_text()


def documents() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="needs PyYAML")
    return list(yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text()))


def container() -> dict[str, Any]:
    (found,) = documents()[0]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def parsed(arguments: list[str]) -> dict[str, Any]:
    """`petalite ARGUMENTS` as the command line understands it; an option that is not there is an error."""
    commands: Any = get_command(app)
    return dict(commands.commands[arguments[0]].make_context("petalite", arguments[1:]).params)


def test_the_image_is_made_of_what_is_there() -> None:
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    assert copied
    for source in (source for sources in copied for source in sources):
        assert (ROOT / source).exists(), source
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extra in re.findall(r"'\.\[(\w+)\]'", DOCKERFILE):
        assert extra in extras
    entry = re.search(r"^ENTRYPOINT (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert entry is not None
    words = shlex.split(entry[1].strip("[]").replace(",", " "))
    found = parsed([*words[1:], "/models/int8"])
    assert (words[0], found["host"]) == ("petalite", "0.0.0.0")
    assert f"EXPOSE {found['port']}" in DOCKERFILE
    assert DOCKERFILE.count("USER petalite") == len(re.findall(r"^FROM base", DOCKERFILE, re.MULTILINE))


def test_the_service_starts_and_ends_as_the_server_wants() -> None:
    values = dict(line.split("=", 1) for line in UNIT.splitlines() if "=" in line and not line.startswith("#"))
    words = shlex.split(values["ExecStart"])
    assert words[0].endswith("/bin/petalite")
    parsed(words[1:])
    assert values["ExecReload"].startswith("/bin/kill -HUP")
    assert values["KillMode"] == "mixed"
    assert float(values["TimeoutStopSec"]) > Settings.deadline_s + 6


def test_probes_ask_what_the_server_answers(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    server, pod = Application(tmp_path), container()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert server("GET", pod[probe]["httpGet"]["path"]).status == 200
        assert pod[probe]["httpGet"]["port"] == pod["ports"][0]["name"]
    healthcheck = re.search(r"http://127\.0\.0\.1:\d+(/[\w/]+)", DOCKERFILE)
    assert healthcheck is not None
    assert server("GET", healthcheck[1]).status == 200
    about = documents()[0]["spec"]["template"]["metadata"]["annotations"]
    assert server("GET", about["prometheus.io/path"]).status == 200
    assert about["prometheus.io/port"] == str(pod["ports"][0]["containerPort"])


def test_a_pod_serves_and_ends_in_time() -> None:
    pod = container()
    parsed(["serve", *pod["args"]])
    pause = int(pod["lifecycle"]["preStop"]["exec"]["command"][1])
    grace = documents()[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > pause + Settings.deadline_s + 6


def test_the_autoscaler_reads_a_metric_that_there_is() -> None:
    kinds = {document["kind"]: document for document in documents()}
    (metric,) = kinds["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"# TYPE {name} gauge" in Metrics().text().decode()
    assert name in kinds["ConfigMap"]["data"]["config.yaml"]
    labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["Service"]["spec"]["selector"] == kinds["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == kinds["Deployment"]["metadata"]["name"]
