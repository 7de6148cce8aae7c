"""What every shard format must do: whoever joins FORMATS inherits these tests."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from storage import GridRecord, Record, RegionRecord, Spec, StoreError
from storage.arrow import ARCHIVE_IMAGES_PER_BATCH, IMAGES_PER_BATCH
from storage.codecs import decode, encode
from storage.formats import FORMATS, open_shard_file
from storage.shard import Shard
from tests.unit.storage.samples import (
    GRID,
    PATCHES,
    PIXELS,
    REGIONS,
    VIEWS,
    assert_same,
    grid_record,
    patch_record,
    pixel_record,
    record_of,
    region_record,
    with_layout,
)


@dataclass(frozen=True)
class Kind:
    """A format under test: its name, and how many images it keeps together at most."""

    name: str
    images_per_batch: dict[str, int]
    mapped: bool = True

    @property
    def suffix(self) -> str:
        return FORMATS[self.name].suffix

    def writer(self, path: Path, spec: Spec) -> Any:
        return FORMATS[self.name].writer(path, spec)

    def reader(self, path: Path, spec: Spec) -> Shard:
        return open_shard_file(path, spec, self.name)


KINDS = {
    "arrow": Kind("arrow", IMAGES_PER_BATCH),
    "hdf5": Kind("hdf5", dict.fromkeys(IMAGES_PER_BATCH, 20)),
    "arrow-zstd": Kind("arrow-zstd", dict.fromkeys(IMAGES_PER_BATCH, ARCHIVE_IMAGES_PER_BATCH), mapped=False),
}
LAYOUTS = [(dtype, probs) for dtype in ("float16", "float32") for probs in (0, 5)]


@pytest.fixture(params=KINDS.values(), ids=KINDS.keys())
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> Shards:
    return Shards(request.param, tmp_path)


class Shards:
    """Writes records into a shard of one format and opens it again."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self.path = folder / f"shard{kind.suffix}"

    def write(self, records: Sequence[Record], spec: Spec) -> tuple[int, str]:
        writer = self.kind.writer(self.path, spec)
        for record in records:
            writer.append(record)
        return writer.close()

    def written(self, records: Sequence[Record], spec: Spec) -> Any:
        self.write(records, spec)
        return self.kind.reader(self.path, spec)


def assert_round_trip(shard: Any, records: Sequence[Record]) -> None:
    assert len(shard) == len(records)
    for row, record in enumerate(records):
        assert_same(shard[row], record)


def lies_in_a_map(array: np.ndarray) -> bool:
    """True where an array's memory is a mapped file's."""
    owner: object = array
    while not isinstance(owner, mmap.mmap) and owner is not None:
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return isinstance(owner, mmap.mmap)


@pytest.mark.parametrize(("dtype", "class_probs"), LAYOUTS)
def test_region_records_come_back_bit_for_bit(shards: Shards, dtype: str, class_probs: int) -> None:
    spec = with_layout(REGIONS, dtype=dtype, class_probs=class_probs)
    records = [region_record(f"image{boxes}", boxes, spec) for boxes in (0, 1, 100, 0)]
    assert_round_trip(shards.written(records, spec), records)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_grid_records_of_different_shapes_come_back_bit_for_bit(shards: Shards, dtype: str) -> None:
    spec = with_layout(GRID, dtype=dtype)
    shapes = [(1, 1), (19, 25), (25, 19), (1, 40), (0, 3)]
    records = [grid_record(f"image{shape}", shape, spec) for shape in shapes]
    assert_round_trip(shards.written(records, spec), records)


@pytest.mark.parametrize("without", [(), ("whole_image",)], ids=["class token", "none"])
def test_patch_records_come_back_bit_for_bit(shards: Shards, without: tuple[str, ...]) -> None:
    spec = with_layout(PATCHES, without=without)
    records = [patch_record(f"image{shape}", shape, spec) for shape in [(7, 7), (1, 1), (24, 24)]]
    assert_round_trip(shards.written(records, spec), records)


def test_pixels_of_every_size_come_back_without_padding(shards: Shards) -> None:
    shapes = [(1, 1), (384, 512), (1, 640), (640, 1), (48, 36)]
    records = [pixel_record(f"image{shape}", shape) for shape in shapes]
    assert_round_trip(shards.written(records, PIXELS), records)
    assert shards.path.stat().st_size < sum(3 * down * across for down, across in shapes) + 32768


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_values_that_compare_unequal_or_equal_by_accident_keep_their_bits(shards: Shards, dtype: type) -> None:
    spec = with_layout(GRID, dim=6, dtype=np.dtype(dtype).name)
    limits = np.finfo(dtype)
    odd = np.array([np.nan, -0.0, np.inf, -np.inf, limits.max, limits.smallest_subnormal], dtype)
    bits = odd.view(np.uint16 if dtype is np.float16 else np.uint32)
    bits[0] |= 1  # a NaN with a payload of its own
    records = [GridRecord("odd", (1, 1), odd.reshape(1, 1, 6))]
    assert_round_trip(shards.written(records, spec), records)


