"""Looking records up: by key, in batches, in other processes, while others commit, and where shards are damaged."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from storage import FeatureStore, Spec, StoreError, StoreWriter, open_store
from storage.atomic import read_sealed, write_sealed
from storage.codecs import cast
from storage.records import pack
from tests.helpers import by_others
from tests.unit.storage.samples import (
    GRID,
    PATCHES,
    PIXELS,
    REGIONS,
    VIEWS,
    assert_same,
    contents,
    error_row,
    grid_record,
    make_store,
    record_of,
    region_record,
    with_layout,
    write_unit,
)
from tests.unit.storage.workers import checksums

KEYS = ["b", "a", "d", "c", "e"]


@pytest.fixture(params=["arrow", "hdf5", "arrow-zstd"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    """Two units: b, a, d (a failed) and c, e; in each format."""
    return open_store(make_store(tmp_path / "store", [["b", "a", "d"], ["c", "e"]], REGIONS, ["a"], request.param))


def test_records_are_found_by_key(store: FeatureStore) -> None:
    assert len(store) == 4
    assert set(store.keys()) == {"b", "c", "d", "e"}
    for key in store:
        assert key in store
        assert_same(store[key], region_record(key))
    assert "a" not in store and "x" not in store and 5 not in store


def test_going_through_a_store_gives_keys_and_records_shard_by_shard(store: FeatureStore) -> None:
    keys = list(store)
    assert keys == list(store.keys()) == [record.key for record in store.values()]
    assert keys.index("d") == keys.index("b") + 1 and keys.index("e") == keys.index("c") + 1
    for key, record in store.items():
        assert_same(record, region_record(key))
    assert store.get("a") is None


def test_stores_are_compared_by_identity_and_not_by_reading_them(store: FeatureStore) -> None:
    assert store == store and store != open_store(store.path)
    assert len({store, store}) == 1


def test_a_store_tells_its_spec_its_vocabulary_and_its_last_run(tmp_path: Path) -> None:
    spec = with_layout(REGIONS, class_probs=3)
    writer = StoreWriter(tmp_path / "store", spec, {"classes": ["cat", "dog"]})
    assert open_store(tmp_path / "store").run == {}
    writer.write_run({"planned": 12})
    store = open_store(str(tmp_path / "store"))
    assert store.spec.id == spec.id and store.spec.layout == spec.layout
    assert store.vocabulary == {"classes": ["cat", "dog"]}
    assert store.run == {"planned": 12}
    assert len(store) == 0 and store.entries == []


def test_the_key_of_a_failed_image_says_how_it_failed(store: FeatureStore) -> None:
    with pytest.raises(KeyError, match=r"'a' failed when it was extracted \(decode: truncated\): found half an image"):
        store["a"]
    assert store.errors() == [error_row("a")]


def test_an_unknown_key_names_the_nearest_one(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", [["train/000000039769", "other"]]))
    with pytest.raises(KeyError, match=r"is not among the 2 keys of .*; the nearest is 'train/000000039769'"):
        store["train/00000039769"]


def test_a_key_like_no_other_names_none(store: FeatureStore) -> None:
    with pytest.raises(KeyError, match="'zzzz' is not among the 4 keys") as caught:
        store["zzzz"]
    assert "nearest" not in str(caught.value)


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
@pytest.mark.parametrize("spec", VIEWS.values(), ids=VIEWS.keys())
def test_a_batch_has_the_keys_in_the_order_asked_for(tmp_path: Path, spec: Spec, format: str) -> None:
    store = open_store(make_store(tmp_path / "store", [KEYS[:3], KEYS[3:]], spec, format=format))
    asked = ["e", "b", "e", "a"]
    found, wanted = store.batch(asked), pack([record_of(key, spec) for key in asked])
    assert found.keys == wanted.keys
    for name in ("values", "offsets", "image_sizes", "boxes", "grid_shapes"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), err_msg=name)
    out = np.full((len(wanted.values) + 3, spec.layout.dim), 99, wanted.values.dtype)
    again = store.batch(store.positions(asked), out=out)
    assert np.shares_memory(again.values, out) and again.keys == asked
    np.testing.assert_array_equal(again.values, wanted.values)
    assert (out[len(wanted.values) :] == 99).all()


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
def test_a_batch_carries_the_fields_asked_for(tmp_path: Path, format: str) -> None:
    spec = with_layout(REGIONS, class_probs=3)
    store = open_store(make_store(tmp_path / "store", [KEYS[:3], KEYS[3:]], spec, format=format))
    fields = ["class_ids", "attribute_scores", "class_probs", "whole_image"]
    found = store.batch(["e", "b"], fields).others
    assert found is not None and list(found) == fields
    for name in fields:
        join = np.stack if name == "whole_image" else np.concatenate
        wanted = join([getattr(region_record(key, spec=spec), name) for key in ("e", "b")])
        np.testing.assert_array_equal(found[name], wanted)


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
def test_a_batch_of_patches_carries_the_class_tokens_asked_for(tmp_path: Path, format: str) -> None:
    store = open_store(make_store(tmp_path / "store", [KEYS[:3], KEYS[3:]], PATCHES, format=format))
    found = store.batch(["e", "b"], ["whole_image"]).others
    assert found is not None
    np.testing.assert_array_equal(found["whole_image"], [store[key].whole_image for key in ("e", "b")])


def test_pixels_are_read_as_they_are_and_have_no_boxes_to_cut(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [["a", "b"]], PIXELS)
    assert open_store(path)["a"].features is not None and open_store(path).batch(["a"]).values.dtype == np.uint8
    with pytest.raises(StoreError, match="pixels cannot be read as 'float16'; choose one of bytes"):
        open_store(path, "float16")
    with pytest.raises(StoreError, match="holds pixels, which have no boxes to cut"):
        open_store(path).pack(["a"], 3)


@pytest.mark.parametrize("format", ["arrow", "hdf5", "arrow-zstd"])
def test_columns_are_the_fields_of_the_records_end_to_end(tmp_path: Path, format: str) -> None:
    keys = [f"k{number}" for number in range(9)]
    store = open_store(make_store(tmp_path / "store", [keys[:4], keys[4:]], format=format))
    asked = [store.catalog.position(key) for key in ("k7", "k1", "k8")]
    offsets, found = store.columns(np.array(asked), ["class_ids", "attribute_scores"])
    records = [region_record(key) for key in ("k7", "k1", "k8")]
    assert offsets.tolist() == np.cumsum([0, *(len(record.boxes) for record in records)]).tolist()
    for name, values in found.items():
        assert np.array_equal(values, np.concatenate([getattr(record, name) for record in records]))
    with pytest.raises(StoreError, match="'colour' is not known"):
        store.columns(np.array(asked), ["colour"])


def test_fields_that_a_store_lacks_or_nobody_knows_are_refused(store: FeatureStore, tmp_path: Path) -> None:
    for name, words in {"class_probs": "does not have class_probs", "depth": "'depth' is not known"}.items():
        with pytest.raises(StoreError, match=words):
            store.batch(["b"], [name])
    grid = open_store(make_store(tmp_path / "grid", [["a"]], GRID))
    with pytest.raises(StoreError, match="does not have class_ids"):
        grid.batch(["a"], ["class_ids"])


def test_a_buffer_that_does_not_fit_is_refused(store: FeatureStore) -> None:
    for out in (np.empty((0, 8), np.float16), np.empty((99, 8), np.float32), np.empty((99, 7), np.float16)):
        with pytest.raises(ValueError, match="but the batch needs float16"):
            store.batch(["b", "c", "d"], out=out)


@pytest.mark.parametrize("max_boxes", [1, 3, 36, 100])
def test_packing_cuts_and_pads_in_the_records_own_order_and_invents_nothing(
    store: FeatureStore, max_boxes: int
) -> None:
    keys = ["e", "b", "c", "d"]
    found = store.pack(keys, max_boxes)
    assert found.keys == keys and found.values.shape == (4, max_boxes, 8) and found.boxes is not None
    for at, key in enumerate(keys):
        record = region_record(key)
        count = min(max_boxes, len(record.boxes))
        assert found.mask[at].tolist() == [True] * count + [False] * (max_boxes - count)
        np.testing.assert_array_equal(found.values[at, :count], record.features[:count])
        np.testing.assert_array_equal(found.boxes[at, :count], record.boxes[:count])
        assert not found.values[at, count:].any() and not found.boxes[at, count:].any()
        assert tuple(found.image_sizes[at]) == record.image_size


def test_packing_grids_keeps_their_shapes(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", [["a", "b"]], GRID))
    found = store.pack(["a", "b"], 5)
    for at, key in enumerate(["a", "b"]):
        record = grid_record(key)
        assert found.grid_shapes is not None and tuple(found.grid_shapes[at]) == record.features.shape[:2]
        cells = record.features.reshape(-1, 8)[:5]
        np.testing.assert_array_equal(found.values[at][found.mask[at]], cells)


@pytest.mark.parametrize("stored", ["float16", "float32", "bfloat16", "uint8"])
@pytest.mark.parametrize("asked", ["float16", "float32", "bfloat16"])
def test_features_come_out_in_the_dtype_asked_for(tmp_path: Path, stored: str, asked: str) -> None:
    path = make_store(tmp_path / "store", [["a", "b", "c"]], with_layout(REGIONS, dtype=stored))
    exact, store = open_store(path, "float32" if stored == "uint8" else None), open_store(path, asked)
    for key in store:
        wanted = cast(exact[key].features, asked)
        assert store[key].features.dtype.name == asked and store[key].whole_image.dtype.name == asked
        np.testing.assert_array_equal(store[key].features, wanted)
    batch = store.batch(["c", "a"], ["whole_image"])
    np.testing.assert_array_equal(batch.values, np.concatenate([store["c"].features, store["a"].features]))
    np.testing.assert_array_equal(batch.others["whole_image"][1], store["a"].whole_image)


def test_a_dtype_that_nobody_can_read_is_refused(store: FeatureStore) -> None:
    with pytest.raises(StoreError, match="cannot be read as 'uint8'; choose one of float16, float32, bfloat16"):
        open_store(store.path, "uint8")


def test_a_batch_with_an_unknown_key_is_refused(store: FeatureStore) -> None:
    with pytest.raises(KeyError, match="'x' is not among"):
        store.batch(["b", "x"])


def test_opening_reads_the_manifest_only(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [["a"]])
    shutil.rmtree(path / "shards")
    assert list(open_store(path).keys()) == ["a"]


def test_a_pickled_store_finds_the_same_records_and_carries_no_map(store: FeatureStore) -> None:
    unread = len(pickle.dumps(store))
    assert len(list(store.values())) == 4  # all shards are mapped now
    sent = pickle.dumps(store)
    assert len(sent) == unread
    back = pickle.loads(sent)
    for key in store:
        assert_same(back[key], store[key])
    assert back.errors() == store.errors()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_other_processes_read_the_same_bytes(store: FeatureStore, start: str) -> None:
    mine = checksums(store)  # shards are mapped now, before the fork
    assert by_others(multiprocessing.get_context(start), checksums, [store, store]) == [mine, mine]


def test_refreshing_shows_what_others_committed(store: FeatureStore) -> None:
    writer = StoreWriter(store.path, REGIONS)
    write_unit(writer, ["new", "broken"], failed=["broken"])
    assert "new" not in store
    store.refresh()
    assert_same(store["new"], region_record("new"))
    assert {row.key for row in store.errors()} == {"a", "broken"}
    assert_same(store["b"], region_record("b"))


def test_records_outlive_their_store(tmp_path: Path) -> None:
    record = open_store(make_store(tmp_path / "store", [["a"]]))["a"]
    assert_same(record, region_record("a"))


def test_a_missing_shard_is_refused_and_other_shards_are_read(store: FeatureStore) -> None:
    [entry] = [entry for entry in store.entries if "c" in entry.keys]
    (store.path / entry.shard.file).unlink()
    with pytest.raises(StoreError, match=r"\.(arrow|h5) is missing; `triptych verify`"):
        store["c"]
    assert_same(store["b"], region_record("b"))


@pytest.mark.parametrize("cut", [1, 100, -1], ids=["one byte", "a hundred bytes", "one byte more"])
def test_a_shard_of_another_length_is_refused_before_it_is_mapped(store: FeatureStore, cut: int) -> None:
    path = store.path / store.entries[0].shard.file
    data = path.read_bytes()
    path.write_bytes(data[:-cut] if cut > 0 else data + b"x")
    key = store.entries[0].keys[0]
    with pytest.raises(StoreError, match=rf"has {len(data) - cut:,} bytes, {len(data):,} were committed"):
        store[key]


def test_a_shard_of_another_unit_in_its_place_is_refused(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", [["a"], ["b", "c"]], GRID))
    first, second = (entry.shard.file for entry in store.entries)
    shutil.copy(store.path / first, store.path / second)
    with pytest.raises(StoreError, match="bytes"):
        store[store.entries[1].keys[0]]


def test_a_folder_without_a_store_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(StoreError, match=r"there is no store at .* \(no store\.json\); give the folder"):
            open_store(path)


def test_a_store_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [["a"]])
    write_sealed(path / "store.json", read_sealed(path / "store.json") | {"format_version": 3})
    with pytest.raises(
        StoreError, match="has format version 3, this Triptych reads versions 1 and 2; install the release"
    ):
        open_store(path)


def test_reading_changes_no_file(store: FeatureStore) -> None:
    before = contents(store.path)
    for record in store.values():
        record.features[:] = 0
    store.batch(["b", "c"])
    store.refresh()
    assert contents(store.path) == before


def test_grid_records_are_found_too(tmp_path: Path) -> None:
    store = open_store(make_store(tmp_path / "store", [["a", "b"]], GRID))
    assert_same(store["b"], grid_record("b"))
