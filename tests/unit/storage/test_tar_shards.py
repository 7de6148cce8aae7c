"""Tar shards: webdataset alone reads every array and every key again, and no half-written tar is ever seen."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from storage import FeatureStore, Record, Spec, StoreError, open_store
from storage.atomic import partial_path
from storage.tar_shards import store_key, tar_key
from tests.unit.storage.samples import (
    GRID,
    PATCHES,
    PIXELS,
    REGIONS,
    make_store,
    partials,
    record_of,
    with_layout,
)

KEYS = [
    "plain",
    "a/b",
    "photo.v2.final",
    "v1.2/photo.jpg",
    ".hidden",
    "..",
    "../../etc/passwd",
    "/absolute",
    "//",
    "",
    "a//b",
    "folder/",
    "a b",
    "100%",
    "%2E",
    "a/%2F/b",
    "a/%00/b",
    "a/\0/b",
    "line\nbreak/x",
    "__meta__/photo",
    "__key__",
    "_",
    "UPPER.JSON",
    "zürich/ß",
    "東京/" + "写真" * 40,
    "long/" * 60 + "x" * 120,
]
WITH_ALL = with_layout(REGIONS, class_probs=5)


def written(
    tmp_path: Path, keys: list[str], spec: Spec = REGIONS, size: int = 1 << 20
) -> tuple[FeatureStore, list[Path]]:
    store = open_store(make_store(tmp_path / "store", [keys], spec))
    return store, store.to_webdataset(tmp_path / "out", size)


def samples(paths: list[Path]) -> list[dict[str, Any]]:
    """What webdataset makes of these tars, in their order."""
    data = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False)
    return list(data.decode())


def assert_holds(sample: dict[str, Any], record: Record) -> None:
    """Every field of the record is in the sample: the same shape, dtype and bytes, bfloat16 as float32."""
    assert sample["json"]["key"] == record.key and sample["json"]["image_size"] == list(record.image_size)
    arrays = {name.removesuffix(".npy") for name in sample if name.endswith(".npy")}
    there = {each.name: getattr(record, each.name) for each in fields(record)}
    assert arrays == {name for name, value in there.items() if isinstance(value, np.ndarray)}
    for name in arrays:
        found, wanted = sample[f"{name}.npy"], there[name]
        wanted = wanted.astype(np.float32) if wanted.dtype.name == "bfloat16" else wanted
        assert (found.shape, found.dtype, found.tobytes()) == (wanted.shape, wanted.dtype, wanted.tobytes()), name


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16", "uint8"])
@pytest.mark.parametrize(
    "spec", [REGIONS, WITH_ALL, GRID, PATCHES], ids=["regions", "with class_probs", "grid", "patches"]
)
def test_every_array_comes_back_through_webdataset(tmp_path: Path, spec: Spec, dtype: str) -> None:
    keys = [f"k{number}" for number in range(7)]
    store, paths = written(tmp_path, keys, with_layout(spec, dtype=dtype))
    found = samples(paths)
    assert [sample["__key__"] for sample in found] == list(store) == keys
    for sample in found:
        assert_holds(sample, store[sample["__key__"]])
        assert sample["features.npy"].dtype == {"bfloat16": np.float32, "uint8": np.float16}.get(dtype, dtype)


def test_pixels_come_back_through_webdataset(tmp_path: Path) -> None:
    store, paths = written(tmp_path, ["a", "b"], PIXELS)
    for sample in samples(paths):
        assert_holds(sample, store[sample["__key__"]])
        assert sample["pixels.npy"].dtype == np.uint8 and "features.npy" not in sample


def test_fields_that_a_store_lacks_are_not_in_the_tar(tmp_path: Path) -> None:
    store, paths = written(tmp_path, ["a"], with_layout(REGIONS, without=("whole_image", "attribute_ids")))
    [sample] = samples(paths)
    assert_holds(sample, store["a"])
    assert not {"whole_image.npy", "attribute_ids.npy"} & sample.keys()


def test_an_image_without_boxes_is_a_sample_like_others(tmp_path: Path) -> None:
    empty = next(key for key in map(str, range(100)) if len(record_of(key, REGIONS).features) == 0)
    store, paths = written(tmp_path, ["a", empty, "b"])
    found = samples(paths)
    assert [len(sample["features.npy"]) for sample in found] == [len(store[key].features) for key in store]
    assert found[1]["features.npy"].shape == (0, 8) and found[1]["boxes.npy"].shape == (0, 4)


def test_every_key_comes_back(tmp_path: Path) -> None:
    store, paths = written(tmp_path, KEYS)
    found = samples(paths)
    assert [store_key(sample["__key__"]) for sample in found] == KEYS
    for sample in found:
        assert_holds(sample, store[sample["json"]["key"]])


@pytest.mark.parametrize("key", KEYS)
def test_names_lead_nowhere_else_and_keep_their_folders(key: str) -> None:
    name = tar_key(key)
    parts = name.split("/")
    assert name.isascii() and name.isprintable() and "." not in name
    assert not PurePosixPath(name).is_absolute() and all(parts) and len(parts) == key.count("/") + 1


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_names_tell_keys_apart(one: str, other: str) -> None:
    assert store_key(tar_key(one)) == one
    assert (tar_key(one) == tar_key(other)) == (one == other)


def test_usual_keys_are_their_own_names() -> None:
    for key in ("000000039769", "train2014/COCO_train2014_000000000009", "a b-c~d_e", "x__y__/z"):
        assert tar_key(key) == key


def test_plain_tar_unpacks_what_was_written(tmp_path: Path) -> None:
    store, [path] = written(tmp_path, KEYS[:6])
    subprocess.run(["tar", "-xf", path, "-C", tmp_path / "out"], check=True)
    for key in store:
        name = tmp_path / "out" / tar_key(key)
        assert json.loads(name.with_name(f"{name.name}.json").read_text())["key"] == key
        np.testing.assert_array_equal(np.load(name.with_name(f"{name.name}.features.npy")), store[key].features)


def test_records_are_split_over_shards_in_order(tmp_path: Path) -> None:
    keys = [f"k{number:02}" for number in range(20)]
    _, paths = written(tmp_path, keys, size=4000)
    assert [path.name for path in paths] == [f"{number:06}.tar" for number in range(len(paths))]
    assert len(paths) > 2
    each = [[sample["__key__"] for sample in samples([path])] for path in paths]
    assert all(each) and [key for part in each for key in part] == keys
    for path in paths[:-1]:
        with tarfile.open(path) as tar:
            sizes = [member.size for member in tar]
        assert 4000 <= sum(sizes) < 4000 + sum(sizes[-9:])  # the record that filled it was the last


def test_a_record_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    _, paths = written(tmp_path, ["a", "b", "c"], size=1)
    assert [[sample["__key__"] for sample in samples([path])] for path in paths] == [["a"], ["b"], ["c"]]


def test_the_same_store_gives_the_same_bytes(tmp_path: Path) -> None:
    store, paths = written(tmp_path, ["a", "b"], size=1)
    again = store.to_webdataset(tmp_path / "again", 1)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_a_store_without_records_gives_no_tar(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", [["a"]], failed=["a"]))
    assert store.to_webdataset(tmp_path / "out") == []


def test_a_size_that_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        written(tmp_path, ["a"], size=0)


def test_tars_of_another_time_are_not_mixed_with_new_ones(tmp_path: Path) -> None:
    store, paths = written(tmp_path, ["a", "b"], size=1)
    with pytest.raises(StoreError, match="has tar files already; remove them"):
        store.to_webdataset(tmp_path / "out")
    assert len(samples(paths)) == 2


def test_a_damaged_shard_leaves_no_tar(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", [["a", "b"], ["c"]]))
    last = store.path / store.entries[-1].shard.file  # type: ignore[union-attr]
    last.write_bytes(last.read_bytes()[:-1])
    with pytest.raises(StoreError, match="verify"):
        open_store(store.path).to_webdataset(tmp_path / "out", 1)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_no_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = open_store(make_store(tmp_path / "store", [["a"]]))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="cannot write .*000000.tar: No space left on device"):
        store.to_webdataset(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tar_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen at each sync of a file: no .tar beyond those that were finished before."""
    store = open_store(make_store(tmp_path / "store", [["a", "b"]]))
    out, seen = tmp_path / "out", []
    real = os.fsync

    def note(handle: int) -> None:
        seen.append((len(list(out.glob("*.tar"))), len(partials(out))))
        real(handle)

    monkeypatch.setattr(os, "fsync", note)
    store.to_webdataset(out, 1)
    assert seen == [(0, 1), (1, 0), (1, 1), (2, 0)]  # file, folder, file, folder


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", [["a"]]))
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = partial_path(tmp_path / "out" / "000000.tar")
    left = left.with_name(left.name.replace(f"~{os.getpid()}~", f"~{dead.pid}~"))
    left.parent.mkdir()
    left.write_bytes(b"half")
    store.to_webdataset(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["000000.tar"]
