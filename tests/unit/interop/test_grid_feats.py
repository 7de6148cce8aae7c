"""grid-feats-pth: channels first there, cells first here, names that are numbers, and no code run from a file."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storage import FeatureLayout, GridRecord, StoreError
from storage.codecs import cast
from storage.interop.base import Import, ImportOptions
from storage.interop.grid_feats import GRID_FEATS_PTH
from tests.unit.interop.samples_npz import WIDTH, numbers, region_record, rows_of, store_from, store_of, tear
from tests.unit.storage.samples import assert_same, contents

LAYOUT = FeatureLayout(WIDTH, "float32")


def upstream(folder: Path, number: int, down: int, across: int, old: bool = False) -> torch.Tensor:
    """A file as extract_grid_feature.py writes it; torch before 1.6 wrote no zip files."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = torch.from_numpy(numbers(1, WIDTH, down, across, seed=number))
    with (folder / f"{number}.pth").open("wb") as handle:
        torch.save(outputs.cpu(), handle, _use_new_zipfile_serialization=not old)
    return outputs


def saved(path: Path, content: object) -> None:
    with path.open("wb") as handle:
        torch.save(content, handle)


def read(folder: Path, **sizes: tuple[int, int]) -> Import:
    return GRID_FEATS_PTH.read(folder, ImportOptions(sizes))


@pytest.mark.parametrize("old", [False, True])
def test_reads_a_file_as_upstream_writes_it(tmp_path, old):
    outputs = upstream(tmp_path, 262148, 3, 5, old)
    found = read(tmp_path)
    records, bad = rows_of(found)
    wanted = np.ascontiguousarray(outputs[0].permute(1, 2, 0).numpy())
    assert (found.view, found.layout, bad) == ("grid", LAYOUT, [])
    assert_same(records["262148"], GridRecord("262148", (0, 0), wanted))
    assert records["262148"].features[2, 4, 7] == outputs[0, 7, 2, 4]
    sized = {"262148": (480, 640)}
    assert rows_of(read(tmp_path, **sized))[0]["262148"].image_size == (480, 640)


