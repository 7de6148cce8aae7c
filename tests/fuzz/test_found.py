"""What fuzzing found, once each: bytes that ended in another error than the project's own, or asked for much memory."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from extractors import ConfigError
from extractors.given_boxes import read_boxes
from extractors.weights import WeightsError, read_checkpoint
from storage import StoreError, open_store
from storage.against import coverage
from storage.atomic import read_sealed, seal, write_sealed
from storage.compact import fold
from storage.interop import FORMATS, unpickling
from storage.interop.base import BadRow, ImportOptions
from storage.interop.folders import npy_array
from storage.interop.transfer import read_sizes
from tests.fuzz.properties import check_line, limited_memory, works_or_says_why
from tests.fuzz.readers import READERS
from tests.unit.storage.samples import make_store

DEEP = "[" * 100_000


def refused(kind: type[Exception], action: Callable[[], object]) -> str:
    with limited_memory(512 << 20), pytest.raises(kind) as error:
        action()
    check_line(str(error.value))
    assert not isinstance(error.value.__cause__, MemoryError)
    return str(error.value)


@pytest.mark.parametrize("size", [1 << 30, 1 << 40, 1 << 63])
def test_a_pickle_cannot_have_room_made_for_bytes_that_it_lacks(size: int) -> None:
    refused(StoreError, lambda: unpickling.loads(b"\x80\x05\x96" + struct.pack("<Q", size) + b"abc.", "x"))


def test_control_characters_of_a_file_do_not_reach_the_terminal() -> None:
    assert "asks for ?[31m.x" in refused(StoreError, lambda: unpickling.loads(b"c\x1b[31m\nx\n.", "it"))


@pytest.mark.parametrize("text", [DEEP, '{"a": ' + "[" * 50_000, '{"a": [[1, 2, 3, 1' + "0" * 400 + "]]}"])
def test_boxes_nested_too_deep_or_too_large_are_a_wrong_job(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    refused(ConfigError, lambda: read_boxes(str(tmp_path / "x.json"), "xyxy", "pixels"))


@pytest.mark.parametrize("text", [DEEP, "5", "null", '"text"', "true"])
def test_annotations_that_are_no_list_or_nested_too_deep_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    store = open_store(make_store(tmp_path / "store", [["a"]]))
    refused(StoreError, lambda: coverage(store, tmp_path / "x.json"))


@pytest.mark.parametrize("height", ["1e999", DEEP])
def test_sizes_that_are_infinite_or_nested_too_deep_are_refused(tmp_path: Path, height: str) -> None:
    (tmp_path / "x.json").write_text(f'{{"images": [{{"id": 1, "width": 1, "height": {height}}}]}}')
    refused(StoreError, lambda: read_sizes(tmp_path / "x.json"))


@pytest.mark.parametrize("change", [{"spec": None}, {"spec": {}}, {"vocabulary": 3}, {"format_version": "\0"}])
def test_a_head_that_is_sealed_but_senseless_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    store = make_store(tmp_path / "store", [["a"]])
    write_sealed(store / "store.json", {**read_sealed(store / "store.json"), **change})
    refused(StoreError, lambda: open_store(store))


def test_a_document_that_is_no_object_is_damaged(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", [["a"]])
    (store / "store.json").write_bytes(seal([1]))  # type: ignore[arg-type]
    assert "is damaged" in refused(StoreError, lambda: open_store(store))


@pytest.mark.parametrize(
    "change",
    [
        {"keys": [1]},
        {"keys": "a"},
        {"shard": {"file": 3}},
        {"shard": None},
        {"errors": [{}]},
        {"errors": 3},
        {"facts": None},
    ],
)
def test_an_entry_that_is_sealed_but_senseless_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    store = make_store(tmp_path / "store", [["a"]])
    [entry] = (store / "manifest").iterdir()
    write_sealed(entry, {**read_sealed(entry), **change})
    refused(StoreError, lambda: list(open_store(store).values()))


@pytest.mark.parametrize("table", ["keys", "units", "errors", "lookup", "buckets"])
def test_a_table_damaged_without_a_change_of_its_length_never_ends_in_another_error(tmp_path: Path, table: str) -> None:
    store = make_store(tmp_path / "store", [["a", "b"], ["c"]], failed=("b",))
    fold(store)
    [path] = (store / "index").glob(f"{table}-*")
    data = path.read_bytes()
    for at in range(0, len(data), 29):
        path.write_bytes(data[:at] + b"\xff\x80\x01" + data[at + 3 :])
        works_or_says_why(READERS["store"].read, store)


def npy(shape: tuple[int, ...], rest: bytes, kind: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": kind, "fortran_order": False, "shape": shape})
    return stream.getvalue() + rest


@pytest.mark.parametrize("shape", [(1 << 32,), (1 << 31, 1 << 31), (2,), (0,)])
def test_an_array_has_just_the_bytes_that_its_shape_takes(shape: tuple[int, ...]) -> None:
    refused(ValueError, lambda: npy_array(npy(shape, b"1234")))


def test_a_folder_of_npz_files_whose_headers_lie_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.jpg.npz", "w") as archive:
        archive.writestr("x.npy", npy((2048, 1 << 28), b"1234"))
    refused(StoreError, lambda: FORMATS["mcan-npz"].read(tmp_path, ImportOptions()))


def test_a_tensor_whose_numbers_are_not_in_the_file_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1, dtype=torch.float16).expand(1 << 33)}, tmp_path / "x.pth")
    assert "holds whole" in refused(WeightsError, lambda: read_checkpoint(tmp_path / "x.pth"))
    (tmp_path / "grid").mkdir()
    torch.save(torch.zeros(1).expand(1, 2048, 1 << 10, 1 << 10), tmp_path / "grid" / "1.pth")
    refused(StoreError, lambda: FORMATS["grid-feats-pth"].read(tmp_path / "grid", ImportOptions()))


def test_a_checkpoint_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(tmp_path / "x.pth", "w", 8) as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert read_checkpoint(tmp_path / "plain.pth").tensors is not None
    refused(WeightsError, lambda: read_checkpoint(tmp_path / "x.pth"))


def test_an_hdf5_file_of_rows_that_were_never_written_is_refused_row_by_row(tmp_path: Path) -> None:
    width = 1 << 26
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        for name, columns in (("image_features", width), ("image_bb", 4), ("spatial_features", 6)):
            file.create_dataset(name, (1, 36, columns), "f4", chunks=(1, 1, min(columns, 1024)))
    (tmp_path / "x_imgid2idx.pkl").write_bytes(unpickling.dumps({1: 0}))
    with limited_memory(512 << 20):
        [row] = FORMATS["hu-hdf5"].read(tmp_path / "x.hdf5", ImportOptions()).rows
    assert isinstance(row, BadRow) and "is larger than" in row.message


def test_an_entry_of_json_that_is_cut_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"images": 3}))
    refused(StoreError, lambda: read_sizes(tmp_path / "x.json"))
