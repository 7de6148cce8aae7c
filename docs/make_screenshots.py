"""Draws docs/images/view_*.jpg and report_*.jpg: every page of `triptych view`, light and dark, and at a phone's width.

    uv run python -m docs.make_screenshots

Needs Chromium. The stores are made here, of generated scenes and the bundled photographs: regions with the scenes' true
boxes and names, made-up scores and their pixels as features; a grid by a narrow network of random weights. A few files
of the folder are no images, for the page of errors.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from extractors import GridConfig, read_image
from extractors.regions import vocabulary
from pipeline.config import EngineConfig, ExtractJob
from pipeline.job import run_job
from pipeline.sources import SourceConfig
from storage import ErrorRow, FeatureLayout, RegionRecord, Spec, StoreWriter
from trainers.scenes.drawing import save
from trainers.scenes.scene import Scene, make_scene
from workflows.cli import main as triptych
from workflows.progress import TerminalProgress
from workflows.scenes import BUNDLED
from workflows.viewing.opened import Opened
from workflows.viewing.pictures import ImageFlags, Pictures
from workflows.viewing.server import in_background, make_app

OUT = Path(__file__).parent / "images"
SCENES, SIDE = 60, 12
MOST_BYTES = 150_000
NO_BOXES = "boxes.json has no entry for the key 'photos/rocket'"
BROKEN = {
    "upload/half.jpg": b"\xff\xd8\xff\xe0 half of",
    "upload/notes.jpg": b"no image at all",
    "upload/empty.png": b"",
}
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 375, "height": 812}
CLASSES, ATTRIBUTES = (vocabulary(1600, 400)[kind] for kind in ("classes", "attributes"))
PAGES = {  # name, where it is, and what is done there
    "images": ("#images?store=0", None),
    "search": ("#images?store=0&class=umbrella&least=0.6", None),
    "regions": ("#image?store=0&at=2", "box"),
    "grid": ("#image?store=2&key=photos/coffee", "cell"),
    "compare": ("#compare?first=0&second=1&search=scene-0", "compare"),
    "errors": ("#errors?store=0", None),
    "store": ("#store?store=2", None),
}


def make_images(folder: Path) -> dict[str, Scene | None]:
    """Scenes, photographs and broken files below a folder; scenes by key, None for photographs."""
    found: dict[str, Scene | None] = {}
    for number in range(SCENES):
        scene = make_scene(0, number)
        key = f"scenes/scene-{number:02}"
        save(scene, BUNDLED, folder / f"{key}.jpg")
        found[key] = scene
    (folder / "photos").mkdir()
    for path in BUNDLED[0].parent.glob("*.jpg"):
        shutil.copy(path, folder / "photos")
        found[f"photos/{path.stem}"] = None
    (folder / "upload").mkdir()
    for name, content in BROKEN.items():
        (folder / name).write_bytes(content)
    return found


def index_of(name: str, names: list[str]) -> int:
    return next(at for at, each in enumerate(names) if name in each.split(","))


def record_of(key: str, scene: Scene, picture: np.ndarray, seed: int) -> RegionRecord:
    """The things of a scene as regions, best score first; another seed moves boxes and scores a little."""
    rng = np.random.default_rng([scene.number, seed])
    scores = rng.uniform(0.35, 0.99, len(scene.things))
    order = np.argsort(-scores)
    moved = rng.normal(0, 1 + 2 * seed, (len(order), 4))
    limit = np.array([scene.width, scene.height] * 2)
    things = [scene.things[at] for at in order]
    boxes = np.clip(np.array([thing.box for thing in things]) + moved, 0, limit).astype(np.float32)
    pieces = [cv2.resize(_cut(picture, box), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for box in boxes]
    features = (np.stack(pieces).reshape(len(boxes), -1) / 255 - 0.5).astype(np.float16)
    return RegionRecord(
        key,
        (scene.height, scene.width),
        boxes,
        features,
        features.mean(axis=0),
        np.array([index_of(thing.kind, CLASSES) for thing in things], np.int32),
        scores[order].astype(np.float32),
        np.array([index_of(thing.colour, ATTRIBUTES) for thing in things], np.int32),
        rng.uniform(0.3, 0.9, len(things)).astype(np.float32),
    )


def _cut(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    x1, y1, x2, y2 = (int(side) for side in box)
    return picture[y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]


def make_regions(folder: Path, images: Path, scenes: dict[str, Scene | None], seed: int) -> None:
    spec = Spec("regions", FeatureLayout(3 * SIDE * SIDE), {"name": "truth of the scenes", "jitter": seed})
    writer = StoreWriter(folder, spec, {"classes": CLASSES, "attributes": ATTRIBUTES})
    known = {key: scene for key, scene in scenes.items() if scene}
    with writer.unit([*known, *BROKEN]) as unit:
        for key, scene in known.items():
            unit.append(record_of(key, scene, read_image(images / f"{key}.jpg"), seed))
        for name in BROKEN:
            message = "found bytes that are no image, wanted an image file"
            unit.fail(ErrorRow(name.rpartition(".")[0], f"{images.name}/{name}", "decode", "not_an_image", message))
        row = ErrorRow("photos/rocket", f"{images.name}/photos/rocket.jpg", "prepare", "no_boxes", NO_BOXES)
        unit.fail(row)
        unit.commit()


def make_stores(folder: Path) -> list[Path]:
    """Two stores of regions and one of grids."""
    images = folder / "images"
    scenes = make_images(images)
    stores = [folder / name for name in ("regions", "regions-again", "grid")]
    for seed, store in enumerate(stores[:2]):
        make_regions(store, images, scenes, seed)
    grid = GridConfig(model="r50", weights="random:0", width_divisor=4, device="cpu")
    run_job(ExtractJob(SourceConfig(str(images)), grid, EngineConfig(str(stores[2]))), TerminalProgress())
    return stores


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
