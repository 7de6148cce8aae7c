"""Folders of images, and the keys that files get."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from extractors.images import ImageError
from pipeline.sources import SourceError
from pipeline.sources.checked import key_fault
from pipeline.sources.files import path_uri, uri_path
from tests.unit.pipeline.sources.helpers import (
    UNSAFE_KEYS,
    bytes_by_key,
    coco_json,
    keys_of,
    put,
    source_of,
)


def test_folder_takes_images_of_any_case_and_counts_the_rest(tmp_path):
    put(tmp_path, "b/2.JPEG", "a.PnG", "b/1.heic", "notes.txt", "b/.jpg", "no_extension", "v1.5/x.y.webp")
    listing = source_of(tmp_path).list()
    assert [ref.key for ref in listing.refs] == ["a", "b/1", "b/2", "v1.5/x.y"]
    assert listing.passed_over == 3


def test_folder_is_sorted_by_key_not_by_folder(tmp_path):
    assert keys_of(put(tmp_path, "b.jpg", "a/z.jpg", "a-1.jpg", "c/a.jpg")) == ["a-1", "a/z", "b", "c/a"]


def test_folder_all_files_keeps_extensions(tmp_path):
    put(tmp_path, "a.jpg", "a.dat", "b/plain")
    assert keys_of(tmp_path, all_files=True) == ["a.dat", "a.jpg", "b/plain"]


def test_folder_without_images_suggests_all_files_where_that_helps(tmp_path):
    put(tmp_path, "a.dat", "b.dat", "c.jpg")
    with pytest.raises(SourceError, match=r"3 files passed over .*2 without an image extension.*--all-files"):
        source_of(tmp_path, exclude="*.jpg").list()
    with pytest.raises(SourceError, match="3 excluded by --exclude") as caught:
        source_of(tmp_path, exclude="*").list()
    assert "--all-files" not in str(caught.value)


def test_exclude_matches_path_or_name_in_any_case(tmp_path):
    put(tmp_path, "a.jpg", "thumbs/b.jpg", "c/Thumb_1.JPG", "c/d.jpg")
    listing = source_of(tmp_path, exclude="thumbs/*, thumb_*.jpg,").list()
    assert [ref.key for ref in listing.refs] == ["a", "c/d"]
    assert listing.passed_over == 2


def test_two_files_with_one_key_stop_the_plan(tmp_path):
    put(tmp_path, "x/a.jpg", "x/a.png", "b.jpg", "b.gif", "c.jpg")
    with pytest.raises(SourceError, match=r"b\.gif and .*b\.jpg have the same key 'b' \(and 1 more.*--keep-extension"):
        source_of(tmp_path).list()
    assert keys_of(tmp_path, keep_extension=True) == ["b.gif", "b.jpg", "c.jpg", "x/a.jpg", "x/a.png"]


def test_linked_files_are_followed_linked_folders_only_counted(tmp_path):
    put(tmp_path / "elsewhere", "a.jpg")
    root = put(tmp_path / "in", "b.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "elsewhere/a.jpg")
    (root / "loop").symlink_to(root)
    source = source_of(root)
    assert bytes_by_key(source) == {"b": b"b.jpg", "link": b"a.jpg"}
    assert source.list().passed_over == 1


def test_a_link_to_nowhere_is_listed_and_then_missing(tmp_path):
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    source = source_of(tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        source.read(source.list().refs[0].uri)


def test_a_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    source = source_of(tmp_path)
    with pytest.raises(ImageError, match=r"^\S+ is not a regular file$") as caught:
        source.read(source.list().refs[0].uri)
    assert caught.value.reason == "unreadable"


def test_a_store_among_the_images_is_skipped(tmp_path):
    put(tmp_path, "a.jpg", "features/store.json", "features/manifest/0.json", "features/thumbs/b.jpg")
    listing = source_of(tmp_path).list()
    assert ([ref.key for ref in listing.refs], listing.passed_over) == (["a"], 0)
    with pytest.raises(SourceError, match="is a Triptych store"):
        source_of(tmp_path / "features").list()


def test_an_unreadable_folder_below_stops_the_plan(tmp_path, monkeypatch):
    put(tmp_path, "a.jpg", "locked/b.jpg")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SourceError, match="locked' cannot be read"):
        source_of(tmp_path).list()


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EACCES, "no_permission"), (errno.ENOTDIR, "missing"), (errno.EIO, "unreadable")]
)
def test_read_errors_have_reasons(tmp_path, monkeypatch, number, reason):
    source = source_of(put(tmp_path, "a.jpg"))
    [ref] = source.list().refs
    monkeypatch.setattr(Path, "read_bytes", failing_with(number))
    with pytest.raises(ImageError) as caught:
        source.read(ref.uri)
    assert caught.value.reason == reason


def test_a_machine_out_of_file_handles_is_no_bad_image(tmp_path, monkeypatch):
    source = source_of(put(tmp_path, "a.jpg"))
    [ref] = source.list().refs
    monkeypatch.setattr(Path, "read_bytes", failing_with(errno.EMFILE))
    with pytest.raises(OSError, match="Too many open files"):
        source.read(ref.uri)


def failing_with(number: int):
    def fail(self: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(self))

    return fail


def test_names_that_are_not_utf8_are_listed_and_read(tmp_path):
    names = [b"caf\xe9.jpg", b"\xff\xfe.jpg", "日本 1.jpg".encode(), b"50%.jpg", b"a#1@2+3.jpg"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    source = source_of(tmp_path)
    assert sorted(bytes_by_key(source).values()) == sorted(names)
    keys = [ref.key for ref in source.list().refs]
    assert keys == ["%FF%FE", "50%", "a#1@2+3", "caf%E9", "日本 1"]
    assert all(ref.uri.isprintable() and ref.uri.encode() for ref in source.list().refs)


@pytest.mark.parametrize("path", ["/a/b c.jpg", "/a/é.jpg", "/a#b", "/a\nb", "/a/%41", "/caf\udce9", "/x\0y"])
def test_a_path_survives_as_uri(path):
    uri = path_uri(Path(path))
    assert uri.isprintable() and "#" not in uri and str(uri_path(uri)) == path


@pytest.mark.parametrize("key", ["a", "a/b", "a.b/c d", "..a", "a..", "a/...", "日本", "x" * 1024, "ab:c", "100%"])
def test_safe_keys(key):
    assert key_fault(key) is None


@pytest.mark.parametrize("key", UNSAFE_KEYS)
def test_unsafe_keys_stop_the_plan_and_are_named(tmp_path, key):
    assert key_fault(key)
    path = coco_json(tmp_path / "a.json", {"id": "good", "file_name": "a.jpg"}, {"id": key, "file_name": "b.jpg"})
    with pytest.raises(SourceError, match="cannot be used") as caught:
        source_of(path).list()
    assert repr(key[:80]) in str(caught.value)
    str(caught.value).encode()


def test_a_file_name_with_a_line_break_stops_the_plan(tmp_path):
    put(tmp_path, "a\nb.jpg")
    with pytest.raises(SourceError, match=r"'a\\nb'.*control character.*--exclude") as caught:
        source_of(tmp_path).list()
    assert "\n" not in str(caught.value)
