"""The documentation as a site: it builds without a warning, which a broken link would be, and fetches nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = re.compile(
    r"""(?:<(?:script|img|iframe)[^>]*\ssrc|<link[^>]*rel="(?:stylesheet|preload|preconnect)"[^>]*href)=["'](?:https?:)?//"""
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_it_builds_without_a_broken_link_and_has_every_page(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file(), page
    assert "Triptych turns an image collection" in (site / "index.html").read_text(encoding="utf-8")
    assert "class MobileExtractor" in re.sub("<[^>]+>", "", (site / "files/examples/own_extractor.py.html").read_text())


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not FETCHED.search(page.read_text(encoding="utf-8")), page
    for sheet in site.rglob("*.css"):
        assert "url(http" not in sheet.read_text(encoding="utf-8"), sheet


def test_the_reference_names_what_is_public(site: Path) -> None:
    storage = (site / "api" / "storage.html").read_text(encoding="utf-8")
    assert 'id="storage.FeatureStore.batch"' in storage and "storage.FeatureStore._located" not in storage
    assert re.search(
        r"<pre[^>]*>.*?image_size\s+\(height, width\)", re.sub("</?(?:span|code)[^>]*>", "", storage), re.DOTALL
    )
