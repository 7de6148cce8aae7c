"""Folders made by us in the layout of the official ones, to be changed at will."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.golden.tiny import MAKERS


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder above one of each kind; read only."""
    parent = tmp_path_factory.mktemp("tiny")
    for name, make in MAKERS.items():
        make(parent / name)
    return parent


@pytest.fixture(params=MAKERS)
def folder(request: pytest.FixtureRequest, originals: Path, tmp_path: Path) -> Path:
    """A folder of ours in the official layout, to be changed at will."""
    return shutil.copytree(originals / request.param, tmp_path / request.param)


@pytest.fixture
def grid(originals: Path, tmp_path: Path) -> Path:
    return shutil.copytree(originals / "grid", tmp_path / "grid")
