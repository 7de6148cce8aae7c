"""Every kind of source: what it lists, under which keys, in which order, and what stops it."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from extractors.images import ImageError
from pipeline.sources import ImageRef, SourceError
from pipeline.sources.checked import key_fault
from pipeline.sources.files import path_uri, uri_path
from tests.unit.pipeline.sources.helpers import bytes_by_key, keys_of, put, source_of

COCO_MINI = Path(__file__).parents[4] / "shared/data/detection/coco_mini"


def text_file(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def make_tar(path: Path, *names: str, mode: str = "w") -> Path:
    """A tar with a member for each name; its bytes are its name."""
    with tarfile.open(path, mode) as tar:
        for name in names:
            add_member(tar, name, os.fsencode(name))
    return path


def add_member(
    tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    tar.addfile(member, io.BytesIO(data))


def make_parquet(path: Path, row_group_size: int = 1000, /, **columns) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def coco_json(path: Path, *images: dict) -> Path:
    return text_file(path, json.dumps({"images": images}))


# Contract: the same tests for every kind


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


# What is opened


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


# Folder


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


# Keys


@pytest.mark.parametrize("key", ["a", "a/b", "a.b/c d", "..a", "a..", "a/...", "日本", "x" * 1024, "ab:c", "100%"])
def test_safe_keys(key):
    assert key_fault(key) is None


UNSAFE_KEYS = ["", "/a", "\\a", "\\\\host\\a", "C:/a", "c:a", "..", "../a", "a/..", "a/../b", "a\\..\\b"]
UNSAFE_KEYS += ["a\0", "a\nb", "\x7f", "x" * 1025, "é" * 513, "\ud800", "caf\udce9"]


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


# List file


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


# Tars


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


# COCO-style JSON


def test_coco_keys_are_ids_in_file_order(tmp_path):
    put(tmp_path / "images", "val/b.jpg", "c.jpg", "a d.jpg")
    path = coco_json(
        tmp_path / "a.json",
        {"id": 9, "file_name": "val/b.jpg"},
        {"id": "x7", "file_name": "c.jpg"},
        {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/a%20d.jpg?x=1"},
        {"id": 9, "file_name": "val/b.jpg"},
    )
    source = source_of(path, image_root=str(tmp_path / "images"))
    assert [ref.key for ref in source.list().refs] == ["9", "x7", "1"]
    assert source.list().repeated == 1
    assert bytes_by_key(source) == {"9": b"val/b.jpg", "x7": b"c.jpg", "1": b"a d.jpg"}


def test_coco_exclude(tmp_path):
    put(tmp_path, "b.jpg")
    path = coco_json(tmp_path / "a.json", {"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"})
    listing = source_of(path, exclude="A.*").list()
    assert ([ref.key for ref in listing.refs], listing.passed_over) == (["2"], 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged or of another kind"),
        (b"\xff\xfe", "damaged or of another kind"),
        ("[" * 100_000, "damaged or of another kind"),
        ("[]", 'no list "images"'),
        ('{"annotations": []}', 'no list "images"'),
        ('{"images": {}}', 'no list "images"'),
        ('{"images": []}', "holds no images"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, 3]}', r'images\[1\] has the "id" None'),
        ('{"images": [{"id": true, "file_name": "a.jpg"}]}', '"id" True'),
        ('{"images": [{"id": 1.5, "file_name": "a.jpg"}]}', '"id" 1.5'),
        ('{"images": [{"id": 1}]}', 'neither "file_name" nor "coco_url"'),
        ('{"images": [{"id": 1, "file_name": 7}]}', 'neither "file_name"'),
        ('{"images": [{"id": 1, "file_name": "\\ud800"}]}', "cannot be a file name"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": "1", "file_name": "b.jpg"}]}', "same key '1'.*ids"),
        ('{"images": [{"id": 1, "file_name": "nul\\u0000.jpg"}]}', "none of them is in .*--image-root"),
    ],
)
def test_coco_files_that_stop_the_plan(tmp_path, text, message):
    put(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match=message) as caught:
        source_of(text_file(tmp_path / "bad.json", text)).list()
    assert "\n" not in str(caught.value)


def test_coco_with_some_images_there_is_no_plan_error(tmp_path):
    put(tmp_path, "b.jpg")
    path = coco_json(tmp_path / "a.json", {"id": 1, "file_name": "gone.jpg"}, {"id": 2, "file_name": "b.jpg"})
    assert keys_of(path) == ["1", "2"]


@pytest.mark.skipif(not COCO_MINI.exists(), reason="the real COCO sample is not beside this checkout (../shared)")
def test_real_coco_annotations():
    annotations = COCO_MINI / "annotations/instances_val2017.json"
    source = source_of(annotations, image_root=str(COCO_MINI / "val2017"))
    entries = json.loads(annotations.read_bytes())["images"]
    listing = source.list()
    assert [ref.key for ref in listing.refs] == [str(entry["id"]) for entry in entries]
    assert all(source.read(ref.uri)[:3] == b"\xff\xd8\xff" for ref in listing.refs)
    with pytest.raises(SourceError, match="--image-root"):
        source_of(annotations).list()


# Parquet


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
