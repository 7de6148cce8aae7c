"""Several views at once, trying again, looking ahead, and JSON lines: the commands beside a plain extraction."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import storage.compact as compact
from storage import open_store, verify_store
from tests.helpers import TINY, differences, write_photos
from workflows.cli import main


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 4)
    return folder


@pytest.fixture
def damaged(photos: Path, tmp_path: Path) -> tuple[Path, bytes]:
    """The photographs with one cut short and an empty one; and the whole bytes of the first."""
    folder = tmp_path / "images"
    shutil.copytree(photos, folder)
    first = sorted(folder.rglob("*.jpg"))[0]
    whole = first.read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    return folder, whole


def extract(view: str, images: Path, out: Path, *more: str) -> int:
    return main(["extract", view, "--images", str(images), "--out", str(out), *TINY, *more])


def test_views_from_one_decode_are_the_stores_of_single_runs(photos: Path, tmp_path: Path) -> None:
    assert extract("regions", photos, tmp_path / "all", "--views", "regions,grid,pixels") == 0
    assert extract("regions", photos, tmp_path / "regions") == 0
    assert extract("grid", photos, tmp_path / "grid", "--model", "butd-r101") == 0
    assert main(["extract", "pixels", "--images", str(photos), "--out", str(tmp_path / "pixels")]) == 0
    for view in ("regions", "grid", "pixels"):
        assert differences(tmp_path / "all" / view, tmp_path / view) == []


def test_a_view_that_is_behind_is_caught_up(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extract("grid", photos, tmp_path / "all", "--model", "butd-r101", "--views", "grid,pixels") == 0
    shutil.rmtree(tmp_path / "all" / "pixels")
    assert extract("grid", photos, tmp_path / "all", "--model", "butd-r101", "--views", "grid,pixels") == 0
    for view in ("grid", "pixels"):
        assert len(open_store(tmp_path / "all" / view)) == 4
        assert verify_store(tmp_path / "all" / view).problems == []
    capsys.readouterr()
    assert extract("grid", photos, tmp_path / "all", "--model", "butd-r101", "--views", "grid,pixels") == 0
    assert "4 before this run, 0 in it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("views", "line"),
    [("grid,pixels", "must name regions, too"), ("regions,depth", "view 'depth' is not known; choose from")],
)
def test_views_that_make_no_sense_are_refused(
    views: str, line: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract("regions", photos, tmp_path / "s", "--views", views) == 2
    assert line in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_retry_redoes_exactly_what_is_asked_for(
    damaged: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = damaged
    monkeypatch.chdir(tmp_path)
    assert extract("grid", Path("images"), Path("s"), "--model", "r50") == 0
    before = {row.key: row for row in open_store("s").errors()}
    assert set(before) == {"cut", "empty"}
    (folder / "cut.jpg").write_bytes(whole)
    (folder / "empty.jpg").write_bytes(whole)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["retry", "../s", "--status", before["cut"].reason]) == 0
    store = open_store("../s")
    assert len(store) == 5 and "cut" in store
    assert store.errors() == [before["empty"]]
    assert main(["retry", "../s", "--status", "decode_error"]) == 0
    assert len(open_store("../s")) == 6 and open_store("../s").errors() == []
    assert verify_store("../s").problems == []
    assert main(["retry", "../s", "--status", "timeout"]) == 2
    assert "this store has no failed image" in capsys.readouterr().err
    assert main(["retry", "../s"]) == 0  # nothing to do is no error


def test_what_fails_again_stays_an_error(damaged: tuple[Path, bytes], tmp_path: Path) -> None:
    assert extract("grid", damaged[0], tmp_path / "s", "--model", "r50") == 0
    before = open_store(tmp_path / "s").errors()
    assert main(["retry", str(tmp_path / "s")]) == 0
    after = open_store(tmp_path / "s")
    assert sorted(row.key for row in after.errors()) == sorted(row.key for row in before)
    assert len(after) == 4
    assert verify_store(tmp_path / "s").problems == []


def test_a_store_that_does_not_know_its_job_says_so(
    damaged: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract("grid", damaged[0], tmp_path / "s", "--model", "r50") == 0
    (tmp_path / "s" / "run.json").unlink()
    assert main(["retry", str(tmp_path / "s")]) == 2
    assert "does not tell how it was made" in capsys.readouterr().err


def test_plan_gives_no_estimate_where_nothing_became_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"none")
    assert main(["plan", "grid", "--images", str(tmp_path / "images"), "--out", str(tmp_path / "s"), *TINY]) == 0
    told = capsys.readouterr().out
    assert "1 images tried here, none of which became a record (1 not_an_image): no estimate" in told
    assert "images/s" not in told and "of features" not in told


def test_plan_tells_and_writes_nothing(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["regions", "--images", str(photos), "--out", str(tmp_path / "s"), *TINY]
    assert main(["plan", *arguments, "--probe", "3", "--views", "regions,pixels"]) == 0
    told = capsys.readouterr().out
    assert "4 images in" in told and "4 to do, in 1 units" in told
    assert "images tried here" in told and "of features" in told
    assert list(tmp_path.iterdir()) == []
    assert main(["extract", *arguments, "--limit", "3"]) == 0
    capsys.readouterr()
    assert main(["plan", *arguments, "--probe", "0"]) == 0
    told = capsys.readouterr().out
    assert "4 images in" in told and "3 of them done" in told and "1 to do" in told and "tried" not in told


def test_plan_refuses_what_the_job_would(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert extract("grid", photos, tmp_path / "s", "--model", "r50") == 0
    arguments = ["--images", str(photos), "--out", str(tmp_path / "s"), *TINY]
    assert main(["plan", "grid", *arguments, "--model", "r50", "--store-dtype", "float32"]) == 2
    assert "float32" in capsys.readouterr().err


def test_json_lines_tell_of_every_stage(
    damaged: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract("grid", damaged[0], tmp_path / "s", "--model", "r50", "--json", "--images-per-shard", "2") == 0
    events: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["event"] for each in events] == ["start", "progress", "progress", "progress", "end"]
    start, *_, last, end = events
    assert (start["images"], start["units"], start["weights"]) == (6, 3, {"grid": "random:0"})
    assert (last["images"], last["of"], last["failed"]) == (6, 6, 2)
    assert sum(last["reasons"].values()) == sum(end["errors"].values()) == 2
    assert {"read", "decode", "model", "write"} <= end["stage_seconds"].keys()
    assert (end["status"], end["records"]) == (0, 4)


def test_an_address_whose_signature_was_not_kept_is_looked_up_in_its_list_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed = "https://user@host.example/{}.jpg?signature=secret"
    (tmp_path / "list.tsv").write_text("".join(f"{key}\t{signed.format(key)}\n" for key in "ab"))
    whole = next(photos.rglob("*.jpg")).read_bytes()
    answers: dict[str, bytes] = {}
    monkeypatch.setattr("pipeline.sources.files.read_address", lambda uri, *_: answers.get(uri, b""))
    assert extract("grid", tmp_path / "list.tsv", tmp_path / "s", "--model", "r50") == 0
    assert not any("secret" in row.uri for row in open_store(tmp_path / "s").errors())
    answers |= {signed.format(key): whole for key in "ab"}
    assert main(["retry", str(tmp_path / "s")]) == 0
    assert sorted(open_store(tmp_path / "s")) == ["a", "b"]


def test_a_long_job_folds_its_manifest_on_the_way(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.job.FOLD_EVERY", 2)
    folded = []
    fold = compact.fold
    monkeypatch.setattr("pipeline.job.fold", lambda out, at_least: folded.append(fold(out, at_least)))
    assert extract("grid", photos, tmp_path / "s", "--model", "r50", "--images-per-shard", "1") == 0
    assert sum(folded) >= 2 and len(folded) == 3
    assert extract("grid", photos, tmp_path / "whole", "--model", "r50") == 0
    assert differences(tmp_path / "s", tmp_path / "whole") == []
    assert verify_store(tmp_path / "s").problems == []


def test_a_killed_job_has_noted_its_settings(
    damaged: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise SystemExit("killed")

    folder, whole = damaged
    monkeypatch.setattr("pipeline.job._check_all_there", die)
    with pytest.raises(SystemExit):
        extract("grid", folder, tmp_path / "s", "--model", "r50")
    monkeypatch.undo()
    (folder / "cut.jpg").write_bytes(whole)
    assert main(["retry", str(tmp_path / "s")]) == 0
    assert "cut" in open_store(tmp_path / "s")
