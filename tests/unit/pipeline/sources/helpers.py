"""What tests of sources share: short names for opening and listing, and files to list."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

from pipeline.sources import SourceConfig, open_source
from pipeline.sources.contract import Source


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


def tar_of(*names: str) -> bytes:
    """A tar with a member for each name; its bytes are its name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return out.getvalue()
