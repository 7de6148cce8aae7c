"""Images and lists at addresses: fsspec's memory with faults put before it, and a web server on a loopback port."""

from __future__ import annotations

import errno
import http.server
import itertools
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from extractors.images import ImageError
from pipeline.sources import ImageRef, SourceError, addresses, tar, tar_members, with_absolute_paths
from pipeline.sources.contract import SourceConfig
from storage.secrets import shown
from tests.unit.pipeline.sources.helpers import bytes_by_key, keys_of, source_of, tar_of

ROOT = "memory://bucket/images"
SECRET = "https://me:word@host/a.jpg?X-Amz-Signature=abc"


class Faulty(MemoryFileSystem):
    """fsspec's memory; `faults` is called with every address that is read, and `asked` notes which part."""

    cachable = False
    faults: ClassVar[Callable[[str], None]] = staticmethod(lambda path: None)
    asked: ClassVar[list[tuple[str, int | None, int | None]]] = []

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self.asked.append((path, start, end))
        type(self).faults(path)
        return bytes(super().cat_file(path, start, end, **kwargs))


@pytest.fixture(autouse=True)
def remote(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Faulty]]:
    """An empty memory without faults, an empty cache, and no waiting before another try."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    fsspec.register_implementation("memory", Faulty, clobber=True)
    addresses._file_system.cache_clear()
    Faulty.store.clear()
    Faulty.pseudo_dirs[:] = [""]
    Faulty.faults, Faulty.asked = staticmethod(lambda path: None), []
    monkeypatch.setattr(addresses, "WAITS", (0.0, 0.0))
    yield Faulty
    fsspec.register_implementation("memory", MemoryFileSystem, clobber=True)
    addresses._file_system.cache_clear()


def upload(name: str, data: bytes | str | None = None, root: str = ROOT) -> str:
    """An object; its bytes are its name, if they are not given."""
    content = name if data is None else data
    fsspec.filesystem("memory").pipe_file(f"{root}/{name}", content.encode() if isinstance(content, str) else content)
    return f"{root}/{name}"


def parquet_bytes(rows: int = 1000, /, **columns: Any) -> bytes:
    out = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), out, row_group_size=rows)
    return out.getvalue().to_pybytes()


# What is listed and read


def test_a_prefix_is_listed_like_a_folder() -> None:
    for name in ("b.jpg", "a/z.jpg", "a-1.PNG", "a#1.jpg", "notes.txt", "f/store.json", "f/manifest/x", "f/x.jpg"):
        upload(name)
    source = source_of(ROOT)
    listing = source.list()
    assert [ref.key for ref in listing.refs] == ["a#1", "a-1", "a/z", "b"]
    assert listing.refs[2] == ImageRef("a/z", f"{ROOT}/a/z.jpg") and listing.passed_over == 1
    assert bytes_by_key(pickle.loads(pickle.dumps(source)))["a#1"] == b"a#1.jpg"


@pytest.mark.parametrize("kind", ["list", "csv", "coco", "tar", "parquet", "parquet_paths", "glob_of_parquet"])
def test_every_kind_of_list_at_an_address(kind: str) -> None:
    names = ["1.jpg", "2.jpg", "3.jpg"]
    if kind not in ("tar", "parquet", "glob_of_parquet"):
        for name in names:
            upload(name)
    data = [name.encode() for name in names]
    make = {
        "list": lambda: upload("l.txt", "\n".join(["./1.jpg", f"{ROOT}/2.jpg", "3\t3.jpg"])),
        "csv": lambda: upload("l.csv", "\n".join(names)),
        "coco": lambda: upload(
            "a.json", json.dumps({"images": [{"id": n, "file_name": f"{n}.jpg"} for n in (1, 2, 3)]})
        ),
        "tar": lambda: upload("a.tar", tar_of(*names, "1.json")),
        "parquet": lambda: upload("a.parquet", parquet_bytes(2, image=data, key=[1, 2, 3])),
        "parquet_paths": lambda: upload("p.parquet", parquet_bytes(path=names)),
        "glob_of_parquet": lambda: (
            upload("d/a.parquet", parquet_bytes(2, image=data, key=[1, 2, 3]))[:-9] + "*.parquet"
        ),
    }
    source = source_of(make[kind]())
    assert bytes_by_key(source) == {"1": b"1.jpg", "2": b"2.jpg", "3": b"3.jpg"}
    refs = [*source.list().refs] * 20
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda ref: source.read(ref.uri), refs)) == [f"{ref.key}.jpg".encode() for ref in refs]


def test_local_lists_of_addresses(tmp_path: Path) -> None:
    upload("sub/1.jpg")
    (tmp_path / "l.txt").write_text(f"{ROOT}/sub/1.jpg\nx y\t{ROOT}/sub/1.jpg\n")
    assert bytes_by_key(source_of(tmp_path / "l.txt")) == {"images/sub/1": b"sub/1.jpg", "x y": b"sub/1.jpg"}
    assert keys_of(tmp_path / "l.txt", image_root=ROOT) == ["sub/1", "x y"]
    (tmp_path / "a.json").write_text(json.dumps({"images": [{"id": 5, "coco_url": f"{ROOT}/sub/1.jpg"}]}))
    assert bytes_by_key(source_of(tmp_path / "a.json")) == {"5": b"sub/1.jpg"}
    pq.write_table(pa.table({"path": [f"{ROOT}/sub/1.jpg"]}), tmp_path / "p.parquet")
    assert bytes_by_key(source_of(tmp_path / "p.parquet")) == {"images/sub/1": b"sub/1.jpg"}


def test_a_list_at_an_address_does_not_lead_to_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "mine.jpg").write_bytes(b"mine")
    upload("1.jpg")
    listed = upload(
        "l.txt", f"a\t{tmp_path}/mine.jpg\nb\tfile://{tmp_path}/mine.jpg\nc\t../../../{tmp_path}/mine.jpg\n1.jpg"
    )
    source = source_of(listed)
    for ref in source.list().refs[:3]:
        with pytest.raises(ImageError, match="does not exist"):
            source.read(ref.uri)


# Tars


@pytest.mark.parametrize("threads", [1, 4])
def test_a_remote_tar_is_read_in_large_pieces_in_order(
    remote: type[Faulty], monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(tar, "BLOCK", 8 * 1024)
    names = [f"{number:03}.jpg" for number in range(100)]
    source = source_of(upload("a.tar", tar_of(*names)))
    refs = source.list().refs
    remote.asked.clear()
    with ThreadPoolExecutor(threads) as pool:
        assert list(pool.map(lambda ref: source.read(ref.uri).decode(), refs)) == names
    starts = [start for _, start, _ in remote.asked]
    if threads > 1:  # how they take turns is the machine's: one that fell behind reads its piece again
        assert 13 <= len(set(starts)) <= len(starts) < 13 + threads
        return
    assert len(starts) == 13 and starts == sorted(starts)  # 1,024 bytes an image
    assert all(second >= first + 8 * 1024 - 1024 for first, second in itertools.pairwise(starts))


def test_what_a_remote_tar_holds_is_remembered_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = tar_members.open_file
    monkeypatch.setattr(tar_members, "open_file", lambda place: opened.append(place) or real(place))
    address = upload("a.tar", tar_of("1.jpg", "../2.jpg", "3.txt"))
    first = source_of(address).list()
    assert source_of(address).list() == first and first.passed_over == 2
    assert opened == [address]
    [cached] = (tmp_path / "cache/tars").iterdir()
    cached.write_text("[[1]]")  # damaged: read the tar again
    assert source_of(address).list() == first and len(opened) == 2
    upload("a.tar", tar_of("4.jpg", "5.jpg"))
    assert keys_of(address) == ["4", "5"] and len(opened) == 3
    monkeypatch.setattr(tar_members, "REMEMBERED", 1)
    upload("a.tar", tar_of("6.jpg", "7.jpg", "8.jpg"))
    assert keys_of(address) == keys_of(address) == ["6", "7", "8"] and len(opened) == 5


def test_tars_by_glob_and_braces() -> None:
    for number in range(3):
        upload(f"s-{number}.tar", tar_of(f"{number}.jpg"))
    assert keys_of(f"{ROOT}/s-*.tar") == ["0", "1", "2"]
    assert keys_of(f"{ROOT}/s-{{1..2}}.tar") == ["1", "2"]
    with pytest.raises(SourceError, match="there is no file 'memory://bucket/images/t-"):
        source_of(f"{ROOT}/t-*.tar")


def test_damaged_remote_tars_stop_the_plan() -> None:
    whole = tar_of("a.jpg", "b.jpg", "c.jpg")
    for data in (whole[:1500], whole[:1034] + b"\xff" + whole[1035:]):
        with pytest.raises(SourceError, match="wanted an uncompressed tar"):
            source_of(upload("bad.tar", data)).list()


# What goes wrong


class Web(Exception):
    """As aiohttp raises: its text has the whole address in it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, message='No', url='{SECRET}'")
        self.status, self.message = status, "No"


