"""The commands as a user types them, on narrow networks and small photographs."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import save_file

from extractors import load_extractor, read_image
from extractors.grid import GridExtractor
from storage import RegionRecord, open_store
from tests.helpers import TINY, differences, json_lines, write_photos
from workflows.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 6)
    (folder / "notes.md").write_text("not an image")
    whole = (folder / "a" / "photo_000.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def extract(view: str, photos: Path, out: Path, *more: str) -> int:
    model = ["--model", "r50"] if view == "grid" else []
    return main(["extract", view, "--images", str(photos), "--out", str(out), *model, *TINY, *more])


def info(store: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["info", str(store), "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


@pytest.mark.parametrize("view", ["regions", "grid"])
def test_extract_accounts_for_every_image_and_tells_about_it(
    view: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert extract(view, photos, out) == 0
    told = capsys.readouterr()
    assert "1 other file passed over" in told.err
    assert "random:0" in told.err and "random:0" in told.out
    for word in (
        "images      7",
        "records     6",
        "errors      1",
        "1  truncated",
        "images/s",
        "read",
        "model idle",
    ):
        assert word in told.out
    facts = info(out, capsys)
    assert {
        "view",
        "spec_id",
        "spec",
        "records",
        "errors",
        "errors_by_reason",
        "shards",
        "bytes",
        "complete",
    } <= facts.keys()
    assert (facts["view"], facts["records"], facts["errors"], facts["complete"]) == (view, 6, 1, True)
    assert facts["errors_by_reason"] == {"truncated": 1}
    assert facts["spec"]["model"]["width_divisor"] == 32
    assert main(["verify", str(out)]) == 0


def test_errors_prints_one_row_per_failed_image(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract("grid", photos, tmp_path / "s")
    capsys.readouterr()
    assert main(["errors", str(tmp_path / "s"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["key"], row["stage"], row["reason"]) == ("broken", "decode", "truncated")
    assert row["uri"].endswith("broken.jpg") and row["message"]


def test_the_same_command_again_reads_nothing_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extract("grid", photos, tmp_path / "s")

    def must_not_read(*_: object) -> bytes:
        raise AssertionError("a done image was read again")

    monkeypatch.setattr("pipeline.sources.folder.FolderSource.read", must_not_read)
    before = sorted((tmp_path / "s").rglob("*.arrow"))
    assert extract("grid", photos, tmp_path / "s") == 0
    assert sorted((tmp_path / "s").rglob("*.arrow")) == before
    assert info(tmp_path / "s", capsys)["complete"]


def test_new_images_of_the_folder_are_added(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", 4)
    extract("regions", tmp_path / "photos", tmp_path / "s")
    write_photos(tmp_path / "photos", 7)
    extract("regions", tmp_path / "photos", tmp_path / "s")
    extract("regions", tmp_path / "photos", tmp_path / "once")
    assert len(open_store(tmp_path / "s")) == 7
    assert differences(tmp_path / "s", tmp_path / "once") == []


def test_shards_and_threads_change_no_bit(photos: Path, tmp_path: Path) -> None:
    extract("regions", photos, tmp_path / "one")
    extract("regions", photos, tmp_path / "other", "--images-per-shard", "2", "--decode-workers", "4")
    assert differences(tmp_path / "one", tmp_path / "other") == []


def test_a_batch_of_equal_sizes_stays_within_rounding(tmp_path: Path) -> None:
    """A convolution over several images may add up in another order than over one."""
    (tmp_path / "photos").mkdir()
    for index, key in enumerate(write_photos(tmp_path / "some", 4)):
        Image.open(tmp_path / "some" / f"{key}.jpg").resize((90, 70)).save(tmp_path / "photos" / f"{index}.png")
    extract("grid", tmp_path / "photos", tmp_path / "one")
    extract("grid", tmp_path / "photos", tmp_path / "four", "--batch-size", "4")
    one, four = open_store(tmp_path / "one"), open_store(tmp_path / "four")
    for key in one:
        np.testing.assert_allclose(one[key].features, four[key].features, rtol=2e-3, atol=2e-3)


def test_another_spec_is_refused_field_by_field(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract("grid", photos, tmp_path / "s")
    capsys.readouterr()
    assert extract("grid", photos, tmp_path / "s", "--shorter", "96") == 2
    [line] = [each for each in capsys.readouterr().err.splitlines() if each]
    assert "preprocess.shorter: 64 in the store, 96 in this job" in line
    assert main(["verify", str(tmp_path / "s")]) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--images", "nowhere"], "does not exist"),
        (["--weights", "nowhere.pth"], "random:SEED"),
        (["--weights", "random:x"], "random:0"),
        (["--device", "cuda:7"], "GPU"),
        (["--shorter", "0"], "--shorter 0"),
        (["--max-errors", "many"], "percentage"),
        (["--workers", "2"], "--engine ray"),
        (["--config", "nowhere.yaml"], "cannot be read"),
    ],
)
def test_a_wrong_job_ends_with_one_line_and_status_2(
    more: list[str], words: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract("grid", photos, tmp_path / "s", *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_missing_published_weights_say_where_to_put_the_file(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIPTYCH_WEIGHTS", str(tmp_path / "weights"))
    assert main(["extract", "regions", "--images", str(photos), "--out", str(tmp_path / "s")]) == 2
    assert str(tmp_path / "weights" / "bua-caffe-frcn-r101-k10-100.pth") in capsys.readouterr().err


@pytest.mark.parametrize(("allowed", "status"), [("1", 0), ("0", 3), ("20%", 0), ("5%", 3)])
def test_max_errors_turns_bad_images_into_status_3(allowed: str, status: int, photos: Path, tmp_path: Path) -> None:
    assert extract("grid", photos, tmp_path / "s", "--max-errors", allowed) == status
    assert len(open_store(tmp_path / "s")) == 6


def test_limit_and_all_files(photos: Path, tmp_path: Path) -> None:
    extract("grid", photos, tmp_path / "few", "--limit", "2")
    assert list(open_store(tmp_path / "few").keys()) == ["a/photo_000", "a/photo_002"]
    extract("grid", photos, tmp_path / "all", "--all-files", "--exclude", "*.MD,b/*")
    store = open_store(tmp_path / "all")
    assert sorted([*store.keys(), *(row.key for row in store.errors())]) == [
        "a/photo_000.jpg", "a/photo_002.jpg", "a/photo_004.jpg", "broken.jpg"
    ]  # fmt: skip


def test_a_yaml_file_fills_the_flags_and_flags_win(photos: Path, tmp_path: Path) -> None:
    job = {"images": str(photos), "model": "r50", "limit": 3, "keep_extension": True, "out": str(tmp_path / "wrong")}
    (tmp_path / "job.yaml").write_text("\n".join(f"{name}: {value}" for name, value in job.items()))
    out = tmp_path / "s"
    assert main(["extract", "grid", "--config", str(tmp_path / "job.yaml"), "--out", str(out), *TINY]) == 0
    assert list(open_store(out).keys()) == ["a/photo_000.jpg", "a/photo_002.jpg", "a/photo_004.jpg"]
    assert not (tmp_path / "wrong").exists()


def test_a_yaml_file_with_an_unknown_setting_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text("images: x\nout: y\nmodle: r50\n")
    assert main(["extract", "grid", "--config", str(tmp_path / "job.yaml")]) == 2
    assert "no option --modle; did you mean --model?" in capsys.readouterr().err


def test_own_boxes_keep_their_order_and_missing_ones_are_error_rows(tmp_path: Path) -> None:
    first, second, *_ = write_photos(tmp_path / "photos", 3)
    boxes = {first: [[30, 20, 25, 30], [0, 0, 40, 40]], second: [[0, 0, 5000, 10]]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    own = ["--boxes", str(tmp_path / "boxes.json"), "--box-format", "xywh", "--box-units", "pixels"]
    assert extract("regions", tmp_path / "photos", tmp_path / "s", *own) == 0
    store = open_store(tmp_path / "s")
    record = store[first]
    assert isinstance(record, RegionRecord)
    assert record.boxes.tolist() == [[30, 20, 55, 50], [0, 0, 40, 40]]
    assert {row.reason for row in store.errors()} == {"bad_boxes", "no_boxes"}


def test_three_lines_of_python_equal_the_command(photos: Path, tmp_path: Path) -> None:
    extract("regions", photos, tmp_path / "s")
    extractor = load_extractor("regions", weights="random:0", width_divisor=32, shorter=64, longer=100, device="cpu")
    record = extractor(read_image(photos / "a" / "photo_000.jpg"))
    stored = open_store(tmp_path / "s")["a/photo_000"]
    assert np.array_equal(record.features, stored.features)
    assert isinstance(record, RegionRecord) and isinstance(stored, RegionRecord)
    assert np.array_equal(record.boxes, stored.boxes)


def write_sources(photos: Path, out: Path) -> dict[str, list[str]]:
    """The folder's photographs once more as every other kind of source, under the same keys; flags by kind."""
    paths = {str(path.relative_to(photos).with_suffix("")): path for path in sorted(photos.rglob("photo_*.jpg"))}
    (out / "list.tsv").write_text("\n".join(f"{key}\t{path}" for key, path in paths.items()))
    with tarfile.open(out / "shard.tar", "w") as shard:
        for key, path in paths.items():
            shard.add(path, f"{key}.jpg")
    columns = {"key": list(paths), "image": [path.read_bytes() for path in paths.values()]}
    pq.write_table(pa.table(columns), out / "images.parquet", row_group_size=2)
    return {
        "list": ["--images", str(out / "list.tsv"), "--image-root", str(photos)],
        "tar": ["--images", str(out / "shard.tar")],
        "parquet": ["--images", str(out / "images.parquet")],
    }


