"""Parquet files of images, or of their paths."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractors.images import ImageError
from pipeline.sources import ImageRef, SourceError
from tests.unit.pipeline.sources.helpers import (
    bytes_by_key,
    keys_of,
    make_parquet,
    put,
    source_of,
)


def test_parquet_paths_name_and_lead_to_the_images(tmp_path):
    root = put(tmp_path / "images", "b/1.jpg", "a.jpg")
    paths = ["b/1.jpg", str(root / "a.jpg"), "b/1.jpg", "b/1.gif"]
    source = source_of(make_parquet(tmp_path / "p.parquet", image_path=paths), image_root=str(root), exclude="*.gif")
    listing = source.list()
    assert [ref.key for ref in listing.refs] == ["b/1", "a"]
    assert (listing.repeated, listing.passed_over) == (1, 1)
    assert bytes_by_key(source) == {"b/1": b"b/1.jpg", "a": b"a.jpg"}


def test_parquet_rows_without_a_name_are_numbered(tmp_path):
    for name in ("p-1", "p-0"):
        make_parquet(tmp_path / f"{name}.parquet", 2, jpg=[f"{name}/{row}".encode() for row in range(5)])
    put(tmp_path, "_SUCCESS", ".hidden")
    expected = {f"{name}-{row}": f"{name}/{row}".encode() for name in ("p-0", "p-1") for row in range(5)}
    for images in (tmp_path, tmp_path / "p-*.parquet", tmp_path / "p-{0..1}.parquet"):
        assert bytes_by_key(source_of(images)) == expected
        assert keys_of(images) == list(expected)


def test_a_folder_with_more_than_parquet_is_a_folder_of_images(tmp_path):
    make_parquet(put(tmp_path, "a.jpg") / "p.parquet", jpg=[b"x"])
    listing = source_of(tmp_path).list()
    assert ([ref.key for ref in listing.refs], listing.passed_over) == (["a"], 1)


def test_hugging_face_image_structs(tmp_path):
    """Bytes where there are some, else the path; a row with neither is a bad image, not a bad job."""
    put(tmp_path, "else where.jpg")
    rows = [
        {"bytes": b"inside", "path": "same.jpg"},
        {"bytes": None, "path": "else where.jpg"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"last", "path": "same.jpg"},
    ]
    struct = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    source = source_of(make_parquet(tmp_path / "train.parquet", 2, picture=struct, label=[1, 2, 3, 4, 5]))
    refs = source.list().refs
    assert refs[0] == ImageRef("train-0", f"{tmp_path}/train.parquet#0")
    assert [source.read(refs[row].uri) for row in (0, 1, 4)] == [b"inside", b"else where.jpg", b"last"]
    for row in (2, 3):
        with pytest.raises(ImageError, match="holds no image") as caught:
            source.read(refs[row].uri)
        assert caught.value.reason == "missing"


def test_the_path_inside_a_struct_may_be_the_key(tmp_path):
    structs = [{"bytes": b"1", "path": "x/a.jpg"}, {"bytes": b"2", "path": "b.jpg"}]
    path = make_parquet(tmp_path / "p.parquet", image=structs)
    assert bytes_by_key(source_of(path, key_column="image.path")) == {"x/a.jpg": b"1", "b.jpg": b"2"}


def test_named_columns_win_over_guessed_ones(tmp_path):
    columns = {"image": [b"i"], "other": pa.array([b"o"], pa.large_binary()), "id": [5], "name": ["n"]}
    path = make_parquet(tmp_path / "p.parquet", **columns)
    assert bytes_by_key(source_of(path)) == {"5": b"i"}
    assert bytes_by_key(source_of(path, image_column="other", key_column="name")) == {"n": b"o"}


def test_bytes_with_a_path_beside_them_are_named_by_it(tmp_path):
    path = make_parquet(tmp_path / "p.parquet", image=[b"1", b"2"], file_name=["a/1.jpg", None])
    assert bytes_by_key(source_of(path)) == {"a/1": b"1", "p-1": b"2"}
    assert keys_of(path, keep_extension=True) == ["a/1.jpg", "p-1"]


def test_dictionary_encoded_paths_and_an_empty_one(tmp_path):
    put(tmp_path, "a.jpg")
    source = source_of(make_parquet(tmp_path / "p.parquet", path=pa.array(["a.jpg", None]).dictionary_encode()))
    first, second = source.list().refs
    assert (first.key, source.read(first.uri), second.key) == ("a", b"a.jpg", "p-1")
    with pytest.raises(ImageError, match="holds no image"):
        source.read(second.uri)


def test_parquet_reads_one_row_group_at_a_time(tmp_path, monkeypatch):
    path = make_parquet(tmp_path / "p.parquet", 3, jpg=[f"{row}".encode() for row in range(10)])
    source = source_of(path)
    refs = source.list().refs
    read: list[int] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda self, i, **how: read.append(i) or real(self, i, **how))
    assert [source.read(ref.uri) for ref in refs] == [f"{row}".encode() for row in range(10)]
    assert read == [0, 1, 2, 3]
    for row in (0, 9, 3, 9):
        source.read(refs[row].uri)
    assert read == [0, 1, 2, 3, 0, 1]  # two groups are kept, those used last


def test_listing_parquet_reads_no_images(tmp_path, monkeypatch):
    path = make_parquet(tmp_path / "p.parquet", image=[{"bytes": b"x", "path": "a"}], key=["k"])
    columns: list[str] = []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, **how: columns.extend(how["columns"]) or real(self, **how),
    )
    assert keys_of(path) == ["k"]
    assert columns == ["key"]


def test_many_threads_read_many_row_groups(tmp_path):
    path = make_parquet(tmp_path / "p.parquet", 7, jpg=[f"{row}".encode() for row in range(100)])
    source = source_of(path)
    rows = [(row * 37) % 100 for row in range(400)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda row: source.read(f"{path}#{row}"), rows)) == [f"{row}".encode() for row in rows]


@pytest.mark.parametrize("place", ["#5", "#-1", "#x", "#"])
def test_a_row_that_is_not_there_is_a_bad_image(tmp_path, place):
    path = make_parquet(tmp_path / "p.parquet", jpg=[b"0", b"1"])
    with pytest.raises(ImageError) as caught:
        source_of(path).read(f"{path}{place}")
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"text": ["a"]}, {}, "none of them seems to hold the images"),
        ({"x": [b"a"], "y": [b"b"]}, {}, "more than one of them may hold the images.*--image-column"),
        ({"jpg": [b"a"]}, {"image_column": "png"}, r"has the columns jpg \(binary\); wanted .*'png'"),
        ({"jpg": [b"a"], "n": [1]}, {"image_column": "n"}, "wanted paths or bytes"),
        ({"jpg": [b"a"]}, {"key_column": "name"}, "--key-column 'name'"),
        ({"jpg": [b"a"], "x": [0.5]}, {"key_column": "x"}, "text or whole numbers"),
        ({"jpg": [b"a", b"b"], "key": ["k", None]}, {}, "rows without a key in column 'key'"),
        ({"jpg": [b"a", b"b"], "image_id": [3, 3]}, {}, "same key '3'.*--key-column"),
        ({"jpg": [b"a"], "key": ["../x"]}, {}, "'..' part"),
        ({"jpg": pa.array([], pa.binary())}, {}, "holds no images"),
        ({"path": ["/elsewhere/a.jpg"]}, {}, "absolute path"),
    ],
)
def test_parquet_files_that_stop_the_plan(tmp_path, columns, settings, message):
    path = make_parquet(tmp_path / "p.parquet", **columns)
    with pytest.raises(SourceError, match=message) as caught:
        source_of(path, **settings).list()
    assert "\n" not in str(caught.value)


def test_parquet_files_must_agree(tmp_path):
    make_parquet(tmp_path / "a.parquet", jpg=[b"a"])
    make_parquet(tmp_path / "b.parquet", jpg=[b"b"], key=["k"])
    with pytest.raises(SourceError, match=r"b\.parquet has other columns than .*a\.parquet"):
        source_of(tmp_path).list()


def test_damaged_parquet(tmp_path):
    path = make_parquet(tmp_path / "p.parquet", 2, jpg=[os.urandom(2000) for _ in range(4)])
    source = source_of(path)
    refs = source.list().refs
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 500 + data[504:])  # the first page, not the footer
    with pytest.raises(ImageError) as caught:
        source.read(refs[0].uri)
    assert caught.value.reason == "unreadable"
    assert len(source.read(refs[3].uri)) == 2000
    path.write_bytes(data[:-20])
    with pytest.raises(SourceError, match="wanted a Parquet file"):
        source_of(path)
