"""The commands on stores as a user types them: other formats, damage and repair, comparison, import and export."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage import StoreWriter, open_store
from storage.against import coverage, needed_ids
from storage.codecs import cast, decode, encode
from tests.helpers import TINY, differences, write_photos
from tests.unit.storage.samples import REGIONS, contents, make_store, region_record, with_layout
from workflows.cli import main
from workflows.transfer import file_name, file_names


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder, 6)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "store", [["a", "b", "c"], ["d", "e"], ["f"]], failed=["b"])


def extract(photos: Path, out: Path, *more: str) -> int:
    return main(["extract", "regions", "--images", str(photos), "--out", str(out), *TINY, *more])


def test_an_hdf5_store_holds_the_same_bits_and_goes_on_where_it_stopped(photos: Path, tmp_path: Path) -> None:
    arrow, hdf5 = tmp_path / "arrow", tmp_path / "hdf5"
    assert extract(photos, arrow) == 0
    assert extract(photos, hdf5, "--format", "hdf5", "--limit", "3") == 0
    assert extract(photos, hdf5, "--format", "hdf5", "--images-per-shard", "2") == 0
    assert {shard.suffix for shard in (hdf5 / "shards").iterdir()} == {".h5"}
    assert differences(arrow, hdf5) == []
    assert main(["verify", str(hdf5)]) == 0


def test_a_repaired_store_is_made_whole_by_the_same_command(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    for out in (whole, hurt):
        assert extract(photos, out, "--images-per-shard", "2") == 0
    shard = open_store(hurt).units[0].shard
    assert shard is not None
    data = bytearray((hurt / shard.file).read_bytes())
    data[len(data) // 2] ^= 1
    (hurt / shard.file).write_bytes(data)
    untouched = {name: data for name, data in contents(hurt / "shards").items() if name not in shard.file}
    capsys.readouterr()
    assert main(["verify", str(hurt), "--quick"]) == 0
    assert main(["verify", str(hurt)]) == 1
    told = capsys.readouterr().out
    assert shard.file in told and "checksum differs" in told and "photo_" in told and f"triptych repair {hurt}" in told
    assert main(["repair", str(hurt)]) == 0
    assert "1 damaged units dropped, with 2 images" in capsys.readouterr().out
    assert untouched.items() <= contents(hurt / "shards").items()
    assert extract(photos, hurt, "--images-per-shard", "2") == 0
    assert "2 in it" in capsys.readouterr().out
    assert differences(whole, hurt) == []
    assert main(["diff", str(whole), str(hurt)]) == 0


def test_converting_there_and_back_changes_nothing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(store)
    assert main(["convert", str(store), "--to", "hdf5", "--out", str(tmp_path / "h5")]) == 0
    assert "5 of 5 records identical to the last bit" in capsys.readouterr().out
    assert (
        main(["convert", str(tmp_path / "h5"), "--to", "arrow", "--archive", "--out", str(tmp_path / "archive")]) == 0
    )
    assert main(["convert", str(tmp_path / "archive"), "--to", "arrow", "--out", str(tmp_path / "back")]) == 0
    assert differences(store, tmp_path / "back") == []
    assert contents(store) == before


def test_converting_to_another_dtype_tells_what_it_costs(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(store), "--to", "arrow", "--dtype", "uint8", "--out", str(tmp_path / "small")]) == 0
    told = capsys.readouterr().out
    assert "layout.dtype: 'float16' in first, 'uint8' in second" in told
    [line] = [line for line in told.splitlines() if line.startswith("features ")]
    _, records, identical, largest, _, cosine = line.split()
    assert (records, identical) == ("5", "0") or int(identical) < 5
    assert 0 < float(largest) < 0.02 and 0.999 < float(cosine) < 1


def test_compacting_merges_and_says_so(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {key: region_record(key) for key in ("a", "c", "d", "e", "f")}
    assert main(["compact", str(store)]) == 0
    assert "3 units became 1" in capsys.readouterr().out
    assert main(["verify", str(store)]) == 0
    found = open_store(store)
    for key, record in before.items():
        np.testing.assert_array_equal(found[key].features, record.features)
    assert [row.key for row in found.errors()] == ["b"]


def test_diff_names_keys_and_distances(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = StoreWriter(tmp_path / "other", REGIONS)
    with writer.unit(["a", "d"]) as unit:
        unit.append(region_record("a"))
        changed = region_record("d", 3)
        unit.append(changed)
        unit.commit()
    capsys.readouterr()
    assert main(["diff", str(store), str(tmp_path / "other"), "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["only_in_first"] == ["c", "e", "f"] and not facts["same"]
    assert main(["diff", str(store), str(store)]) == 0
    assert "5 of 5 records identical" in capsys.readouterr().out


def test_verify_lists_the_images_that_a_data_set_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["val2014/COCO_val2014_000000000042", "000000000073", "74", "136"]
    store = make_store(tmp_path / "store", [keys], failed=["136"])
    annotations = tmp_path / "captions.json"
    annotations.write_text(json.dumps({"images": [{"id": each} for each in (42, 73, 74, 136, 5)]}))
    assert main(["verify", str(store), "--against", str(annotations)]) == 1
    told = capsys.readouterr().out
    assert "MISSING  5" in told and "FAILED  136" in told
    assert "3 of 5 images that the data set needs are there, 1 are missing, 1 failed" in told
    annotations.write_text(json.dumps({"images": [{"id": each} for each in (42, 73)]}))
    assert main(["verify", str(store), "--against", str(annotations), "--quick"]) == 0
    annotations.write_text("[]")
    assert main(["verify", str(store), "--against", str(annotations)]) == 2
    assert "names no images" in capsys.readouterr().err


NEEDED = {
    "coco_captions/captions_val2017_subset.json": (100, "143931"),
    "flickr8k_karpathy/dataset_flickr8k_subset.json": (100, "2638369467_8fc251595b"),
    "gqa/testdev_balanced_questions_subset.json": (40, "n578564"),
    "gqa/val_sceneGraphs_sample.json": (None, "2353884"),
    "nlvr2/dev_subset.json": (136, "dev-850-0-img0"),
    "refcoco/refcoco_val_subset.json": (None, "COCO_train2014_000000322517"),
    "snli_ve/snli_ve_sample_pairs.jsonl": (2, "2248275918"),
    "visual_genome/region_descriptions.json": (25, "1"),
    "vqav2/mscoco_train2014_subset_annotations.json": (193, "100667"),
}


@pytest.mark.parametrize("file", NEEDED)
def test_image_ids_are_found_in_real_annotations(shared: Path, file: str) -> None:
    count, first = NEEDED[file]
    ids = list(needed_ids(shared / "data" / "annotations" / file))
    assert ids[0] == first and (count is None or len(set(ids)) == count)


def test_coverage_counts_each_image_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [["42"]])
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps({"questions": [{"image_id": 42}, {"image_id": 42}, {"image_id": 43}]}))
    found = coverage(open_store(store), questions)
    assert (found.needed, found.missing, found.failed) == (2, ["43"], [])


def test_an_image_is_not_another_one_whose_name_ends_in_the_same_number(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [["dev-999-9-img1", "photo__img1", "CLEVR_train_000001"]])
    pairs = tmp_path / "dev.json"
    pairs.write_text("\n".join(json.dumps({"identifier": f"dev-{number}-0-0"}) for number in (1, 2, 999)))
    assert coverage(open_store(store), pairs).missing == [
        f"dev-{n}-0-img{side}" for n in (1, 2, 999) for side in (0, 1)
    ]
    scenes = tmp_path / "scenes.json"
    scenes.write_text(json.dumps({"scenes": [{"image_filename": "CLEVR_val_000001.png"}]}))
    assert coverage(open_store(store), scenes).missing == ["CLEVR_val_000001"]


@pytest.mark.parametrize("foreign", ["butd-tsv", "lxmert-tsv", "mcan-npz", "milvlg-npz", "ban-hdf5", "mmf-lmdb"])
def test_features_go_out_and_come_back(foreign: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = with_layout(REGIONS, dtype="float32", dim=2048)
    store = make_store(tmp_path / "store", [["1", "22", "333"], ["4"]], spec)
    out = tmp_path / {"ban-hdf5": "train.hdf5", "mmf-lmdb": "all.lmdb"}.get(foreign, f"out.{foreign[-3:]}")
    assert main(["export", str(store), "--to", foreign, "--out", str(out)]) == 0
    assert "records written" in capsys.readouterr().out
    assert main(["import", str(out), "--from", foreign, "--out", str(tmp_path / "back"), "--dtype", "float32"]) == 0
    found, wanted = open_store(tmp_path / "back"), open_store(store)
    assert len(found) == 4 - sum(not len(wanted[key].features) for key in wanted if key not in found)
    for key in wanted:
        np.testing.assert_array_equal(found[key].features, wanted[key].features)
        np.testing.assert_array_equal(found[key].boxes, wanted[key].boxes)
    again = main(["export", str(store), "--to", foreign, "--out", str(out)])
    assert again == 2 and "is there already" in capsys.readouterr().err


def test_importing_in_half_precision_says_what_it_costs_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = with_layout(REGIONS, dtype="float32", dim=2048)
    store = make_store(tmp_path / "store", [["1", "22"]], spec)
    out = tmp_path / "features.tsv"
    assert main(["export", str(store), "--to", "lxmert-tsv", "--out", str(out)]) == 0
    lines = out.read_bytes().splitlines(keepends=True)
    torn = tmp_path / "torn.tsv"
    torn.write_bytes(lines[0] + lines[1][: len(lines[1]) // 2])
    for _ in range(2):
        assert main(["import", str(torn), "--from", "lxmert-tsv", "--out", str(tmp_path / "in")]) == 0
    told = capsys.readouterr().out
    assert "BAD" in told and "1 bad rows" in told and "--dtype float32 keeps every bit" in told
    assert "0 records imported, 2 were there before" in told
    found = open_store(tmp_path / "in")
    assert len(found) == 1 and len(found.errors()) == 1
    gap = np.abs(found["1"].features.astype(np.float32) - open_store(store)["1"].features).max(initial=0)
    assert f"at most {gap:.3g} from the file's" in told


WRONG = {
    "unknown format": (["import", "{store}", "--from", "h5", "--out", "{tmp}/x"], "format 'h5' is not known"),
    "absent file": (["import", "{tmp}/no.tsv", "--from", "butd-tsv", "--out", "{tmp}/x"], "there is nothing at"),
    "unknown target": (["export", "{store}", "--to", "csv", "--out", "{tmp}/x"], "format 'csv' is not known"),
    "misspelt target": (["export", "{store}", "--to", "parket", "--out", "{tmp}/x"], "did you mean parquet?"),
    "regions as a grid": (["export", "{store}", "--to", "grid-feats-pth", "--out", "{tmp}/x"], "holds grid"),
    "archive of HDF5": (["convert", "{store}", "--to", "hdf5", "--archive", "--out", "{tmp}/x"], "--archive goes with"),
    "no store to convert": (["convert", "{tmp}", "--to", "hdf5", "--out", "{tmp}/x"], "there is no store at"),
    "no store to repair": (["repair", "{tmp}"], "there is no store at"),
    "no store to compact": (["compact", "{tmp}"], "there is no store at"),
    "no second store": (["diff", "{store}", "{tmp}"], "there is no store at"),
    "absent annotations": (["verify", "{store}", "--against", "{tmp}/no.json"], "cannot be read as annotations"),
    "shards of nothing": (["compact", "{store}", "--shard-mb", "0"], "--shard-mb 0 must be at least 1"),
    "no such protocol": (["info", "gopher://x/y"], "cannot be reached"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command_ends_with_one_line_and_changes_nothing(
    args: list[str], words: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(store)
    assert main([arg.format(store=store, tmp=tmp_path) for arg in args]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and words in told[0]
    assert contents(store) == before


def test_a_store_of_many_units_folds_its_manifest_when_the_job_ends(photos: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(18):
        shutil.copy(next((photos / "a").iterdir()), many / f"{number}.jpg")
    assert extract(many, tmp_path / "s", "--images-per-shard", "1") == 0
    assert list((tmp_path / "s" / "manifest").iterdir()) == []
    assert len(open_store(tmp_path / "s")) == 18
    assert main(["verify", str(tmp_path / "s")]) == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_features_are_extracted_in_the_dtype_asked_for(dtype: str, photos: Path, tmp_path: Path) -> None:
    flags = ["--model", "r50", *TINY, "--images", str(photos)]
    assert main(["extract", "grid", "--out", str(tmp_path / "exact"), *flags, "--store-dtype", "float32"]) == 0
    assert main(["extract", "grid", "--out", str(tmp_path / dtype), *flags, "--store-dtype", dtype]) == 0
    assert main(["verify", str(tmp_path / dtype)]) == 0
    exact, found = open_store(tmp_path / "exact"), open_store(tmp_path / dtype, "float32")
    assert found.spec.layout.dtype == dtype and set(found) == set(exact)
    for key in exact:
        wanted = exact[key].features
        if dtype == "uint8":
            rows = wanted.reshape(-1, wanted.shape[-1])
            wanted = decode(*encode(rows), "float32").reshape(wanted.shape)
        np.testing.assert_array_equal(
            found[key].features, cast(cast(wanted, dtype), "float32") if dtype == "bfloat16" else wanted
        )


def test_file_names_are_those_of_the_images_wherever_they_lie(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name in ("a/100%25#?x.png", "ü b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert file_names(str(folder)) == {"a/100%25#?x": "a/100%25#?x.png", "ü b": "ü b.jpg"}
    official = "COCO_val2014_000000000042.jpg"
    (tmp_path / official).touch()
    (tmp_path / "instances.json").write_text(json.dumps({"images": [{"id": 42, "file_name": official}]}))
    assert file_names(str(tmp_path / "instances.json")) == {"42": official}
    assert file_name("a/one", "/data/x.tar#a/one.jpeg@512+9") == "a/one.jpeg"
    assert file_name("x/y", "/data/table.parquet#7") == "x/y.jpg"


def test_a_store_is_exported_for_viewers_and_for_datasets(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, suffix in zip("abcdef", (".jpg", ".png", ".png", ".jpeg", ".jpg", ".JPG"), strict=True):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{key}{suffix}").write_bytes(b"whatever")
    coco = ["export", str(store), "--to", "coco-detections", "--out", str(tmp_path / "coco")]
    assert main([*coco, "--images", str(tmp_path / "images")]) == 0
    images = json.loads((tmp_path / "coco" / "instances.json").read_text())["images"]
    assert sorted(row["file_name"] for row in images) == ["a.jpg", "c.png", "d.jpeg", "e.jpg", "f.JPG"]
    assert main([*coco[:-1], str(tmp_path / "made-up")]) == 0
    assert "file names are the key and .jpg" in capsys.readouterr().out
    parquet = ["export", str(store), "--to", "parquet", "--out", str(tmp_path / "share")]
    assert main(parquet) == main(parquet) == 0
    assert "5 records written to" in capsys.readouterr().out
    assert main([*parquet, "--images", str(tmp_path / "images")]) == 2
    assert "--images goes with --to coco-detections; parquet has no file names" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ({"origin": "random:0"}, ", weights random:0\n"),
        ({"sha256": "ab" * 32}, f", weights {'ab' * 8}\n"),
        ("version 2", ", weights version 2\n"),
    ],
)
def test_what_an_extractor_of_ones_own_says_of_its_weights_is_told(
    weights: object, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(make_store(tmp_path / "s", [["a"]], replace(REGIONS, model={"name": "mine", "weights": weights})))
    assert main(["info", store]) == 0
    assert told in capsys.readouterr().out
    assert main(["card", store]) == 0
    assert ("RANDOM WEIGHTS" in capsys.readouterr().out) == ("random:0" in told)


@pytest.mark.parametrize("command", ["export {s} --to parquet", "export {s} --to webdataset", "card {s}", "report {s}"])
def test_what_is_no_store_is_written_to_this_machine_and_into_no_store(
    command: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = contents(store)
    given = command.format(s=store).split()
    assert main([*given, "--out", "s3://bucket/x"]) == 2
    assert "--out s3://bucket/x is an address; name a path on this machine" in capsys.readouterr().err
    assert main([*given, "--out", str(store)]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and contents(store) == before
    assert not (tmp_path / "s3:").exists()
