"""The page in a real browser: what people click, type and press, and what they then see."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.view_data import HOSTILE, KEYS, Stores, client, make_stores
from workflows.cli import main
from workflows.viewing.jobs import Job
from workflows.viewing.opened import Opened
from workflows.viewing.pictures import ImageFlags, Pictures
from workflows.viewing.server import in_background, make_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine")]
WIDE, PHONE = {"width": 1200, "height": 800}, {"width": 375, "height": 700}
REGIONS, HDF5, GRID, PIXELS = range(4)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return make_stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    if subprocess.run([str(CHROMIUM), "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"{CHROMIUM} does not start")  # where a system has only a pointer to another way of installing it
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def address(stores: Stores) -> Iterator[str]:
    app = client([stores.regions, stores.hdf5, stores.grid, stores.pixels], stores.images).app
    with in_background(app) as found:  # type: ignore[arg-type]
        yield found


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Open]:
    """Opens a part of the page; no script may have failed, and no policy been broken, when the test ends."""
    faults: list[str] = []
    pages = []

    def visit(where: str, size: dict[str, int] = WIDE, theme: str = "light", base: str = address) -> Any:
        page = browser.new_page(viewport=size, color_scheme=theme)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append("a dialog"))
        page.on("console", lambda line: faults.append(line.text) if line.type == "error" else None)
        page.goto(f"{base}{where}")
        pages.append(page)
        return page

    yield visit
    for page in pages:
        page.close()
    assert not [fault for fault in faults if "404" not in fault], "404: pictures that are not there"


def until(page: Any, condition: str) -> None:
    """Wait for a condition. The driver's own way evaluates text in the page, which the page's policy forbids."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(condition)


def test_a_search_by_keyboard_leads_to_an_image_and_back(visit: Open) -> None:
    page = visit("")
    page.locator(".card").nth(4).wait_for()
    page.keyboard.press("/")
    page.keyboard.type("dogs")
    page.locator(".card").nth(2).wait_for(state="detached")
    assert sorted(page.locator(".card .key").all_inner_texts()) == ["dogs/one", "dogs/two"]
    page.get_by_label("Attribute").fill("blue")
    page.locator(".card").nth(1).wait_for(state="detached")
    page.locator(".card a").focus()
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="dogs/two").wait_for()
    assert page.get_by_text("1 of 1").is_visible()
    page.keyboard.press("Escape")
    page.locator(".card").wait_for()
    assert page.get_by_label("Key", exact=True).input_value() == "dogs"


def test_arrows_go_on_and_boxes_light_up_with_their_rows(visit: Open) -> None:
    page = visit("#image?store=0&search=cats")
    page.get_by_role("heading", name="cats/one").wait_for()
    page.keyboard.press("ArrowRight")
    page.get_by_role("heading", name="cats/two").wait_for()
    assert page.get_by_role("button", name="Next").is_disabled()
    page.keyboard.press("ArrowRight")  # there is no third
    boxes, rows = page.locator(".large .box"), page.locator("tbody tr")
    assert boxes.count() == rows.count() == 3 and rows.first.inner_text().split() == ["cat", "0.89", "blue", "0.80"]
    rows.nth(1).hover()
    assert page.locator(".large .box.lit .tag").inner_text() == "eyes,eye 0.49"
    page.get_by_role("button", name="cat", exact=True).focus()
    assert "lit" in rows.first.get_attribute("class")
    place = page.locator(".large").bounding_box()
    page.mouse.move(place["x"] + place["width"] * 0.75, place["y"] + place["height"] * 0.75)
    assert "lit" in rows.nth(2).get_attribute("class")


def test_sliders_choose_by_score_and_number(visit: Open) -> None:
    page = visit("#image?store=1&key=cats/one")
    page.get_by_label("Least score").wait_for()
    page.get_by_label("Least score").fill("0.4")
    assert page.locator(".large .box:visible").count() == 2
    page.get_by_label("Top").fill("1")
    assert page.locator("tbody tr:visible").count() == 1 and page.get_by_text("1 of 3 regions shown").is_visible()


def test_a_clicked_region_shows_those_most_like_it(visit: Open) -> None:
    page = visit("#image?store=0&key=dogs/one")
    page.get_by_role("button", name="dog", exact=True).click()
    page.get_by_text("among all 5 images").wait_for()
    near = page.locator("section[aria-label='Nearest regions'] .card")
    assert near.count() == 14 and "dog" in near.first.inner_text()
    near.first.click()
    page.locator("tr.chosen").wait_for()