@pytest.mark.parametrize(
    ("error", "reason", "tries"),
    [
        (FileNotFoundError("x"), "missing", 1),
        (Web(404), "missing", 1),
        (PermissionError("Forbidden"), "no_permission", 1),
        (Web(403), "no_permission", 1),
        (TimeoutError(), "timeout", 3),
        (ConnectionResetError("reset"), "unreachable", 3),
        (OSError(errno.EIO, "InternalError"), "unreachable", 3),
        (Web(503), "unreachable", 3),
        (Web(400), "unreadable", 1),
        (ValueError("odd"), "unreadable", 1),
    ],
)
def test_faults_have_reasons_and_those_that_may_pass_are_tried_again(
    remote: type[Faulty], error: Exception, reason: str, tries: int
) -> None:
    address = upload("a.jpg")
    source = source_of(ROOT)

    def fail(path: str) -> None:
        raise error

    remote.faults = staticmethod(fail)
    with pytest.raises(ImageError) as caught:
        source.read(address)
    assert (caught.value.reason, caught.value.stage, len(remote.asked)) == (reason, "read", tries)
    assert "\n" not in str(caught.value) and "word" not in str(caught.value) and "abc" not in str(caught.value)
    remote.faults = staticmethod(lambda path: fail(path) if len(remote.asked) == 1 else None)
    remote.asked.clear()
    if tries > 1:
        assert source.read(address) == b"a.jpg"