@pytest.mark.parametrize("kind", ["list", "tar", "parquet"])
def test_every_source_gives_the_same_store(kind: str, photos: Path, tmp_path: Path) -> None:
    extract("grid", photos, tmp_path / "folder", "--exclude", "broken*")
    flags = write_sources(photos, tmp_path)[kind]
    assert main(["extract", "grid", *flags, "--out", str(tmp_path / kind), "--model", "r50", *TINY]) == 0
    assert differences(tmp_path / "folder", tmp_path / kind) == []


def test_coco_images_are_keyed_by_their_official_id(photos: Path, tmp_path: Path) -> None:
    images = [{"id": 39769, "file_name": "a/photo_000.jpg"}, {"id": 7, "file_name": "absent.jpg"}]
    (tmp_path / "instances.json").write_text(json.dumps({"images": images, "annotations": []}))
    assert extract("grid", tmp_path / "instances.json", tmp_path / "s", "--image-root", str(photos)) == 0
    store = open_store(tmp_path / "s")
    assert list(store) == ["39769"]
    assert [(row.key, row.reason) for row in store.errors()] == [("7", "missing")]


def test_narrow_real_weights_are_refused(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "w.pth")
    assert extract("grid", photos, tmp_path / "s", "--weights", str(tmp_path / "w.pth")) == 2
    assert "--width-divisor goes with random weights only" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_makes_two_sound_stores_a_page_and_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.demo.SCENES", 60)  # the whole of it runs beside the tests, in .ci/run
    monkeypatch.setattr("workflows.demo.STEPS", 2)
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--json"]) == 0
    page = (out / "index.html").read_text()
    assert page.count("data:image/jpeg") == page.count('"maps":') == 8 and "://" not in page
    assert len(open_store(out / "regions")) == len(open_store(out / "grid")) == 9
    *events, made = json_lines(capsys.readouterr().out)
    assert [each["problems"] for each in events if "problems" in each] == [[], []]
    assert [each["label"] for each in events if each.get("event") == "cell"] == [
        "VL-BERT, cached regions",
        "Grid-VLP, cached grid",
        "ViLT, cached pixels",
    ]
    assert (out / "comparison" / "report.html").is_file() and made["boxes"] == str(out / "index.html")
    assert made["named"] >= 0.6 * made["things"] and made["described"] >= 0.8 * made["named"] >= 0.64 * made["found"]


