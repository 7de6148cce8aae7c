"""The Ray engine on a local cluster: the same stages, the same store."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage import open_store, verify_store
from tests.helpers import TINY, differences, write_photos
from workflows.cli import main

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.usefixtures("local_ray"),
]


def extract(view: str, photos: Path, out: Path, *more: str) -> int:
    model = ["--model", "r50"] if view == "grid" else []
    return main(["extract", view, "--images", str(photos), "--out", str(out), *model, *TINY, *more])


def test_both_engines_make_the_same_store(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 10)
    (tmp_path / "photos" / "broken.png").write_bytes(b"GIF89a")
    assert extract("regions", tmp_path / "photos", tmp_path / "local") == 0
    assert extract("regions", tmp_path / "photos", tmp_path / "ray", "--engine", "ray", "--workers", "2") == 0
    assert differences(tmp_path / "local", tmp_path / "ray") == []
    store = open_store(tmp_path / "ray")
    assert (len(store), len(store.errors()), store.run["complete"]) == (10, 1, True)
    assert len(store.entries) > 2
    assert verify_store(tmp_path / "ray").problems == []


def test_each_engine_goes_on_where_the_other_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths are the driver's: an actor's current folder is where its node was started."""
    write_photos(tmp_path / "photos", 8)
    monkeypatch.chdir(tmp_path)
    extract("grid", Path("photos"), Path("s"), "--limit", "3")
    extract("grid", Path("photos"), Path("s"), "--engine", "ray", "--workers", "1", "--limit", "6")
    assert len(open_store(tmp_path / "s")) == 6
    extract("grid", Path("photos"), Path("s"))
    extract("grid", Path("photos"), Path("once"))
    assert differences(tmp_path / "s", tmp_path / "once") == []


def test_what_the_cluster_lacks_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos", 2)
    assert extract("grid", tmp_path / "photos", tmp_path / "s", "--engine", "ray", "--workers", "9") == 2
    assert "the Ray cluster has 2" in capsys.readouterr().err
    assert extract("grid", tmp_path / "photos", tmp_path / "s", "--engine", "ray", "--device", "cuda") == 2
    assert "no GPU" in capsys.readouterr().err


def test_decoding_on_other_nodes_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photos(tmp_path / "photos", 6)
    (tmp_path / "photos" / "broken.png").write_bytes(b"GIF89a")
    assert extract("regions", tmp_path / "photos", tmp_path / "local") == 0
    flags = ["--engine", "ray", "--decode-on", "nodes", "--workers"]
    assert extract("regions", tmp_path / "photos", tmp_path / "ray", *flags, "1") == 0
    assert differences(tmp_path / "local", tmp_path / "ray") == []
    assert extract("regions", tmp_path / "photos", tmp_path / "s", *flags, "2") == 2
    assert "2 actors take 2 of the 2; lower --workers" in capsys.readouterr().err


def test_a_pool_begins_with_its_minimum_and_without_it_the_job_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", 8)
    flags = ["--engine", "ray", "--workers", "8", "--images-per-shard", "1", "--min-workers"]
    assert extract("grid", tmp_path / "photos", tmp_path / "s", *flags, "1") == 0
    assert len(open_store(tmp_path / "s")) == 8
    monkeypatch.setattr("pipeline.cluster.ACTORS_WITHIN", 1)
    assert extract("grid", tmp_path / "photos", tmp_path / "t", *flags, "3") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "of 3 actors were to be had within 1 seconds: the Ray cluster has 2 CPUs" in told


def test_less_than_a_cpu_an_actor_makes_room_for_more(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 4)
    flags = ["--engine", "ray", "--workers", "3", "--cpus-per-worker", "0.5", "--images-per-shard", "1"]
    assert extract("grid", tmp_path / "photos", tmp_path / "s", *flags) == 0
    assert len(open_store(tmp_path / "s")) == 4


def test_a_job_wide_error_in_an_actor_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", 4)
    weights = tmp_path / "w"
    weights.mkdir()
    assert extract("grid", tmp_path / "photos", tmp_path / "s", "--limit", "1") == 0
    shards = tmp_path / "s" / "shards"
    for shard in shards.iterdir():
        shard.unlink()
    shards.rmdir()
    shards.write_text("a file where the folder should be")
    assert extract("grid", tmp_path / "photos", tmp_path / "s", "--engine", "ray", "--workers", "1") == 2
    assert "triptych: " in capsys.readouterr().err


def test_images_that_never_arrive_fail_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", 3)
    monkeypatch.setattr("pipeline.cluster.RayEngine.run", lambda self, plan, on_images: iter(()))
    assert extract("grid", tmp_path / "photos", tmp_path / "s", "--engine", "ray", "--workers", "1") == 2
    assert "3 of 3 images are neither records nor errors" in capsys.readouterr().err