def test_cells_are_painted_and_liken_to_the_one_clicked(visit: Open) -> None:
    page = visit("#image?store=2&key=cats/one")
    page.locator(".legend .ramp").wait_for()
    pixel = "([x, y]) => [...document.querySelector('canvas').getContext('2d').getImageData(x, y, 1, 1).data]"
    before = page.evaluate(pixel, [3, 2])
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_text("row 2, column 3: 1", exact=True).wait_for()
    assert page.get_by_label("Map").input_value() == "similar"
    assert page.evaluate(pixel, [3, 2]) == [253, 231, 37, 255] != before, "like itself: the brightest colour"
    page.get_by_label("Map").select_option("pca")
    page.get_by_text("of the variance").wait_for()


def test_pixels_are_shown_as_stored(visit: Open) -> None:
    page = visit("#image?store=3&key=cats/one")
    until(page, "document.querySelector('.large img')?.naturalWidth === 4")


def test_errors_have_a_picture_or_a_mark(visit: Open) -> None:
    page = visit("#errors?store=0")
    page.locator(".failed").nth(1).wait_for()
    page.locator(".failed", has_text="bad/text").get_by_text("not shown").wait_for()
    until(page, "[...document.querySelectorAll('.failed img')].some((image) => image.naturalWidth === 80)")
    page.get_by_label("Reason").select_option("no_boxes")
    page.locator(".failed").nth(1).wait_for(state="detached")
    assert "bad/late" in page.locator(".failed").inner_text()


def test_two_stores_stand_beside_each_other(visit: Open) -> None:
    page = visit("#compare?first=0&second=1&key=cats/one")
    page.get_by_text("Identical to the last bit.").wait_for()
    assert page.locator(".pair .record").count() == 2
    page.get_by_role("button", name="Compare all 5 records").click()
    page.get_by_text("5 of 5 records in both are identical to the bit").wait_for()


def test_pictures_come_when_the_images_are_listed_and_a_note_says_so_until_then(
    browser: Any, stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, list_images = threading.Event(), Pictures._list

    def wait_and_list(pictures: Pictures, job: Job) -> None:
        go_on.wait(20)
        list_images(pictures, job)

    monkeypatch.setattr(Pictures, "_list", wait_and_list)
    app = make_app([Opened(stores.regions)], Pictures(ImageFlags(str(stores.images))))
    with in_background(app) as address:
        page = browser.new_page()
        page.goto(f"{address}#image?key=cats/one")
        page.get_by_text("The images are being listed").wait_for()
        page.get_by_text("No picture: the images are still being listed.").wait_for()
        go_on.set()
        until(page, "document.querySelector('.large img')?.naturalWidth === 80")
        assert page.get_by_text("being listed").count() == 0
        page.close()


def test_text_of_strangers_stays_text(visit: Open) -> None:
    page = visit("#image?store=0&search=onerror")
    page.get_by_role("heading", name=HOSTILE).wait_for()
    assert HOSTILE in page.locator("tbody").inner_text() and page.locator("img[onerror]").count() == 0


def test_a_phone_scrolls_down_only_and_every_control_has_a_name(visit: Open, address: str) -> None:
    page = visit("", PHONE)
    nameless = "[...document.querySelectorAll('input, select')].filter((each) => !each.labels.length).length"
    for where in ("", "#image?store=0&key=cats/one", "#image?store=2", "#errors", "#store", "#compare"):
        page.goto(f"{address}{where}")
        page.locator("main :is(.card, .box, .cells, .failed, .facts, .pair)").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 375, where
        assert page.evaluate(nameless) == 0, where
        assert page.evaluate("[...document.querySelectorAll('button, a')].every((each) => each.textContent.trim())")


def test_colours_follow_the_system_and_the_button(visit: Open) -> None:
    page = visit("", theme="dark")
    page.locator(".card").first.wait_for()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.keyboard.press("t")
    assert page.evaluate(ground) != dark
    page.reload()
    page.locator(".card").first.wait_for()
    assert page.evaluate(ground) != dark, "the choice is kept"


def test_a_report_works_from_a_file(visit: Open, stores: Stores, tmp_path: Path) -> None:
    out, shown = tmp_path / "page.html", ["--images", str(stores.images)]
    assert main(["report", str(stores.regions), str(stores.grid), "--out", str(out), *shown]) == 0
    page = visit("", base=f"file://{out}")
    page.locator(".card").nth(len(KEYS) - 1).wait_for()
    page.get_by_label("Class").fill("cat")
    page.locator(".card").nth(2).wait_for(state="detached")
    page.locator(".card a").first.click()
    until(page, "document.querySelector('.large img')?.naturalWidth === 80")
    assert page.locator(".large .box").count() == 3
    page = visit("#image?store=1&at=0", base=f"file://{out}")
    page.locator("canvas").click(position={"x": 5, "y": 5})
    page.get_by_text("row 0, column 0: 1", exact=True).wait_for()
