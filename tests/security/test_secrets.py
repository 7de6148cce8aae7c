"""What stands in an address and is nobody's business, a password or a signature, is neither printed nor stored."""

from __future__ import annotations

import base64
import pickle
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from storage import open_store
from storage.secrets import shown
from tests.helpers import TINY
from tests.unit.extractors.pictures import photo, saved
from workflows.cli import main

PASSWORD, SIGNATURE = "hunter2hunter2", "c0ffeec0ffee"


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("http://me:hunter2@host/a.jpg", "http://host/a.jpg"),
        ("https://me:hun@ter2@host:81/a.jpg", "https://host:81/a.jpg"),
        ("https://token@host", "https://host"),
        ("https://host/a.jpg?X-Amz-Signature=c0ffee&b=1", "https://host/a.jpg?..."),
        ("cannot read 'http://me:hunter2@host/a?k=c0ffee', try", "cannot read 'http://host/a?...', try"),
        ("ftp://me:hunter2@a/b and s3://bucket/a@b.jpg", "ftp://a/b and s3://bucket/a@b.jpg"),
        ("/a/b@c?d.jpg", "/a/b@c?d.jpg"),
    ],
)
def test_secrets_are_taken_out_of_addresses(address: str, wanted: str) -> None:
    assert shown(address) == wanted


class _Server(BaseHTTPRequestHandler):
    """Gives one sound image, one that is none, and otherwise nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        found = {"/good.jpg": saved(photo(), "JPEG"), "/bad.jpg": b"<html>", "/list.txt": self.server.listing}
        data = found.get(self.path.partition("?")[0])
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        """The test looks for secrets in the output; these would be the server's."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    found = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    found.listing = b""
    thread = threading.Thread(target=found.serve_forever, daemon=True)
    thread.start()
    yield found
    found.shutdown()
    thread.join()


def assert_no_secret(folder: Path, *texts: str) -> None:
    secrets = [each.encode() for each in (PASSWORD, SIGNATURE)]
    secrets += [base64.b64encode(f"me:{PASSWORD}".encode())]
    stored = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert stored
    for where, data in (*stored.items(), *((f"text {at}", text.encode()) for at, text in enumerate(texts))):
        for secret in secrets:
            at = data.find(secret)
            assert at < 0, f"{where}: {data[max(0, at - 80) : at + 40]!r}"


def test_a_job_neither_prints_nor_stores_them(tmp_path: Path, server: ThreadingHTTPServer, capfd) -> None:
    host = f"http://me:{PASSWORD}@127.0.0.1:{server.server_port}"
    names = ("good", "bad", "gone")
    server.listing = "".join(f"{name}\t{host}/{name}.jpg?sig={SIGNATURE}\n" for name in names).encode()
    (tmp_path / "list.txt").write_bytes(server.listing)
    for images in (str(tmp_path / "list.txt"), f"{host}/list.txt?sig={SIGNATURE}"):
        out = tmp_path / f"store{len(images)}"
        status = main(["extract", "grid", "--images", images, "--out", str(out), "--model", "r50", *TINY])
        printed = capfd.readouterr()
        assert_no_secret(out, printed.out, printed.err)
        if status == 0:
            assert len(open_store(out)) == 1 and len(open_store(out).errors()) == 2, printed
        for command in (["info", str(out)], ["info", str(out), "--json"], ["errors", str(out)], ["verify", str(out)]):
            main(command)
        printed = capfd.readouterr()
        assert_no_secret(out, printed.out, printed.err)


def test_a_job_that_cannot_begin_does_not_print_them(tmp_path: Path, server: ThreadingHTTPServer, capfd) -> None:
    host = f"http://me:{PASSWORD}@127.0.0.1:{server.server_port}"
    for images in (f"{host}/none.txt?sig={SIGNATURE}", f"{host}/none.tar?sig={SIGNATURE}", f"nfs://me:{PASSWORD}@x/y"):
        with pytest.raises(SystemExit):
            raise SystemExit(
                main(["extract", "grid", "--images", images, "--out", str(tmp_path / "x"), "--model", "r50", *TINY])
            )
        printed = capfd.readouterr()
        assert PASSWORD not in printed.out + printed.err and SIGNATURE not in printed.out + printed.err


def test_a_store_at_an_address_neither_prints_nor_stores_them(tmp_path: Path, capfd) -> None:
    out = f"memory://me:{PASSWORD}@host/features"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(saved(photo(), "JPEG"))
    (tmp_path / "photos" / "b.jpg").write_bytes(b"no image")
    extract = ["extract", "grid", "--images", str(tmp_path / "photos"), "--out", out, "--model", "r50", *TINY]
    other = [*extract, "--dtype", "bfloat16"]
    commands = (["plan", *extract[1:]], extract, [*extract, "--json"], ["info", out], ["errors", out], ["verify", out])
    for command in (*commands, other, ["repair", out], ["compact", out]):
        status = main(command)
        assert status == (2 if command == other else 0), (command, capfd.readouterr())
    reopened = pickle.loads(pickle.dumps(open_store(out)))
    assert len(reopened) == 1 and PASSWORD not in str(reopened.path)
    stored = b"".join(bytes(file.getbuffer()) for file in fsspec.filesystem("memory").store.values())
    printed = capfd.readouterr()
    assert b"xxh3_128" in stored and "done" in printed.out
    assert PASSWORD.encode() not in stored and PASSWORD not in printed.out + printed.err


def test_a_store_that_cannot_be_reached_is_told_without_them(capfd) -> None:
    assert main(["info", f"nonesuch://me:{PASSWORD}@host/features"]) == 2
    printed = capfd.readouterr()
    assert "nonesuch://host/features cannot be reached" in printed.err and PASSWORD not in printed.out + printed.err