def test_a_shard_in_which_no_image_has_a_box_is_read(shards: Shards) -> None:
    records = [region_record(key, 0) for key in ("a", "b")]
    assert_round_trip(shards.written(records, REGIONS), records)


def test_a_shard_without_records_is_empty(shards: Shards) -> None:
    assert len(shards.written([], REGIONS)) == 0


@pytest.mark.parametrize("spec", VIEWS.values(), ids=VIEWS.keys())
def test_order_is_kept_across_batches(shards: Shards, spec: Spec) -> None:
    count = 2 * shards.kind.images_per_batch[spec.view] + 3
    keys = [f"{(7 * i) % count:04}" for i in range(count)]  # not sorted
    records = [record_of(key, spec) for key in keys]
    shard = shards.written(records, spec)
    assert [shard[row].key for row in range(len(shard))] == keys
    assert_round_trip(shard, records)


def test_keys_of_every_script_come_back(shards: Shards) -> None:
    keys = ["", "a/b c.jpg", "图像", "é\u0301", "😀", "line\nbreak", "x" * 1000]
    records = [region_record(key, 1) for key in keys]
    assert_round_trip(shards.written(records, REGIONS), records)


def test_arrays_that_are_not_contiguous_are_written_as_they_read(shards: Shards) -> None:
    wide = grid_record("wide", (4, 6))
    turned = GridRecord("turned", (6, 4), wide.features.transpose(1, 0, 2)[::-1])
    [found] = [shards.written([turned], GRID)[0]]
    np.testing.assert_array_equal(found.features, turned.features)


@pytest.mark.parametrize("spec", VIEWS.values(), ids=VIEWS.keys())
def test_reading_copies_nothing(shards: Shards, spec: Spec) -> None:
    shard = shards.written([record_of("b", spec), record_of("a", spec)], spec)
    for name, array in vars(shard[1]).items():
        if isinstance(array, np.ndarray):
            assert lies_in_a_map(array) or not shards.kind.mapped, name
            assert np.shares_memory(array, getattr(shard[1], name)), name
    assert not np.shares_memory(shard[0].features, shard[1].features)


def test_writing_to_features_does_not_reach_the_file(shards: Shards) -> None:
    record = region_record("a", 5)
    shard = shards.written([record], REGIONS)
    before = shards.path.read_bytes()
    shard[0].features[:] = 0
    shard[0].boxes[:] = 0
    assert shards.path.read_bytes() == before
    assert_same(shards.kind.reader(shards.path, REGIONS)[0], record)


def test_close_tells_the_files_size_and_checksum(shards: Shards) -> None:
    size, checksum = shards.write([region_record("a", 5)], REGIONS)
    data = shards.path.read_bytes()
    assert (size, checksum) == (len(data), xxhash.xxh3_128_hexdigest(data))


def test_equal_records_make_equal_files(shards: Shards) -> None:
    records = [region_record("a", 5), region_record("b", 0)]
    assert shards.write(records, REGIONS) == shards.write(records, REGIONS)


def test_rows_count_boxes_and_cells(shards: Shards) -> None:
    regions = shards.kind.writer(shards.path, REGIONS)
    for boxes in (0, 3, 4):
        regions.append(region_record("a", boxes))
    regions.close()
    grid = shards.kind.writer(shards.path, GRID)
    grid.append(grid_record("a", (3, 4)))
    grid.close()
    assert (regions.rows, grid.rows) == (7, 12)


def test_opening_with_another_spec_is_refused(shards: Shards) -> None:
    shards.write([region_record("a")], REGIONS)
    for other in (GRID, with_layout(REGIONS, dtype="float32"), replace(REGIONS, model={"name": "other"})):
        with pytest.raises(StoreError, match="another schema than its store"):
            shards.kind.reader(shards.path, other)


UNFIT = {
    "width": (region_record("a", 2, with_layout(REGIONS, dim=9)), "width 9, float16"),
    "dtype": (region_record("a", 2, with_layout(REGIONS, dtype="float32")), "width 8, float32"),
    "view": (grid_record("a"), "GridRecord, width 8, float16"),
    "pixels": (pixel_record("a"), "PixelRecord, width 3, uint8"),
}


@pytest.mark.parametrize(("record", "found"), UNFIT.values(), ids=UNFIT.keys())
def test_a_record_that_does_not_fit_the_store_is_refused_and_named(shards: Shards, record: Record, found: str) -> None:
    writer = shards.kind.writer(shards.path, REGIONS)
    with pytest.raises(StoreError) as refusal:
        writer.append(record)
    assert "record 'a'" in str(refusal.value) and found in str(refusal.value)
    assert str(refusal.value).endswith("does not fit the store: regions, width 8, float16.")


def test_a_region_record_does_not_fit_a_grid_store(shards: Shards) -> None:
    with pytest.raises(StoreError, match="RegionRecord.*does not fit the store: grid"):
        shards.kind.writer(shards.path, GRID).append(region_record("a"))


