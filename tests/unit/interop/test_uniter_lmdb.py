"""uniter-lmdb: names that say how boxes were chosen, msgpack that msgpack-numpy made, .npz bytes, lists of keys."""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import msgpack_numpy
import numpy as np
import pytest

from storage import FeatureLayout, RegionRecord, StoreError
from storage.interop import lmdbs
from storage.interop.base import Import, ImportOptions
from storage.interop.uniter_lmdb import UNITER_LMDB
from tests.unit.interop.samples_npz import (
    assert_same_arrays,
    boxes,
    numbers,
    region_record,
    rows_of,
    store_from,
    store_of,
    tear,
    without,
)
from tests.unit.storage.samples import assert_same

DIM, CLASSES = 8, 5
LAYOUT = FeatureLayout(DIM, "float16", CLASSES, "float16", without("class_scores"), "fractions")
TH = "feat_th0.2_max100_min10"
Arrays = dict[str, np.ndarray]


def dump(count: int, seed: int = 0) -> Arrays:
    """The arrays of an image, in the order of generate_npz.py, float16."""
    rng = np.random.default_rng(seed)
    found = boxes(count, seed) / np.float32([640, 480, 640, 480])
    labels = rng.dirichlet(np.ones(CLASSES), count).astype(np.float16)
    arrays = {
        "norm_bb": np.concatenate([found, found[:, 2:] - found[:, :2]], axis=1),
        "features": numbers(count, DIM, seed=seed),
        "conf": np.sort(rng.random((count, 1), np.float32), axis=0)[::-1],
        "soft_labels": labels,
    }
    return {name: np.ascontiguousarray(array, np.float16) for name, array in arrays.items()}


def pack(arrays: Arrays) -> bytes:
    """convert_imgdir.py: msgpack.dumps(dump, use_bin_type=True), with msgpack_numpy in its place."""
    packed: bytes = msgpack.dumps(arrays, default=msgpack_numpy.encode, use_bin_type=True)
    return packed


