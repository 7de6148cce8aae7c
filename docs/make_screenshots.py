"""Draws docs/images/view_*.jpg and report_*.jpg: every page of `triptych view`, light and dark, and at a phone's width.

    uv run python -m docs.make_screenshots

Needs Chromium. The stores are made here, of generated scenes, by the small network that comes along: it knows their
things. A few files of the folder are no images, for the page of errors.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from extractors import GridConfig, RegionConfig
from extractors.configs import SHIPPED, SHIPPED_DETECTOR, SHIPPED_SIZE
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import run_job
from pipeline.sources import SourceConfig
from trainers.scenes.drawing import save
from trainers.scenes.scene import make_scene
from workflows.cli import main as triptych
from workflows.progress import TerminalProgress
from workflows.scenes import BUNDLED
from workflows.viewing.opened import Opened
from workflows.viewing.pictures import ImageFlags, Pictures
from workflows.viewing.server import in_background, make_app

OUT = Path(__file__).parent / "images"
SCENES = 60
MOST_BYTES = 150_000
BROKEN = {
    "upload/half.jpg": b"\xff\xd8\xff\xe0 half of",
    "upload/notes.jpg": b"no image at all",
    "upload/empty.png": b"",
}
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 375, "height": 812}
PAGES = {  # name, where it is, and what is done there
    "images": ("#images?store=0", None),
    "search": ("#images?store=0&class=umbrella&least=0.6", None),
    "regions": ("#image?store=0&at=2", "box"),
    "grid": ("#image?store=2&key=scenes/scene-02", "cell"),
    "compare": ("#compare?first=0&second=1&search=scene-0", "compare"),
    "errors": ("#errors?store=0", None),
    "store": ("#store?store=2", None),
}


def make_images(folder: Path) -> None:
    """Scenes and broken files below a folder."""
    for number in range(SCENES):
        save(make_scene(1, number), BUNDLED, folder / f"scenes/scene-{number:02}.jpg")
    (folder / "upload").mkdir()
    for name, content in BROKEN.items():
        (folder / name).write_bytes(content)


def make_stores(folder: Path) -> list[Path]:
    """Two stores of regions, of images of two sizes, and one of grids."""
    images = folder / "images"
    make_images(images)
    shorter, longer = SHIPPED_SIZE
    boxes = RegionConfig(
        model=SHIPPED_DETECTOR, weights=SHIPPED, score_threshold=0.5, shorter=shorter, longer=longer, device="cpu"
    )
    grid = GridConfig(model="r50", weights=SHIPPED, shorter=2 * shorter, longer=2 * longer, device="cpu")
    smaller = replace(boxes, shorter=shorter - 32, longer=longer - 53)
    stores = {folder / "regions": boxes, folder / "regions-smaller": smaller, folder / "grid": grid}
    for store, config in stores.items():
        run_job(ExtractJob(SourceConfig(str(images)), config, EngineConfig(str(store))), TerminalProgress())
    return list(stores)


def act(page: Any, what: str | None) -> None:
    """What is done on a page before its picture is taken."""
    page.wait_for_load_state("networkidle")
    if what == "box":
        page.locator("tbody tr button").first.click()
        page.get_by_text("by the cosine of their features").wait_for()
    elif what == "cell":
        canvas = page.locator(".cells canvas")
        canvas.click(position={"x": 200, "y": 150})
        page.get_by_label("Map").select_option("similar")
    elif what == "compare":
        page.get_by_role("button", name="Compare all").click()
        page.get_by_text("identical to the bit").wait_for()
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)


def shoot(browser: Browser, address: str, name: str, what: str | None, size: dict[str, int], theme: str) -> None:
    """One picture; a page of a phone that scrolls sideways is a fault."""
    page = browser.new_page(viewport=size, color_scheme=theme)  # type: ignore[arg-type]
    page.goto(address)
    act(page, what)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{name} scrolls sideways"
    height = min(page.evaluate("document.documentElement.scrollHeight"), 1750)
    page.evaluate("scrollTo(0, 0)")
    page.set_viewport_size({**size, "height": max(700, height)})
    page.wait_for_timeout(300)
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture = OUT / f"{name}.jpg"
    for quality in (80, 70, 60, 50, 40):
        shown.save(picture, quality=quality, optimize=True)
        if picture.stat().st_size < MOST_BYTES:
            break
    page.close()
    print(picture, picture.stat().st_size)


def main() -> None:
    """Make the stores, serve them, and take the pictures."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        os.chdir(folder)  # the pages name paths as they were given
        stores = make_stores(Path())
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with in_background(make_app([Opened(store) for store in stores], Pictures(ImageFlags("images")))) as address:
            for name, (where, what) in PAGES.items():
                for theme in ("light", "dark"):
                    shoot(browser, f"{address}{where}", f"view_{name}_{theme}", what, WIDE, theme)
                shoot(browser, f"{address}{where}", f"view_{name}_phone", what, PHONE, "light")
        for at, name in ((0, "regions"), (2, "grid")):
            report = Path(folder) / f"{name}.html"
            triptych(["report", str(stores[at]), "--out", str(report), "--images", "images"])
            for theme in ("light", "dark"):
                shoot(browser, f"file://{report}#image?at=1", f"report_{name}_{theme}", None, WIDE, theme)
        browser.close()


if __name__ == "__main__":
    main()