@pytest.mark.slow
def test_a_workflow_script_runs_from_any_folder(photos: Path, tmp_path: Path) -> None:
    script = ROOT / "workflows" / "extract_grid.py"
    flags = ["--images", str(photos), "--out", "s", "--engine", "local", "--model", "r50", "--limit", "2", *TINY]
    done = subprocess.run([sys.executable, script, *flags], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(open_store(tmp_path / "s")) == 2


def test_a_rotated_photograph_keeps_upright_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (120, 80), "red").save(tmp_path / "photos" / "turned.jpg", exif=exif)
    extract("grid", tmp_path / "photos", tmp_path / "s")
    assert open_store(tmp_path / "s")["turned"].image_size == (120, 80)


def weights_of(model: str, path: Path) -> Path:
    """A full-width checkpoint of a grid network, as its authors would publish it."""
    network = load_extractor("grid", model=model, weights="random:0", device="cpu")
    assert isinstance(network, GridExtractor)
    save_file({f"backbone.{name}": tensor.contiguous() for name, tensor in network.network.state_dict().items()}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("made_for", "asked_for"), [("x152", "x101"), ("x152pp", "x152"), ("x101", "x152")])
def test_weights_of_a_deeper_or_deformable_network_are_refused(
    made_for: str, asked_for: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = weights_of(made_for, tmp_path / "w.safetensors")
    flags = ["--images", str(photos), "--out", str(tmp_path / "s"), "--device", "cpu", "--weights", str(weights)]
    assert main(["extract", "grid", "--model", asked_for, *flags]) == 2
    assert "does not fit grid network" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("view", "more", "words"),
    [
        ("grid", ["--weights", "butd-r101"], "of another network; this one takes grid-r50"),
        ("grid", ["--weights", "grid-x152"], "of another network"),
        ("regions", ["--weights", "grid-x101"], "this one takes butd-r101"),
        ("grid", ["--weights", "random:0", "--out", "gopher://bucket/features"], "cannot be reached"),
    ],
)
def test_what_cannot_fit_is_said_before_anything_is_fetched(
    view: str, more: list[str], words: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert extract(view, photos, tmp_path / "s", *more) == 2
    assert words in capsys.readouterr().err
    assert not Path("s3:").exists()


def test_boxes_under_other_keys_stop_the_job(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "boxes.json").write_text(json.dumps({"photo_000.jpg": [[0, 0, 9, 9]]}))
    own = ["--boxes", str(tmp_path / "boxes.json"), "--box-format", "xyxy", "--box-units", "pixels"]
    assert extract("regions", photos, tmp_path / "s", *own) == 2
    assert "has no key of an image" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_a_rerun_with_nothing_to_do_keeps_the_speed_of_the_run_that_worked(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract("grid", photos, tmp_path / "s")
    before = info(tmp_path / "s", capsys)["run"]
    extract("grid", photos, tmp_path / "s")
    after = info(tmp_path / "s", capsys)["run"]
    assert after["images_per_second"] == before["images_per_second"] > 0
    assert (after["images"], after["source_images"], after["complete"]) == (7, 7, True)


def test_a_damaged_note_of_the_last_run_does_not_hide_the_rest(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract("grid", photos, tmp_path / "s")
    (tmp_path / "s" / "run.json").write_text("{}")
    facts = info(tmp_path / "s", capsys)
    assert (facts["records"], facts["complete"]) == (6, False)
    assert "damaged" in facts["run"]
    assert main(["info", str(tmp_path / "s")]) == 0


def test_a_yaml_boolean_can_be_turned_off_by_a_flag(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("keep_extension: true\nexclude: '-x*'\n")
    config = ["--config", str(tmp_path / "job.yaml")]
    assert extract("grid", photos, tmp_path / "s", *config, "--no-keep-extension", "--limit", "1") == 0
    assert list(open_store(tmp_path / "s")) == ["a/photo_000"]


def test_output_nobody_reads_ends_quietly(photos: Path, tmp_path: Path) -> None:
    extract("grid", photos, tmp_path / "s")
    command = f"{sys.executable} -m workflows.cli info {tmp_path / 's'} --json | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
