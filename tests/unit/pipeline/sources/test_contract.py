"""What holds for every kind of source, and what cannot be opened."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from extractors.images import ImageError
from pipeline.sources import SourceError
from tests.unit.pipeline.sources.helpers import (
    bytes_by_key,
    coco_json,
    make_parquet,
    make_tar,
    put,
    source_of,
    text_file,
)


@pytest.fixture(params=["folder", "list", "tar", "coco", "parquet_paths", "parquet_bytes", "parquet_struct"])
def source(request, tmp_path):
    """Images `1`, `2` and `3` of whichever kind; the bytes of image N are `N.jpg`."""
    names = ["1.jpg", "2.jpg", "3.jpg"]
    folder = put(tmp_path / "in", *names)
    data = [name.encode() for name in names]
    structs = [{"bytes": item, "path": None} for item in data]
    make = {
        "folder": lambda: folder,
        "list": lambda: text_file(folder / "images.txt", "\n".join(names)),
        "tar": lambda: make_tar(folder / "images.tar", *names),
        "coco": lambda: coco_json(folder / "a.json", *({"id": n, "file_name": f"{n}.jpg"} for n in (1, 2, 3))),
        "parquet_paths": lambda: make_parquet(folder / "a.parquet", path=names),
        "parquet_bytes": lambda: make_parquet(folder / "a.parquet", 2, image=data, key=[1, 2, 3]),
        "parquet_struct": lambda: make_parquet(folder / "a.parquet", 2, image=structs, id=["1", "2", "3"]),
    }
    return source_of(make[request.param]())


def test_each_image_is_listed_once_and_reads_as_itself(source):
    assert bytes_by_key(source) == {"1": b"1.jpg", "2": b"2.jpg", "3": b"3.jpg"}


def test_two_listings_are_equal(source):
    assert source.list() == source.list()


def test_uris_are_printable_and_absolute(source, monkeypatch, tmp_path):
    refs = source.list().refs
    monkeypatch.chdir(tmp_path)
    assert all(ref.uri.isprintable() and ref.uri.startswith("/") for ref in refs)


def test_a_pickled_copy_reads_without_listing(source):
    refs = source.list().refs
    source.read(refs[0].uri)  # a source in use, with whatever it has open or cached
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.read(ref.uri) for ref in refs] == [b"1.jpg", b"2.jpg", b"3.jpg"]
    assert copy.list() == source.list()


def test_many_threads_read_at_once(source):
    refs = [*source.list().refs] * 50
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda ref: source.read(ref.uri), refs)) == [f"{ref.key}.jpg".encode() for ref in refs]


def test_what_is_gone_is_missing(source):
    ref = source.list().refs[0]
    for file in list(Path(source.config.images).parent.rglob("*.*")):
        if file.is_file():
            file.unlink()
    with pytest.raises(ImageError) as caught:
        source.read(ref.uri)
    assert (caught.value.reason, caught.value.stage) == ("missing", "read")


def test_relative_images_stay_readable_from_another_folder(tmp_path, monkeypatch):
    put(tmp_path / "in", "a.jpg")
    monkeypatch.chdir(tmp_path)
    source = source_of("in")
    [ref] = source.list().refs
    monkeypatch.chdir("/")
    assert source.read(ref.uri) == b"a.jpg"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("", "does not exist"),
        ("absent", "does not exist"),
        ("absent.txt", "No such file"),
        ("absent.json", "No such file"),
        ("absent.tar", "no file 'absent.tar'"),
        ("absent*.parquet", "no file 'absent"),
        ("shard-{0..1}.tar", "no file 'shard-1.tar'"),
        ("shard-{0.tar", "balanced braces"),
        ("ftp://host/images", "of the kind 'ftp'; wanted one of s3,"),
        ("https://host/images/", "cannot be listed; name the images in a list file"),
        ("notes.md", "no kind that is understood"),
        ("x" * 5000, "File name too long"),
        ("shard.tar.gz", "unpack it"),
        ("SHARD.TGZ", "unpack it"),
    ],
)
def test_what_cannot_be_opened_says_so_in_one_line(tmp_path, monkeypatch, images, message):
    monkeypatch.chdir(put(tmp_path, "notes.md"))
    make_tar(tmp_path / "shard-0.tar", "a.jpg")
    with pytest.raises(SourceError, match=message) as caught:
        source_of(images).list()
    assert "\n" not in str(caught.value)