def test_a_patch_record_without_the_class_token_of_its_store_is_refused(shards: Shards) -> None:
    without = with_layout(PATCHES, without=("whole_image",))
    with pytest.raises(StoreError, match="'a' lacks whole_image, unlike the store's records"):
        shards.kind.writer(shards.path, PATCHES).append(patch_record("a", spec=without))
    with pytest.raises(StoreError, match="'a' carries whole_image, unlike the store's records"):
        shards.kind.writer(shards.path, without).append(patch_record("a"))


@pytest.mark.parametrize("carried", [0, 4, 6])
def test_a_record_with_another_number_of_class_probabilities_is_refused(shards: Shards, carried: int) -> None:
    writer = shards.kind.writer(shards.path, with_layout(REGIONS, class_probs=5))
    with pytest.raises(StoreError, match="'a' must carry 5 class probabilities"):
        writer.append(region_record("a", 2, with_layout(REGIONS, class_probs=carried)))


def test_a_refused_record_leaves_the_shard_usable(shards: Shards) -> None:
    writer = shards.kind.writer(shards.path, REGIONS)
    writer.append(region_record("a"))
    with pytest.raises(StoreError):
        writer.append(grid_record("b"))
    writer.append(region_record("c"))
    writer.close()
    assert_round_trip(shards.kind.reader(shards.path, REGIONS), [region_record("a"), region_record("c")])


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 999])
def test_a_file_that_is_no_whole_shard_is_refused(shards: Shards, damage: Callable[[bytes], bytes]) -> None:
    shards.write([region_record("a", 3)], REGIONS)
    shards.path.write_bytes(damage(shards.path.read_bytes()))
    with pytest.raises(StoreError, match=f"{shards.path.name} cannot be read"):
        shards.kind.reader(shards.path, REGIONS)


@pytest.mark.parametrize("spec", VIEWS.values(), ids=VIEWS.keys())
def test_a_flipped_bit_is_refused_or_harmless_but_never_a_crash(shards: Shards, spec: Spec) -> None:
    """Without a checksum nobody can tell a changed feature; but lengths and offsets must not lead outside the file."""
    shards.write([record_of(key, spec) for key in ("a", "b", "c")], spec)
    data = shards.path.read_bytes()
    refused, step = 0, 1 if shards.kind.name == "arrow" else 5  # HDF5 takes long to open
    for place in range(0, len(data), step):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place * 5 % 8)
        shards.path.unlink()  # a new file: bytes of a mapped one must not change under earlier maps
        shards.path.write_bytes(damaged)
        try:
            shard = shards.kind.reader(shards.path, spec)
            found = [shard[row] for row in range(len(shard))]
        except StoreError:
            refused += 1
            continue
        assert all(isinstance(record, Record) for record in found)
    assert refused > len(data) // step // 10


ODD_LAYOUTS = {
    "bfloat16": {"dtype": "bfloat16"},
    "float32 probabilities": {"class_probs": 5, "probs_dtype": "float32"},
    "boxes and features only": {
        "without": ("whole_image", "class_ids", "class_scores", "attribute_ids", "attribute_scores")
    },
    "fractions": {"box_units": "fractions"},
}


@pytest.mark.parametrize("changes", ODD_LAYOUTS.values(), ids=ODD_LAYOUTS.keys())
def test_records_of_every_layout_come_back_bit_for_bit(shards: Shards, changes: dict[str, Any]) -> None:
    spec = with_layout(REGIONS, **changes)
    records = [region_record(f"image{boxes}", boxes, spec) for boxes in (3, 0, 40)]
    assert_round_trip(shards.written(records, spec), records)
    shards.path.unlink()
    if not {"without", "class_probs"} & changes.keys():
        for view in (GRID, PATCHES):
            grids = [record_of("a", with_layout(view, **changes))]
            assert_round_trip(shards.written(grids, with_layout(view, **changes)), grids)
            shards.path.unlink()


@pytest.mark.parametrize("view", [REGIONS, PATCHES], ids=["regions", "patches"])
def test_records_in_8_bits_come_back_as_their_codes_mean(shards: Shards, view: Spec) -> None:
    spec = with_layout(view, dtype="uint8")
    records = [record_of(key, spec) for key in "abc"]
    shard = shards.written(records, spec)
    for row, record in enumerate(records):
        found = shard.record(row, "float32")
        for name in ("features", "whole_image"):
            rows = getattr(record, name).reshape(-1, 8)
            wanted = decode(*encode(rows), "float32").reshape(getattr(record, name).shape)
            np.testing.assert_array_equal(getattr(found, name), wanted)
            assert getattr(shard[row], name).dtype == np.float16
        if isinstance(record, RegionRecord):
            np.testing.assert_array_equal(found.boxes, record.boxes)


def test_a_large_shard_is_one_file_without_gaps_whose_checksum_fits(shards: Shards) -> None:
    spec = with_layout(GRID, dim=512)
    records = [grid_record(f"{index}", (9, 11), spec) for index in range(40)]
    size, checksum = shards.write(records, spec)
    data = shards.path.read_bytes()
    assert (size, checksum) == (len(data), xxhash.xxh3_128_hexdigest(data))
    assert_round_trip(shards.kind.reader(shards.path, spec), records)