def test_files_come_back_equal(tmp_path):
    for number, shape in enumerate([(1, 1), (2, 3), (3, 2)]):
        upstream(tmp_path / "in/train2014", number, *shape)
    report = GRID_FEATS_PTH.write(store_from(tmp_path / "store", read(tmp_path / "in")), tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")  # the files themselves, not their tensors only
    assert report.notes == (
        "there are no boxes in a grid; left out: sizes of images; tensors are (1, 2048, H, W) float32",
    )


def test_a_store_comes_back_to_the_last_bit(tmp_path):
    records = [GridRecord(str(n), (0, 0), numbers(n, n + 1, WIDTH, seed=n)) for n in (1, 2, 4)]
    report = GRID_FEATS_PTH.write(store_of(tmp_path / "store", records, LAYOUT), tmp_path / "out")
    again, bad = rows_of(read(tmp_path / "out"))
    assert (report.files, bad) == (3, [])
    for record in records:
        assert_same(again[record.key], record)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_features_are_widened(tmp_path, dtype):
    record = GridRecord("7", (9, 9), cast(numbers(1, 2, WIDTH), dtype))
    GRID_FEATS_PTH.write(store_of(tmp_path / "store", [record], replace(LAYOUT, dtype=dtype)), tmp_path / "out")
    found = torch.load(tmp_path / "out/7.pth", weights_only=True)
    assert found.dtype == torch.float32 and found.shape == (1, WIDTH, 1, 2)
    assert np.array_equal(found[0].permute(1, 2, 0).numpy(), record.features.astype(np.float32))


def test_half_files_stay_half(tmp_path):
    saved(tmp_path / "1.pth", torch.from_numpy(numbers(1, WIDTH, 2, 2)).half())
    found = read(tmp_path)
    assert found.layout.dtype == "float16" and rows_of(found)[0]["1"].features.dtype == np.float16


def test_names_that_upstream_would_not_give_are_noted(tmp_path):
    keys = ["42", "val/43", "000000000044", "beach", "-4", "٤"]
    store = store_of(tmp_path / "store", [GridRecord(key, (9, 9), numbers(1, 1, WIDTH)) for key in keys], LAYOUT)
    notes = GRID_FEATS_PTH.write(store, tmp_path / "out").notes
    assert notes[1] == "upstream names files by whole numbers; 4 keys are none, such as '000000000044'"
    assert rows_of(read(tmp_path / "out"))[0].keys() == set(keys)


class Runs:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle ran code')",))


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Runs(), "it is torn, or holds more than tensors"),
        (OrderedDict(weight=torch.zeros(1)), "it holds OrderedDict; wanted one tensor."),
        (torch.zeros(1, 2, 2, WIDTH), "its tensor is (1, 2, 2, 2048); wanted (1, 2048, H, W)."),
        (torch.zeros(2, WIDTH, 1, 1), "its tensor is (2, 2048, 1, 1); wanted (1, 2048, H, W)."),
        (torch.zeros(1, WIDTH, 1, 1).double(), "its tensor is float64; wanted float32 or float16."),
        (torch.zeros(1, WIDTH, 1, 1).bfloat16(), "its tensor is bfloat16; wanted float32 or float16."),
        (torch.zeros(1, WIDTH, 1, 1).to_sparse(), "its tensor is sparse_coo; wanted a dense one."),
    ],
)
def test_other_contents_are_listed_or_refuse_the_folder(tmp_path, content, message):
    saved(tmp_path / "2.pth", content)
    with pytest.raises(StoreError) as caught:
        read(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    upstream(tmp_path, 1, 1, 1)
    records, bad = rows_of(read(tmp_path))
    assert records.keys() == {"1"} and [row.key for row in bad] == ["2"]
    assert bad[0].message.startswith(message)


@pytest.mark.parametrize("old", [False, True])
def test_every_cut_of_a_file_is_a_bad_row(tmp_path, old):
    upstream(tmp_path, 1, 1, 1)
    upstream(tmp_path, 2, 1, 1, old)
    whole = (tmp_path / "2.pth").read_bytes()
    for length in [*range(0, 300, 23), *range(300, len(whole), 1999), len(whole) - 1]:
        (tmp_path / "2.pth").write_bytes(whole[:length])
        records, bad = rows_of(read(tmp_path))
        assert records.keys() == {"1"} and [row.key for row in bad] == ["2"], length
        assert "\n" not in bad[0].message


def test_a_flipped_bit_is_a_bad_row(tmp_path):
    upstream(tmp_path, 1, 1, 1)
    upstream(tmp_path, 2, 1, 1)
    data = bytearray((tmp_path / "2.pth").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "2.pth").write_bytes(data)
    records, bad = rows_of(read(tmp_path))
    assert records.keys() == {"1"}
    assert bad[0].message == "it is torn, or holds more than tensors (the checksum of archive/data/0 does not fit)."


def test_stores_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(StoreError, match="grid-feats-pth holds grid, this store holds regions"):
        GRID_FEATS_PTH.write(store_of(tmp_path / "regions", [region_record("1", 1)]), tmp_path / "out")
    narrow = store_of(tmp_path / "narrow", [GridRecord("1", (9, 9), numbers(1, 1, 8))], FeatureLayout(8, "float32"))
    with pytest.raises(StoreError, match="grid-feats-pth holds features of width 2048, this store's are 8 wide"):
        GRID_FEATS_PTH.write(narrow, tmp_path / "out")
    with pytest.raises(StoreError, match="holds no .*pth file; give the folder of grid-feats-pth files"):
        read(tmp_path)
    upstream(tmp_path / "torn", 1, 1, 1)
    tear(tmp_path / "torn/1.pth")
    with pytest.raises(
        StoreError, match="none of its 1 files can be read as grid-feats-pth; the first is 1.pth: it is torn"
    ):
        read(tmp_path / "torn")