def npz(arrays: Arrays) -> bytes:
    """np.savez_compressed(writer, **dump, allow_pickle=True) of old numpy, which took that for an array as well."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in {**arrays, "allow_pickle": np.array(True)}.items():
            member = io.BytesIO()
            np.save(member, array)
            archive.writestr(f"{name}.npy", member.getvalue())
    return target.getvalue()


def upstream(folder: Path, entries: dict[str, bytes], keys: list[str] | None = None) -> None:
    """What convert_imgdir.py does with an environment."""
    folder.mkdir(parents=True)
    env = lmdb.open(str(folder), map_size=1 << 24)
    txn = env.begin(write=True)
    for name, value in entries.items():
        txn.put(key=name.encode("utf-8"), value=value)
    txn.put(key=b"__keys__", value=json.dumps(list(entries) if keys is None else keys).encode("utf-8"))
    txn.commit()
    env.close()


def content(folder: Path) -> dict[str, Any]:
    """All entries: arrays as msgpack-numpy and numpy read them, and the list of keys."""
    found: dict[str, Any] = {}
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        for key, value in txn.cursor():
            if key == b"__keys__":
                found["__keys__"] = json.loads(value)
            elif value.startswith(b"PK"):
                found[key.decode()] = dict(np.load(io.BytesIO(value)))
            else:
                found[key.decode()] = msgpack.loads(value, object_hook=msgpack_numpy.decode, raw=False)
    return found


def read(path: Path, sizes: dict[str, tuple[int, int]] | None = None) -> Import:
    return UNITER_LMDB.read(path, ImportOptions(sizes or {}))


MAKERS = {TH: pack, f"{TH}_compressed": npz}


@pytest.fixture(params=MAKERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_reads_an_lmdb_as_upstream_writes_it(tmp_path, name):
    dumps = {f"coco_train2014_{n:012d}.npz": dump(n, n) for n in (100, 10, 36)}
    upstream(tmp_path / name, {key: MAKERS[name](each) for key, each in dumps.items()})
    found = read(tmp_path / name)
    records, bad = rows_of(found)
    assert (found.view, found.layout, bad) == ("regions", LAYOUT, [])
    assert list(records) == [key.removesuffix(".npz") for key in dumps]  # in the order of __keys__, not LMDB's
    for key, arrays in dumps.items():
        labels = arrays["soft_labels"]
        wanted = RegionRecord(
            key.removesuffix(".npz"),
            (0, 0),
            arrays["norm_bb"][:, :4].astype(np.float32),
            arrays["features"],
            class_scores=arrays["conf"][:, 0].astype(np.float32),
            class_probs=np.concatenate([labels[:, 1:], labels[:, :1]], axis=1),
        )
        assert_same(records[wanted.key], wanted)


def test_arrays_that_an_old_msgpack_numpy_packed(tmp_path):
    old = {
        key: {"nd": True, "type": array.dtype.str, "shape": array.shape, "data": array.tobytes()}
        for key, array in dump(12).items()
    }
    upstream(tmp_path / TH, {"a.npz": msgpack.packb(old, use_bin_type=True), "b.npz": pack(dump(12))})
    records, bad = rows_of(read(tmp_path / TH))
    assert not bad
    assert_same(replace(records["a"], key="b"), records["b"])


def test_given_sizes_turn_fractions_into_pixels(tmp_path):
    upstream(tmp_path / TH, {"a.npz": pack(dump(12)), "b.npz": pack(dump(12))})
    found = read(tmp_path / TH, {"a": (480, 640)})
    records, bad = rows_of(found)
    assert found.layout.box_units == "pixels" and records["a"].image_size == (480, 640)
    assert np.abs(records["a"].boxes - boxes(12, 0)).max() < 0.5
    assert [each.message for each in bad] == ["no size was given for 'b'; give the sizes of all images, or of none."]


def test_entries_come_back_equal(tmp_path, name):
    """norm_bb goes through a first export: upstream rounds its sides from sharper corners than float16 keeps."""
    upstream(tmp_path / "in" / name, {f"vg_{n}.npz": MAKERS[name](dump(n, n)) for n in (12, 1, 100)})
    for before, after in [("in", "once"), ("once", "twice")]:
        UNITER_LMDB.write(store_from(tmp_path / f"s-{after}", read(tmp_path / before / name)), tmp_path / after / name)
    first, once, twice = (content(tmp_path / each / name) for each in ("in", "once", "twice"))
    assert first["__keys__"] == once["__keys__"] == twice["__keys__"] == ["vg_12.npz", "vg_1.npz", "vg_100.npz"]
    for key in first["__keys__"]:
        wanted = {each: array for each, array in first[key].items() if each != "allow_pickle"}
        sharp = {"norm_bb": np.hstack([once[key]["norm_bb"][:, :4], wanted["norm_bb"][:, 4:]])}
        assert_same_arrays({**once[key], **sharp}, wanted)
        assert_same_arrays(twice[key], once[key])


def test_entries_are_the_bytes_that_msgpack_numpy_makes(tmp_path):
    record = half(region_record("a", 12, LAYOUT))
    UNITER_LMDB.write(store_of(tmp_path / "store", [record], LAYOUT), tmp_path / "all")
    with lmdb.open(str(tmp_path / "all"), readonly=True, lock=False) as env, env.begin() as txn:
        value = txn.get(b"a.npz")
    assert value == pack(content(tmp_path / "all")["a.npz"])


def half(record: RegionRecord) -> RegionRecord:
    """The record with boxes and scores that float16 holds, boxes as fractions of an unknown size."""
    assert record.class_scores is not None
    fractions = (record.boxes / np.float32([640, 480, 640, 480])).astype(np.float16).astype(np.float32)
    scores = record.class_scores.astype(np.float16).astype(np.float32)
    return replace(record, image_size=(0, 0), boxes=fractions, class_scores=scores)


@pytest.mark.parametrize("folder", [TH, f"{TH}_compressed", "feat_numbb36", "all_compressed", "feat_th.5_max36_min36"])
def test_a_store_comes_back_to_the_last_bit(tmp_path, folder):
    records = [half(region_record(key, count, LAYOUT)) for key, count in [("vcr/b", 3), ("a", 0), ("c", 120)]]
    report = UNITER_LMDB.write(store_of(tmp_path / "store", records, LAYOUT), tmp_path / folder)
    found = read(tmp_path / folder)
    again, bad = rows_of(found)
    assert (report.records, bad, found.layout, list(again)) == (3, [], LAYOUT, ["vcr/b", "a", "c"])
    for record in records:
        assert_same(again[record.key], record)
    assert any("fractions" in note for note in report.notes)


def test_the_nbb_file_has_upstreams_numbers(tmp_path):
    """convert_imgdir.py's _compute_nbb: at least min, at most max, else as many as pass the threshold."""
    scores = {"few": [0.9, 0.3, 0.1], "some": [0.9] * 20 + [0.2] * 20, "many": [0.5] * 120}
    records = []
    for key, each in scores.items():
        record = half(region_record(key, len(each), LAYOUT))
        records.append(replace(record, class_scores=np.array(each, np.float16).astype(np.float32)))
    report = UNITER_LMDB.write(store_of(tmp_path / "store", records, LAYOUT), tmp_path / TH)
    found = json.loads((tmp_path / "nbb_th0.2_max100_min10.json").read_text())
    wanted = {}
    for key, each in content(tmp_path / TH).items():
        if key != "__keys__":
            wanted[key] = int(min(100, max(10, (each["conf"] > 0.2).sum())))
    assert found == wanted == {"few.npz": 10, "some.npz": 20, "many.npz": 100}
    assert (report.files, len(content(tmp_path / TH)["many.npz"]["conf"])) == (2, 120)
    assert sorted(each.name for each in tmp_path.iterdir()) == [TH, "nbb_th0.2_max100_min10.json", "store"]


