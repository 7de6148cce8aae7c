"""Stores that version 2 of the format wrote are read for good: tests/fixtures/store_v2 was written when it was new.

    uv run python -m tests.unit.storage.test_version_2 FOLDER

writes such stores anew. The committed ones stay as they are; a later version gets a folder of its own.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from storage import Spec, StoreWriter, open_store, verify_store
from storage.codecs import NUMPY, cast, decode, encode
from storage.compact import fold
from storage.diff import diff_stores, open_both
from tests.unit.storage.samples import (
    GRID,
    PATCHES,
    PIXELS,
    REGIONS,
    assert_same,
    contents,
    record_of,
    with_layout,
    write_unit,
)

FIXTURE = Path(__file__).parents[2] / "fixtures" / "store_v2"
WITHOUT = ("whole_image", "attribute_ids", "attribute_scores")
STORES: dict[str, tuple[Spec, str]] = {
    "regions-arrow": (with_layout(REGIONS, class_probs=3), "arrow"),
    "regions-hdf5": (with_layout(REGIONS, dtype="float32", class_probs=3, probs_dtype="float32"), "hdf5"),
    "regions-8-bit": (with_layout(REGIONS, dtype="uint8"), "hdf5"),
    "regions-imported": (with_layout(REGIONS, without=WITHOUT, box_units="fractions"), "arrow"),
    "grid-archive": (with_layout(GRID, dtype="bfloat16"), "arrow-zstd"),
    "patches": (PATCHES, "arrow"),
    "pixels": (PIXELS, "hdf5"),
}
KEYS, FAILED = ["b", "d", "c", "e/é", "f"], ["a", "broken"]


def spec_of(name: str) -> Spec:
    return replace(STORES[name][0], model={"name": "fixture"})


def write_fixture(folder: Path) -> None:
    """Each store: two units that are folded, one in which every image failed, and one committed later."""
    for name, (_, format) in STORES.items():
        writer = StoreWriter(folder / name, spec_of(name), {"classes": ["cat", "dog"]}, format)
        write_unit(writer, ["b", "a", "d"], failed=["a"])
        write_unit(writer, ["c", "e/é"])
        write_unit(writer, ["broken"], failed=["broken"])
        fold(folder / name)
        write_unit(StoreWriter(folder / name, spec_of(name), format=format), ["f"])
        writer.write_run({"complete": True, "images": 7})


@pytest.mark.parametrize("name", STORES)
def test_every_record_and_error_comes_back(name: str) -> None:
    store = open_store(FIXTURE / name, "float32" if name == "regions-8-bit" else None)
    spec = spec_of(name)
    assert store.spec == spec and store.spec.id == spec.id
    assert sorted(store) == sorted(KEYS) and {row.key for row in store.errors()} == set(FAILED)
    assert (store.vocabulary, store.run["images"]) == ({"classes": ["cat", "dog"]}, 7)
    for key in KEYS:
        wanted = record_of(key, spec)
        if name == "regions-8-bit":
            wanted = replace(
                wanted,
                features=decode(*encode(wanted.features), "float32"),
                whole_image=decode(*encode(wanted.whole_image[None]), "float32")[0],
            )
        assert_same(store[key], wanted)
    batch = store.batch(["e/é", "b"])
    assert batch.values.dtype == NUMPY[store.dtype] and batch.keys == ["e/é", "b"]


@pytest.mark.parametrize("name", STORES)
def test_they_are_sound_and_nobody_changes_them(name: str) -> None:
    before = contents(FIXTURE / name)
    assert verify_store(FIXTURE / name).problems == []
    open_store(FIXTURE / name).batch(KEYS)
    assert contents(FIXTURE / name) == before


@pytest.mark.parametrize("name", STORES)
def test_a_copy_is_written_on(name: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURE / name, tmp_path / "store")
    writer = StoreWriter(tmp_path / "store", spec_of(name), format=STORES[name][1])
    assert writer.done([*KEYS, *FAILED, "g"]).tolist() == [True] * 7 + [False]
    write_unit(writer, ["g", "b"])
    assert verify_store(tmp_path / "store").problems == []
    assert sorted(open_store(tmp_path / "store")) == sorted([*KEYS, "g"])


@pytest.mark.parametrize("name", STORES)
def test_what_is_written_today_holds_the_same(name: str, tmp_path: Path) -> None:
    write_fixture(tmp_path)
    found = diff_stores(*open_both(FIXTURE / name, tmp_path / name))
    assert found.same and not found.spec
    dtype = "bytes" if name == "pixels" else "float32"
    mine = open_store(tmp_path / name, dtype)["d"].features
    assert (mine == cast(open_store(FIXTURE / name, dtype)["d"].features, dtype)).all()


if __name__ == "__main__":
    write_fixture(Path(sys.argv[1]))
