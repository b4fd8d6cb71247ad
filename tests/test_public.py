"""The public face: what `petalite` exports is there, is documented, and costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import petalite


@pytest.mark.parametrize("name", petalite.__all__)
def test_every_export_is_there_and_documented(name: str) -> None:
    value = getattr(petalite, name)
    assert value is getattr(petalite, name)
    assert isinstance(value, (dict, type(petalite.FORMATS))) or value.__doc__


def test_the_verbs_of_the_contract_are_functions_whatever_was_imported_before() -> None:
    code = (
        "import petalite.study, petalite.cli, petalite.training, petalite\n"
        "for name in 'load train quantize evaluate benchmark ablate run predict verify'.split():\n"
        "    assert type(getattr(petalite, name)).__name__ == 'function', name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_costs_nothing() -> None:
    code = "import sys, petalite; print([name for name in ('torch', 'timm', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        petalite.nonsense  # noqa: B018
