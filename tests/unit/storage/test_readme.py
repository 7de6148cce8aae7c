"""The page about the format says what the code does: its tables, its snippet and its example."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest

import storage.arrow
from storage import ErrorRow, FeatureLayout, Spec, StoreWriter, open_store
from storage.arrow import IMAGES_PER_BATCH, shard_schema
from storage.atomic import read_sealed
from storage.compact import fold
from storage.index import TABLES
from storage.manifest import Entry, ShardFacts
from storage.spec import DTYPES
from storage.writer import FORMAT_VERSION
from tests.unit.storage.samples import GRID, PATCHES, PIXELS, REGIONS, VIEWS, make_store, with_layout

README = (Path(storage.arrow.__file__).parent / "README.md").read_text()


def section(title: str) -> str:
    [found] = re.findall(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    return found


def tables(title: str) -> list[list[list[str]]]:
    """The tables of a section, each a list of rows of cells, without their headings."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", section(title), re.MULTILINE)
    return [[[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()[2:]] for block in blocks]


def names(table: list[list[str]]) -> list[str]:
    return [row[0].strip("`") for row in table]


def in_words(kind: Any) -> str:
    """An Arrow type as the page spells it."""
    if pa.types.is_list(kind):
        rows = kind.value_type
        return f"list of N {f'x {in_words(rows)}' if pa.types.is_fixed_size_list(rows) else rows}"
    if pa.types.is_fixed_size_list(kind):
        width = {8: "D", 4: "4", 5: "C", 3: "3"}[kind.list_size]
        return f"{width} {kind.value_type}"
    return str(kind)


def is_in(view: str, place: str) -> bool:
    """What the third cell of a column says of a view."""
    return place == "all" or (place.startswith("all but") and not place.endswith(view)) or view in place.split("but")[0]


def test_the_table_of_columns_is_the_schema() -> None:
    [table] = tables(r"shards/\<unit\>.arrow")
    schema = shard_schema(with_layout(REGIONS, class_probs=5))
    assert [name for name in names(table) if name != "pixels"] == schema.names
    for view, spec in {**VIEWS, "regions": with_layout(REGIONS, class_probs=5)}.items():
        schema = shard_schema(spec)
        said = {name.strip("`"): kind for name, kind, place, _ in table if is_in(view, place)}
        assert list(said) == schema.names
        for name, kind in said.items():
            assert kind.replace(" (or float)", "") == in_words(schema.field(name).type), name
    optional = [name.strip("`") for name, _, place, _ in table if "where asked for" in place]
    assert optional == ["class_probs"]


def test_the_metadata_named_is_that_of_the_schema() -> None:
    named = re.findall(r"`(triptych\.\w+)`", section(r"shards/\<unit\>.arrow"))
    plain, coded = (shard_schema(with_layout(REGIONS, dtype=dtype)).metadata for dtype in ("float16", "uint8"))
    assert {b"triptych.boxes"} == plain.keys() - shard_schema(PATCHES).metadata.keys()
    assert shard_schema(PIXELS).metadata[b"triptych.dtype"] == b"bytes"
    assert named[: len(plain)] == [name.decode() for name in plain]
    assert set(named) == {name.decode() for name in coded}


def test_the_batch_sizes_named_are_those_of_the_code() -> None:
    words = r"(\d+) images of a region store, (\d+) of a grid store, (\d+) of patches, (\d+) of pixels"
    said = re.search(words, " ".join(README.split()))
    assert said and dict(zip(VIEWS, map(int, said.groups()), strict=True)) == IMAGES_PER_BATCH


def test_the_fields_named_are_those_on_disk(tmp_path: Path) -> None:
    path = make_store(tmp_path / "store", [["a"]])
    head, spec = tables("store.json")
    assert sorted(names(head)) == sorted(read_sealed(path / "store.json"))
    assert names(spec) == [field.name for field in fields(Spec)]
    assert all(f"`{field.name}`" in spec[1][1] for field in fields(FeatureLayout))
    assert all(f"`{dtype}`" in spec[1][1] for dtype in DTYPES)
    [entry] = tables(r"Units and manifest/\<unit\>.json")
    assert names(entry) == [field.name for field in fields(Entry)]
    cells = dict(zip(names(entry), (row[1] for row in entry), strict=True))
    assert all(f"`{field.name}`" in cells["errors"] for field in fields(ErrorRow))
    assert all(f"`{field.name}`" in cells["shard"] for field in fields(ShardFacts))
    assert f"version {FORMAT_VERSION}" in README.splitlines()[0]


@pytest.mark.parametrize("folded", [False, True], ids=["entries", "folded"])
def test_the_files_named_are_those_of_a_store(tmp_path: Path, folded: bool) -> None:
    path = make_store(tmp_path / "store", [["a"]])
    StoreWriter(path, REGIONS).write_run({})
    [unit] = [entry.unit for entry in open_store(path).entries]
    if folded:
        fold(path)
    listed = README.split("```")[1]
    for file in path.rglob("*"):
        if file.is_file():
            name = file.relative_to(path).as_posix().replace(unit, "<unit>")
            assert re.sub(r"index/\w+-[0-9a-f]{16}", "index/<table>-<hash>", name) in listed


def test_the_tables_of_the_index_are_those_of_the_code() -> None:
    [table] = tables("The folded manifest: index.json and index/")
    assert names(table) == list(TABLES)
    for name, columns, _ in table:
        assert re.findall(r"`(\w+)`", columns) == TABLES[name.strip("`")].names


@pytest.mark.parametrize("dtype", ["float16", "uint8", "bfloat16"])
def test_the_data_sets_of_an_hdf5_shard_are_the_columns(tmp_path: Path, dtype: str) -> None:
    store = open_store(make_store(tmp_path / "store", [["a"]], with_layout(REGIONS, dtype=dtype), format="hdf5"))
    [unit] = store.units
    said = [*names(tables(r"shards/\<unit\>.arrow")[0]), "offsets", "features_scale", "whole_image_scale"]
    with h5py.File(store.path / unit.shard.file) as file:
        assert set(file) <= set(said)
        assert set(file) == set(said) - {"class_probs", "pixels"} - (set() if dtype == "uint8" else set(said[-2:]))
        last = max((data for data in file.values()), key=lambda data: data.id.get_offset() or 0)
        assert all(data.chunks is None for data in file.values()) and last.name == "/features"


@pytest.mark.parametrize("spec", [REGIONS, GRID], ids=["regions", "grid"])
def test_the_snippet_reads_a_store_without_this_package(tmp_path: Path, spec: Spec) -> None:
    path = make_store(tmp_path / "store", [["a", "b"]], spec)
    [snippet] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "storage" not in snippet
    found: dict[str, Any] = {}
    exec(snippet.replace("features/regions", str(path)), found)
    wanted = open_store(path)[found["table"]["image_id"][0].as_py()].features
    np.testing.assert_array_equal(found["features"], wanted.reshape(-1, spec.layout.dim))
