"""The page: who may ask, what is never read, and text of strangers that stays text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from storage import ErrorRow, StoreWriter
from tests.view_data import HOSTILE, REGIONS, client, region_record, region_store
from workflows.cli import main
from workflows.viewing.opened import ViewError
from workflows.viewing.page import PAGES
from workflows.viewing.server import HEADERS, listen

SECRET = "the secret"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, its images with links out of their folder, and a secret beside them."""
    root = tmp_path_factory.mktemp("root")
    (root / "secret.jpg").write_text(SECRET)
    (root / "images" / "cats").mkdir(parents=True)
    (root / "images" / "cats" / "one.jpg").symlink_to(root / "secret.jpg")
    (root / "images" / "inside.jpg").write_text("no image")
    (root / "images" / "cats" / "two.jpg").symlink_to(root / "images" / "inside.jpg")
    region_store(root / "regions")
    writer = StoreWriter(root / "regions", REGIONS)
    with writer.unit(["leak"]) as unit:
        unit.fail(ErrorRow("leak", str(root / "secret.jpg"), "decode", "not_an_image", HOSTILE))
        unit.commit()
    return root


@pytest.fixture(scope="module")
def page(root: Path) -> Iterator[TestClient]:
    with client([root / "regions"], root / "images") as made:
        yield made


def picture(page: TestClient, key: str) -> str:
    answer = page.get("/api/picture", params={"key": key})
    assert answer.status_code == 404 and SECRET not in answer.text
    return str(answer.json()["error"])


@pytest.mark.parametrize("key", ["../secret", "../secret.jpg", "/etc/passwd", "cats/../../secret", "secret", "leak"])
def test_only_listed_images_are_read_whatever_a_key_says(page: TestClient, key: str) -> None:
    assert "has no image" in picture(page, key)


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(page: TestClient) -> None:
    assert "leads out of --images" in picture(page, "cats/one")
    assert "not_an_image" in picture(page, "cats/two")


@pytest.mark.parametrize("path", ["/../server.py", "/%2e%2e/server.py", "/page.html", "/..%2fapi.py", "//etc/passwd"])
def test_no_file_but_the_pages_own_is_served(page: TestClient, path: str) -> None:
    assert page.get(path).status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_a_name_that_was_rebound_to_this_machine_is_refused(page: TestClient, host: str) -> None:
    for path in ("/", "/api/stores"):
        assert page.get(path, headers={"host": host}).status_code == 400
    assert page.get("/", headers={"host": "localhost:8000"}).status_code == 200


def test_other_sites_may_not_ask_and_nothing_can_be_sent(page: TestClient) -> None:
    for site in ("cross-site", "same-site"):
        assert page.get("/api/stores", headers={"sec-fetch-site": site}).status_code == 403
    assert page.get("/api/stores", headers={"sec-fetch-site": "same-origin"}).status_code == 200
    assert page.post("/api/stores").status_code == 405


@pytest.mark.parametrize("path", ["/", "/style.css", "/api/stores", "/api/record?key=no", "/nothing"])
def test_every_answer_carries_the_policy(page: TestClient, path: str) -> None:
    answer = page.get(path)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org"])
def test_no_other_address_is_listened_on(host: str) -> None:
    with pytest.raises(ViewError, match="ssh -L"):
        listen(host, 0)
    with listen("localhost", 0) as sock:
        assert sock.getsockname()[0] == "127.0.0.1"


def test_the_page_never_makes_markup_of_text() -> None:
    scripts = "".join(path.read_text() for path in PAGES.glob("*.js"))
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "srcdoc"):
        assert way not in scripts
    assert not re.search(r"https?:", scripts + (PAGES / "style.css").read_text() + (PAGES / "page.html").read_text())


def test_a_report_cannot_be_left_by_a_key(tmp_path: Path) -> None:
    key = "</script><script>alert(1)</script><!--"
    writer = StoreWriter(tmp_path / "store", REGIONS, {"classes": [key, "dog", "eye", key]})
    with writer.unit([key]) as unit:
        record = region_record("cats/one")
        record.__dict__["key"] = key
        unit.append(record)
        unit.commit()
    assert main(["report", str(tmp_path / "store"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page and page.count("<script") == 2
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data)["stores"][0]["images"][0]["key"] == key
    assert "script-src 'sha256-" in page and "unsafe" not in page