def test_a_list_of_which_no_address_can_be_read_stops_the_plan(remote: type[Faulty]) -> None:
    listed = upload("l.txt", "\n".join(f"{number}.jpg" for number in range(100)))
    with pytest.raises(SourceError, match="100 images, and none of 8 that were tried can be read: .*does not exist"):
        source_of(listed).list()
    assert len(remote.asked) == 9
    upload("50.jpg")  # one of the eight
    assert len(source_of(listed).list().refs) == 100


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("memory://bucket/absent", "cannot be read"),
        ("memory://bucket/absent.txt", "cannot be read"),
        ("memory://bucket/a#b.tar", "has a # in it"),
        ("memory://bucket/a.tar.gz", "unpack it"),
        ("ftp://host/l.txt", "kind 'ftp'; wanted one of s3"),
        ("zip://x::http://host/l.txt", "kind 'zip'"),
        ("https://me:word@host/folder/?token=abc", "https://host/folder/.* cannot be listed"),
    ],
)
def test_addresses_that_stop_the_plan_in_one_line_without_secrets(images: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        source_of(images).list()
    text = str(caught.value)
    assert "\n" not in text and "word" not in text and "abc" not in text


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(url: str) -> None:
        raise ImportError("no gcsfs")

    monkeypatch.setattr(addresses, "file_system", absent)
    with pytest.raises(SourceError, match=r"gs:// needs a package that is missing; install gcsfs"):
        source_of("gs://bucket/l.txt").list()


@pytest.mark.parametrize(
    ("text", "public"),
    [
        (SECRET, "https://host/a.jpg?..."),
        ("s3://key:se/cret@bucket/a b.jpg", "s3://key:se/cret@bucket/a b.jpg"),  # a / ends the host: no secret there
        ("s3://key:word@bucket/a.jpg", "s3://bucket/a.jpg"),
        (f"cannot read '{SECRET}' or {SECRET}.", "cannot read 'https://host/a.jpg?...' or https://host/a.jpg?..."),
        ("/data/me@home/what?.jpg", "/data/me@home/what?.jpg"),
        ("https://host/u@v.jpg", "https://host/u@v.jpg"),
    ],
)
def test_shown(text: str, public: str) -> None:
    assert shown(text) == public


def test_addresses_stay_and_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    moved = with_absolute_paths(SourceConfig("a/../l.txt", keys="k.txt", image_root="s3://bucket/x"))
    assert (moved.images, moved.keys, moved.image_root) == (f"{tmp_path}/l.txt", f"{tmp_path}/k.txt", "s3://bucket/x")
    assert with_absolute_paths(SourceConfig("s3://bucket/x")) == SourceConfig("s3://bucket/x")


# The web


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A server of `tmp_path` that knows nothing of parts of files; `/denied` and `/broken` are what they say."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def do_GET(self) -> None:
            status = {"/denied.jpg": 403, "/broken.jpg": 500}.get(self.path.partition("?")[0])
            self.send_error(status) if status else super().do_GET()

        def log_message(self, *args: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_images_and_lists_on_the_web(web: str, tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"one")
    (tmp_path / "l.txt").write_text("a%20b.jpg?size=1\ngone.jpg\ndenied.jpg?sig=abc\nbroken.jpg\n")
    source = source_of(f"{web}/l.txt?token=abc")
    refs = source.list().refs
    assert [ref.key for ref in refs] == ["a b", "gone", "denied", "broken"]
    assert source.read(refs[0].uri) == b"one"
    reasons = []
    for ref in refs[1:]:
        with pytest.raises(ImageError) as caught:
            source.read(ref.uri)
        reasons.append(caught.value.reason)
        assert "abc" not in str(caught.value)
    assert reasons == ["missing", "no_permission", "unreachable"]


def test_a_server_that_sends_whole_files_only_is_no_place_for_tars(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.tar").write_bytes(tar_of("1.jpg", "2.jpg"))
    monkeypatch.setattr(tar, "BLOCK", 1024)
    source = source_of(f"{web}/a.tar")
    with pytest.raises((ImageError, SourceError), match="a.tar.* (whole files only|cannot be read)"):
        source.read(source.list().refs[1].uri)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_opens_its_own_connections() -> None:
    assert addresses._file_system("memory", 1) is not addresses._file_system("memory", 2)
