"""`triptych view` and `triptych report` from the command line: what they write, and what they refuse."""

from __future__ import annotations

import errno
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from storage import open_store
from tests.test_imports import run_python
from tests.view_data import KEYS, Stores, make_stores
from workflows.cli import main


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return make_stores(tmp_path_factory.mktemp("stores"))


def data_of(page: Path) -> dict[str, Any]:
    """What a report holds."""
    [found] = re.findall(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    plain: dict[str, Any] = json.loads(found)
    return plain


def test_a_report_holds_its_images_and_all_that_is_shown_of_them(
    stores: Stores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "page.html"
    assert main(["report", str(stores.regions), "--out", str(out), "--images", str(stores.images)]) == 0
    said = capsys.readouterr().out
    assert "5 of 5 images" in said and "1 without a picture" in said
    page = data_of(out)
    [found] = page["stores"]
    assert sorted(image["key"] for image in found["images"]) == sorted(KEYS)
    assert len(page["pictures"]) == 4 and page["pictures"].keys() < set(KEYS)
    assert all(each.startswith("data:image/jpeg;base64,") for each in page["pictures"].values())
    assert all(len(image["boxes"]) == 3 for image in found["images"])
    assert [row["key"] for row in found["errors"]] == ["bad/text", "bad/late"]
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", out.read_text()), "it asks for nothing"


def test_a_report_of_some_images_and_of_cells(stores: Stores, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(stores.regions), "--out", str(out), "--number", "2"]) == 0
    page = data_of(out)
    assert page["stores"][0]["store"]["kept_of"] == [2, 5] and not page["pictures"]
    for store in (stores.grid, stores.patches):
        assert main(["report", str(store), "--out", str(out)]) == 0
        image = data_of(out)["stores"][0]["images"][0]
        assert set(image["maps"]) == {"norm", "pca"} and "likeness" in image
    assert main(["report", str(stores.pixels), "--out", str(out)]) == 0
    assert data_of(out)["stores"][0]["images"][0]["picture"].startswith("data:image/jpeg")


def test_a_report_of_two_stores_has_the_same_images_of_both_and_a_picture_once(stores: Stores, tmp_path: Path) -> None:
    out, shown = tmp_path / "page.html", ["--images", str(stores.images), "--number", "3"]
    assert main(["report", str(stores.regions), str(stores.grid), "--out", str(out), *shown]) == 0
    page = data_of(out)
    regions, grid = ({image["key"] for image in each["images"]} for each in page["stores"])
    assert len(regions) == 3 and grid == {key for key in regions if key in open_store(stores.grid)}
    assert page["pictures"].keys() <= regions
    assert [each["store"]["view"] for each in page["stores"]] == ["regions", "grid"]


def test_what_cannot_be_is_refused_in_a_line(
    stores: Stores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(stores.regions)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        commands = {
            "no store was named; wanted one or more, as in `triptych view": ["view"],
            "no store was named; wanted one or more, as in `triptych report": ["report", "--out", "x.html"],
            "ssh -L": ["view", store, "--host", "0.0.0.0"],
            "leave --port out": ["view", store, "--port", str(taken.getsockname()[1])],
            "no store": ["view", str(tmp_path / "nothing")],
            "does not exist": ["view", store, "--images", str(tmp_path / "nothing")],
            "is a folder": ["report", store, "--out", str(tmp_path)],
            "--number 0": ["report", store, "--out", "x.html", "--number", "0"],
        }
        for told, command in commands.items():
            assert main(command) == 2, command
            error = capsys.readouterr().err
            assert told in error and error.count("\n") == 1, error


def test_ctrl_c_ends_it_well(
    stores: Stores, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import uvicorn

    def interrupted(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        for sock in sockets:
            sock.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    assert main(["view", str(stores.regions)]) == 0
    said = capsys.readouterr()
    assert re.match(r"http://127\.0\.0\.1:\d+/", said.out) and not said.err


def test_page_and_report_start_without_torch_or_ray(stores: Stores, tmp_path: Path) -> None:
    line = ["report", str(stores.regions), "--out", str(tmp_path / "page.html")]
    run_python(
        f"from workflows.cli import main; assert main({line}) == 0; import workflows.view, workflows.viewing.server, "
        "uvicorn, sys; assert not {'torch', 'ray', 'torchvision', 'transformers'} & set(sys.modules), 'slow'"
    )


@pytest.mark.parametrize("place", ["file/page.html", "file"])
def test_a_report_that_cannot_be_written_leaves_what_was_there(
    place: str, stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("before")
    if place == "file":  # the disk is full

        def refuse(fd: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", refuse)
    assert main(["report", str(stores.regions), "--out", str(tmp_path / place)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"triptych: cannot write {tmp_path / place}: ") and told.count("\n") == 1
    assert [each.name for each in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "before"


@pytest.mark.parametrize("flags", ["--layout coco", "--image-root photos", "--all-files"])
def test_settings_of_images_that_are_not_named_are_refused(
    flags: str, stores: Stores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(stores.regions), "--out", str(tmp_path / "page.html"), *flags.split()]) == 2
    assert f"{flags.split()[0]} says how --images are found" in capsys.readouterr().err