def test_both_kinds_of_entries_may_lie_beside_one_nbb_file_but_not_another_export(tmp_path):
    store = store_of(tmp_path / "store", [half(region_record("a", 12, LAYOUT))], LAYOUT)
    UNITER_LMDB.write(store, tmp_path / TH)
    UNITER_LMDB.write(store, tmp_path / f"{TH}_compressed")
    other = store_of(tmp_path / "other", [half(region_record("b", 12, LAYOUT))], LAYOUT)
    (tmp_path / TH).rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="nbb_th0.2_max100_min10.json is there already and belongs to other features"):
        UNITER_LMDB.write(other, tmp_path / TH)
    assert not (tmp_path / TH).exists() and not list(tmp_path.glob(".*"))


def test_an_lmdb_grows_and_is_written_in_several_transactions(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdbs, "ROOM", 1 << 16)
    monkeypatch.setattr(lmdbs, "BATCH", 7)
    records = [half(region_record(f"{n:03d}", 40, LAYOUT)) for n in range(100)]
    UNITER_LMDB.write(store_of(tmp_path / "store", records, LAYOUT), tmp_path / "all")
    assert (tmp_path / "all/data.mdb").stat().st_size > 1 << 17
    again, bad = rows_of(read(tmp_path / "all"))
    assert (len(again), bad) == (100, [])
    assert_same(again["099"], records[99])


# Torn and hostile rows


