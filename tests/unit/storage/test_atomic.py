"""Files appear whole or not at all, and a sealed document notices every flipped bit."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from storage import StoreError
from storage.atomic import (
    locked,
    partial_path,
    publish,
    read_sealed,
    remove_stale_partials,
    seal,
    unseal,
    write_sealed,
    writing,
)
from tests.unit.storage.samples import contents, partials

DOCUMENT = {
    "unit": "00ff",
    "keys": ["a", "b/c", "é 图", 'quote" and \\ slash'],
    "numbers": [0, 1, -7, 0.1, 1e300, 12345678901234567890],
    "nested": {"none": None, "yes": True, "no": False, "empty": [{}, [], ""]},
}


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def dead_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_an_operating_system_error_becomes_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught, writing(tmp_path / "shard"):
        no_space()
    message = str(caught.value)
    assert message.startswith(f"cannot write {tmp_path}/shard: No space left on device. ")
    assert "What was committed before is kept" in message and "run the same command again" in message
    assert "\n" not in message


def test_other_errors_pass_through_a_writing_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError


def test_partial_names_are_hidden_siblings_that_never_repeat(tmp_path: Path) -> None:
    final = tmp_path / "shards" / "unit.arrow"
    first, second = partial_path(final), partial_path(final)
    assert first != second
    assert first.parent == final.parent
    assert first.name.startswith(".unit.arrow~") and first.suffix == ".partial"
    assert first.name.split("~")[1:3] == [socket.gethostname(), str(os.getpid())]


def test_publishing_gives_the_final_name_and_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "partial").write_bytes(b"new")
    (tmp_path / "final").write_bytes(b"old")
    publish(tmp_path / "partial", tmp_path / "final")
    assert contents(tmp_path) == {"final": b"new"}


def test_partials_of_dead_processes_go_and_all_others_stay(tmp_path: Path) -> None:
    host = socket.gethostname()
    dead = tmp_path / f".a.arrow~{host}~{dead_process()}~01234567.partial"
    stay = [
        tmp_path / f".a.arrow~{host}~{os.getpid()}~01234567.partial",  # a live process of this host
        tmp_path / f".a.arrow~{host}-else~{dead_process()}~01234567.partial",  # nobody can tell from here
        tmp_path / ".something.partial",
        tmp_path / f"a.arrow~{host}~{dead_process()}~01234567.partial",  # not hidden: not ours
        tmp_path / "a.arrow",
    ]
    for path in [dead, *stay]:
        path.touch()
    assert remove_stale_partials(tmp_path) == [dead]
    assert sorted(tmp_path.iterdir()) == sorted(stay)


def test_a_process_of_another_user_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_permitted(pid: int, signal: int) -> None:
        raise PermissionError

    path = tmp_path / f".a~{socket.gethostname()}~{dead_process()}~0.partial"
    path.touch()
    monkeypatch.setattr(os, "kill", not_permitted)
    assert remove_stale_partials(tmp_path) == []
    assert path.exists()


def test_a_lock_excludes_others_until_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / ".commit.lock"
    with path.open("a") as other:
        with locked(path), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_is_released_when_its_block_fails(tmp_path: Path) -> None:
    path = tmp_path / ".commit.lock"
    with pytest.raises(ZeroDivisionError), locked(path):
        raise ZeroDivisionError
    with path.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_sealed_document_comes_back() -> None:
    assert unseal(seal(DOCUMENT), Path("x")) == DOCUMENT


def test_every_flipped_bit_of_a_sealed_document_is_noticed() -> None:
    data = seal(DOCUMENT)
    for place in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << (place % 8)
        with pytest.raises(StoreError, match=r"entry\.json is damaged"):
            unseal(bytes(flipped), Path("entry.json"))


def test_a_cut_or_lengthened_document_is_noticed() -> None:
    data = seal(DOCUMENT)
    for wrong in [*(data[:length] for length in range(len(data))), data + b"\n", b" " + data, data + data]:
        with pytest.raises(StoreError, match="damaged"):
            unseal(wrong, Path("x"))


@pytest.mark.parametrize("data", [b"[]", b"1", b'"content"', b"{}", b'{"content":{}}', b"\xff\xfe", b"null"])
def test_json_that_is_no_sealed_document_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match="damaged"):
        unseal(data, Path("x"))


def test_writing_a_sealed_document_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_sealed(tmp_path / "run.json", {"n": 1})
    with (tmp_path / "run.json").open("rb") as reader:
        write_sealed(tmp_path / "run.json", {"n": 2})
        assert unseal(reader.read(), tmp_path) == {"n": 1}  # who is reading reads the old one to its end
    assert read_sealed(tmp_path / "run.json") == {"n": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_full_disk_leaves_the_old_document_and_no_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sealed(tmp_path / "run.json", {"n": 1})
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match="No space left"):
        write_sealed(tmp_path / "run.json", {"n": 2})
    assert read_sealed(tmp_path / "run.json") == {"n": 1}
    assert partials(tmp_path) == []


def test_a_missing_folder_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write .*No such file or directory"):
        write_sealed(tmp_path / "absent" / "run.json", {})
