"""What is installed: pins within their bounds, extras that exist, and an image that names what is there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PACKAGES = ["extractors", "pipeline", "storage", "trainers", "workflows"]


def pins() -> dict[str, Version]:
    lines = (line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    return {name: Version(version) for name, version in lines}


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_every_dependency_is_bounded_and_pinned_within_its_bounds(extra: str) -> None:
    pinned = pins()
    for each in map(Requirement, EXTRAS[extra] if extra else PROJECT["dependencies"]):
        if each.name == PROJECT["name"]:
            assert each.extras == EXTRAS.keys() - {"dev"}, "[dev] is all the others, and more"
        else:
            assert each.specifier and pinned[canonicalize_name(each.name)] in each.specifier, each


def test_only_extras_that_exist_are_named() -> None:
    texts = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    for folder in (*PACKAGES, "docs", "examples"):
        texts += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml")]
    named = {
        extra.strip()
        for path in texts
        for listed in re.findall(r"triptych\[([\w, ]+)\]", path.read_text())
        for extra in listed.split(",")
    }
    assert "ray" in named and named <= EXTRAS.keys()


def test_the_version_is_semantic_and_in_the_change_log() -> None:
    version = PROJECT["version"]
    assert re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", version)
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_wheel_holds_the_packages_alone() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel == {"packages": PACKAGES}


def test_the_image_copies_and_installs_what_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()]
    assert set(PACKAGES) < set(copied) and all((ROOT / name).exists() for name in copied)
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")}
    assert let_through == set(copied)
    [python] = re.findall(r"^FROM python:([\d.]+)-slim$", text, re.MULTILINE)
    assert f">={python}" == PROJECT["requires-python"]
    [extras] = re.findall(r'"\.\[([\w,]+)\]"', text)
    assert set(extras.split(",")) == EXTRAS.keys() - {"dev"}
    assert re.search(r"^USER (?!root)", text, re.MULTILINE) and 'ENTRYPOINT ["triptych"]' in text
