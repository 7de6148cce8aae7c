"""Tars of images."""

from __future__ import annotations

import os
import tarfile

import pytest

from extractors.images import ImageError
from pipeline.sources import SourceError
from tests.unit.pipeline.sources.helpers import (
    add_member,
    bytes_by_key,
    keys_of,
    make_tar,
    put,
    source_of,
    text_file,
)


def test_tar_keys_are_those_of_webdataset(tmp_path):
    tar = make_tar(tmp_path / "a.tar", "d.1/b.jpg", "d.1/b.json", "a.left.PNG", "c.txt", "plain")
    listing = source_of(tar).list()
    assert [ref.key for ref in listing.refs] == ["d.1/b", "a"]
    assert listing.passed_over == 3
    [first, _] = listing.refs
    assert first.uri.startswith(f"{tar}#d.1/b.jpg@") and first.uri.endswith("+9")


def test_tars_are_listed_shard_by_shard(tmp_path):
    for shard in ("002", "000", "001"):
        make_tar(tmp_path / f"{shard}.tar", f"{shard}-b.jpg", f"{shard}-a.jpg")
    everything = ["000-b", "000-a", "001-b", "001-a", "002-b", "002-a"]
    assert keys_of(tmp_path / "*.tar") == everything
    assert keys_of(tmp_path / "{000..002}.tar") == everything
    assert keys_of(f"{tmp_path}/00{{1,0,1}}.tar") == everything[2:4] + everything[:2]


def test_a_tar_whose_name_looks_like_a_pattern(tmp_path):
    assert keys_of(make_tar(tmp_path / "a[1]#{x}.tar", "b.jpg")) == ["b"]
    assert bytes_by_key(source_of(tmp_path / "a[1]#{x}.tar")) == {"b": b"b.jpg"}


def test_tar_members_that_lead_out_of_it_are_passed_over(tmp_path):
    put(tmp_path, "secret.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add_member(tar, "folder.jpg", kind=tarfile.DIRTYPE)
        add_member(tar, "soft.jpg", kind=tarfile.SYMTYPE, link=str(tmp_path / "secret.jpg"))
        add_member(tar, "hard.jpg", kind=tarfile.LNKTYPE, link="good.jpg")
        add_member(tar, "pipe.jpg", kind=tarfile.FIFOTYPE)
        add_member(tar, "/etc/absolute.jpg", b"x")
        add_member(tar, "a/../../up.jpg", b"x")
        add_member(tar, "good.jpg", b"good")
        sparse = tarfile.TarInfo("sparse.jpg")
        sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "10"}
        tar.addfile(sparse)
    source = source_of(tmp_path / "a.tar")
    assert bytes_by_key(source) == {"good": b"good"}
    assert source.list().passed_over == 6


def test_tar_names_beyond_ascii_and_beyond_100_letters(tmp_path):
    names = ["x" * 150 + "/é #@+.jpg", os.fsdecode(b"caf\xe9.jpg")]
    source = source_of(make_tar(tmp_path / "a.tar", *names))
    assert bytes_by_key(source) == {"x" * 150 + "/é #@+": os.fsencode(names[0]), "caf%E9": b"caf\xe9.jpg"}
    assert all(ref.uri.isprintable() for ref in source.list().refs)


def test_two_images_in_one_tar_sample(tmp_path):
    tar = make_tar(tmp_path / "a.tar", "1.jpg", "1.seg.png")
    with pytest.raises(SourceError, match=r"same key '1'.*--keep-extension"):
        source_of(tar).list()
    assert keys_of(tar, keep_extension=True) == ["1.jpg", "1.seg.png"]
    assert keys_of(tar, exclude="*.seg.png") == ["1"]


def test_one_key_in_two_tars_has_no_easy_way_out(tmp_path):
    make_tar(tmp_path / "a.tar", "1.jpg")
    make_tar(tmp_path / "b.tar", "1.jpg")
    with pytest.raises(SourceError, match="store each") as caught:
        source_of(tmp_path / "*.tar").list()
    assert "--keep-extension" not in str(caught.value)


def test_tars_that_are_none(tmp_path):
    make_tar(tmp_path / "gzipped.tar", "a.jpg", mode="w:gz")
    text_file(tmp_path / "empty.tar", "")
    text_file(tmp_path / "text.tar", "hello" * 500)
    (tmp_path / "folder.tar").symlink_to("nowhere")
    for name in ("gzipped.tar", "empty.tar", "text.tar"):
        with pytest.raises(SourceError, match=f"{name} .*wanted an uncompressed tar"):
            source_of(tmp_path / name).list()


@pytest.mark.parametrize("length", [700, 1024 + 300, 1024 + 512 + 3])
def test_a_cut_tar_stops_the_plan(tmp_path, length):
    """Cut in the first image, the second header, the second image: tarfile alone would miss the second."""
    tar = make_tar(tmp_path / "a.tar", "a.jpg", "b.jpg")
    tar.write_bytes(tar.read_bytes()[:length])
    with pytest.raises(SourceError, match="wanted an uncompressed tar"):
        source_of(tar).list()


def test_a_damaged_header_does_not_end_the_listing(tmp_path):
    tar = make_tar(tmp_path / "a.tar", "a.jpg", "b.jpg", "c.jpg")
    data = bytearray(tar.read_bytes())
    data[1024 + 10] ^= 0xFF
    tar.write_bytes(data)
    with pytest.raises(SourceError, match="damaged at byte 1,024"):
        source_of(tar).list()


def test_a_tar_cut_after_listing_is_a_bad_image(tmp_path):
    tar = make_tar(tmp_path / "a.tar", "a.jpg", "b.jpg")
    source = source_of(tar)
    last = source.list().refs[-1]
    os.truncate(tar, 1024 + 512 + 3)
    with pytest.raises(ImageError, match="ends before the image") as caught:
        source.read(last.uri)
    assert (caught.value.reason, caught.value.stage) == ("unreadable", "read")