def test_torn_entries_are_listed_and_the_others_read(tmp_path, name):
    good = MAKERS[name](dump(12))
    entries = {
        "a.npz": good,
        "torn.npz": good[: len(good) // 2],
        "junk.npz": b"\xc1junk",
        "empty.npz": b"",
        "z.npz": good,
    }
    upstream(tmp_path / name, entries, keys=[*entries, "absent.npz", "noending", "z.npz"])
    records, bad = rows_of(read(tmp_path / name))
    assert list(records) == ["a", "z"]
    assert [each.key for each in bad] == ["torn", "junk", "empty", "absent", "noending"]
    assert bad[0].where == f"{tmp_path / name}: torn.npz" and all("\n" not in each.message for each in bad)
    assert "has no entry" in bad[3].message and "does not end in .npz" in bad[4].message


def test_entries_of_another_width_are_listed(tmp_path):
    other = {**dump(12), "features": numbers(12, DIM + 1).astype(np.float16)}
    lacking = {key: array for key, array in dump(12).items() if key != "soft_labels"}
    upstream(tmp_path / TH, {"a.npz": pack(dump(12)), "b.npz": pack(other), "c.npz": pack(lacking)})
    records, bad = rows_of(read(tmp_path / TH))
    assert list(records) == ["a"]
    assert [each.message for each in bad] == [
        "it differs from the first entry (dim: 9, not 8).",
        "it differs from the first entry (class_probs: 0, not 5).",
    ]


def test_objects_are_not_unpickled(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    hostile = {**dump(1), "features": np.array([[Attack()]], dtype=object)}
    records = {**dump(1), "features": np.zeros((1, 1), [("a", "f4")])}
    packed = pack({**dump(1), "features": {b"nd": True, b"type": "O", b"shape": [1], b"data": b"x" * 8}})  # type: ignore[dict-item]
    archive = io.BytesIO()
    np.savez(archive, **hostile)  # type: ignore[arg-type]
    entries = {"a.npz": pack(hostile), "b.npz": packed, "c.npz": pack(records), "d.npz": archive.getvalue()}
    upstream(tmp_path / TH, {**entries, "z.npz": pack(dump(1))})
    found, bad = rows_of(read(tmp_path / TH))
    assert (list(found), [each.key for each in bad]) == (["z"], ["a", "b", "c", "d"])
    assert "nothing is unpickled" in bad[0].message and not (tmp_path / "ran").exists()


# Refused


def test_other_folders_are_refused_in_one_line(tmp_path):
    upstream(tmp_path / "split" / TH, {"a.npz": pack(dump(1))})
    with pytest.raises(StoreError, match=f"it holds {TH}: give one of them"):
        read(tmp_path / "split")
    with pytest.raises(StoreError, match="data.mdb is not there; uniter-lmdb is a folder with data.mdb"):
        read(tmp_path)
    with pytest.raises(StoreError, match="is not there"):
        read(tmp_path / "absent")
    (tmp_path / "text").write_text("hello" * 1000)
    with pytest.raises(StoreError, match="cannot be read as an LMDB"):
        read(tmp_path / "text")
    upstream(tmp_path / "bad", {"a.npz": b"x"})
    with pytest.raises(StoreError, match="cannot be read in this format .*a.npz: it is torn or no msgpack"):
        read(tmp_path / "bad")
    upstream(tmp_path / "none", {})
    with pytest.raises(StoreError, match="cannot be read in this format .it has no entry"):
        read(tmp_path / "none")


@pytest.mark.parametrize("keys", [b"[1]", b"{", b'{"a": 1}', None])
def test_an_lmdb_without_a_list_of_keys_is_refused(tmp_path, keys):
    upstream(tmp_path / TH, {"a.npz": pack(dump(1))})
    with lmdb.open(str(tmp_path / TH)) as env, env.begin(write=True) as txn:
        if keys:
            txn.put(b"__keys__", keys)
        else:
            txn.delete(b"__keys__")
    with pytest.raises(StoreError, match="has no entry __keys__ with a JSON list"):
        read(tmp_path / TH)


def test_an_lmdb_cut_short_is_refused_and_does_not_end_the_process(tmp_path):
    upstream(tmp_path / TH, {f"{n}.npz": pack(dump(100)) for n in range(50)})
    tear(tmp_path / TH / "data.mdb", 0.7)
    with pytest.raises(StoreError, match="is cut short: it has"):
        read(tmp_path / TH)


@pytest.mark.parametrize("folder", ["out.lmdb", "feat_th_max100_min10", "feat_numbb", "all_", "nbb"])
def test_names_that_uniter_does_not_open_are_refused(tmp_path, folder):
    store = store_of(tmp_path / "store", [half(region_record("a", 1, LAYOUT))], LAYOUT)
    with pytest.raises(StoreError, match="UNITER opens folders named as feat_th0.2_max100_min10"):
        UNITER_LMDB.write(store, tmp_path / folder)


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    bare = FeatureLayout(DIM, "float16", without=without(), box_units="fractions")
    with pytest.raises(StoreError, match="class_scores"):
        UNITER_LMDB.write(store_of(tmp_path / "s1", [region_record("a", 1, bare)], bare), tmp_path / TH)
    for number, key in enumerate(["../a", "a//b", "x" * 508]):
        store = store_of(tmp_path / f"k{number}", [half(region_record(key, 1, LAYOUT))], LAYOUT)
        with pytest.raises(StoreError, match="give the image another key|an LMDB takes 511"):
            UNITER_LMDB.write(store, tmp_path / TH)
    (tmp_path / TH).mkdir()
    (tmp_path / TH / "something").touch()
    with pytest.raises(StoreError, match="exists and is not an empty folder"):
        UNITER_LMDB.write(store_of(tmp_path / "s2", [half(region_record("a", 1, LAYOUT))], LAYOUT), tmp_path / TH)
    assert sorted(each.name for each in tmp_path.iterdir()) == [TH, "k0", "k1", "k2", "s1", "s2"]
