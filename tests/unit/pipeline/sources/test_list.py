"""Lists of images."""

from __future__ import annotations

import os

import pytest

from extractors.images import ImageError
from pipeline.sources import ImageRef, SourceError
from tests.unit.pipeline.sources.helpers import (
    bytes_by_key,
    keys_of,
    put,
    source_of,
    text_file,
)


def test_list_file_keeps_its_order_and_takes_any_extension(tmp_path):
    images = put(tmp_path / "images", "b.jpg", "a.jpg", "sub/c.bin", "d e.jpg")
    listed = f"\ufeff# mine\nb.jpg\r\n\n   \n{images}/a.jpg\nsub/c.bin\n./d e.jpg\nmy key\tb.jpg\n  # more\n"
    source = source_of(text_file(tmp_path / "list.LST", listed), image_root=str(images))
    assert bytes_by_key(source) == {
        "b": b"b.jpg",
        "a": b"a.jpg",
        "sub/c.bin": b"sub/c.bin",
        "d e": b"d e.jpg",
        "my key": b"b.jpg",
    }
    assert [ref.key for ref in source.list().refs] == ["b", "a", "sub/c.bin", "d e", "my key"]


def test_list_file_drops_and_counts_exact_repeats(tmp_path):
    (tmp_path / "b.jpg").touch()
    listing = source_of(text_file(tmp_path / "l.txt", "a.jpg\nb.jpg\na.jpg\n./a.jpg\nc.jpg"), exclude="c.*").list()
    assert [ref.key for ref in listing.refs] == ["a", "b"]
    assert (listing.repeated, listing.passed_over) == (2, 1)


def test_list_file_may_name_what_is_not_there(tmp_path):
    (tmp_path / "there.jpg").touch()
    source = source_of(text_file(tmp_path / "l.txt", "gone.jpg\nthere.jpg\n"))
    assert source.list().refs[0] == ImageRef("gone", str(tmp_path / "gone.jpg"))
    with pytest.raises(ImageError) as caught:
        source.read(str(tmp_path / "gone.jpg"))
    assert caught.value.reason == "missing"


def test_a_list_file_of_which_nothing_is_there_stops_the_plan(tmp_path):
    with pytest.raises(SourceError, match="none of them is in .*--image-root"):
        source_of(text_file(tmp_path / "l.txt", "gone.jpg\nlost.jpg\n")).list()


def test_an_image_root_may_climb(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"one")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    listed = text_file(tmp_path / "l.txt", f"{tmp_path}/photos/a.jpg\n")
    assert bytes_by_key(source_of(listed, image_root="../photos")) == {"a": b"one"}


def test_list_file_names_that_are_not_utf8(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"coffee")
    assert bytes_by_key(source_of(text_file(tmp_path / "l.txt", b"caf\xe9.jpg\n"))) == {"caf%E9": b"coffee"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.txt", "", "holds no images"),
        ("l.txt", "# nothing\n\n", "holds no images"),
        ("l.txt", "a.jpg\n\tb.jpg\n", "line 2 is 'b.jpg'; wanted one path, or key<TAB>path"),
        ("l.tsv", "k\ta.jpg\t3\n", "line 1"),
        ("l.csv", "1,a.jpg\n", "with a comma"),
        ("l.txt", "/elsewhere/a.jpg\n", r"'/elsewhere/a' .*absolute path.*--image-root"),
        ("l.txt", "../a.jpg\n", "'..' part"),
        ("l.txt", "x\ta.jpg\nx\tb.jpg\n", r"a\.jpg and .*b\.jpg have the same key 'x'\. Give it a key"),
        ("l.txt", "a.jpg\na.png\n", "--keep-extension"),
    ],
)
def test_list_files_that_stop_the_plan(tmp_path, name, text, message):
    with pytest.raises(SourceError, match=message):
        source_of(text_file(tmp_path / name, text)).list()


def test_a_comma_is_a_letter_like_any_other_outside_csv(tmp_path):
    (tmp_path / "a, b.jpg").touch()
    assert keys_of(text_file(tmp_path / "l.txt", "a, b.jpg\n")) == ["a, b"]
    assert keys_of(text_file(tmp_path / "l.csv", "k\ta, b.jpg\n")) == ["k"]


def test_an_image_root_that_is_no_folder_stops_the_plan(tmp_path):
    with pytest.raises(SourceError, match="--image-root '/nowhere' is no folder"):
        source_of(text_file(tmp_path / "l.txt", "a.jpg\n"), image_root="/nowhere").list()
