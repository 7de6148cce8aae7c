"""What tests of sources share: short names for opening and listing, and files to list."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources import SourceConfig, open_source
from pipeline.sources.contract import Source

UNSAFE_KEYS = ["", "/a", "\\a", "\\\\host\\a", "C:/a", "c:a", "..", "../a", "a/..", "a/../b", "a\\..\\b"]
UNSAFE_KEYS += ["a\0", "a\nb", "\x7f", "x" * 1025, "é" * 513, "\ud800", "caf\udce9"]


def source_of(images: object, **settings: object) -> Source:
    return open_source(SourceConfig(images=str(images), **settings))  # type: ignore[arg-type]


def keys_of(images: object, **settings: object) -> list[str]:
    return [ref.key for ref in source_of(images, **settings).list().refs]


def bytes_by_key(source: Source) -> dict[str, bytes]:
    return {ref.key: source.read(ref.uri) for ref in source.list().refs}


def put(folder: Path, *names: str) -> Path:
    """A file for each name; its bytes are its name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.fsencode(name))
    return folder


def text_file(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def tar_of(*names: str, mode: Literal["w", "w:gz"] = "w") -> bytes:
    """A tar with a member for each name; its bytes are its name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name in names:
            add_member(tar, name, os.fsencode(name))
    return out.getvalue()


def make_tar(path: Path, *names: str, mode: Literal["w", "w:gz"] = "w") -> Path:
    return text_file(path, tar_of(*names, mode=mode))


def add_member(
    tar: tarfile.TarFile, name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    tar.addfile(member, io.BytesIO(data))


def make_parquet(path: Path, row_group_size: int = 1000, /, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def coco_json(path: Path, *images: dict[str, Any]) -> Path:
    return text_file(path, json.dumps({"images": images}))
