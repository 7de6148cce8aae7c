"""Arrow files and streams, and data sets that Hugging Face saved."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import feather

from extractors.images import ImageError
from pipeline.sources import SourceError
from tests.unit.pipeline.sources.helpers import bytes_by_key, keys_of, put, source_of


def write(path: Path, kind: str = "file", rows: int = 1000, /, **columns: Any) -> Path:
    table = pa.table(columns)
    if kind == "feather":
        feather.write_feather(table, path, compression="lz4", chunksize=rows)
        return path
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


@pytest.mark.parametrize("kind", ["file", "stream", "feather"])
def test_bytes_structs_and_paths(tmp_path: Path, kind: str) -> None:
    put(tmp_path, "a.jpg", "sub/b.jpg")
    data = [f"{number}".encode() for number in range(10)]
    source = source_of(write(tmp_path / "bytes.arrow", kind, 3, image=data, id=list(range(10))))
    assert bytes_by_key(source) == {str(number): data[number] for number in range(10)}
    structs = [{"bytes": b"in", "path": "x.jpg"}, {"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}]
    source = source_of(write(tmp_path / "hf.arrow", kind, 2, image=structs))
    refs = source.list().refs
    assert [ref.key for ref in refs] == ["hf-0", "hf-1", "hf-2"]
    assert [source.read(ref.uri) for ref in refs[:2]] == [b"in", b"a.jpg"]
    with pytest.raises(ImageError, match="holds no image"):
        source.read(refs[2].uri)
    source = source_of(write(tmp_path / "paths.feather", kind, image_path=["a.jpg", "sub/b.jpg"]))
    assert bytes_by_key(source) == {"a": b"a.jpg", "sub/b": b"sub/b.jpg"}


def test_copies_and_threads(tmp_path: Path) -> None:
    data = [f"{number}".encode() for number in range(100)]
    path = write(tmp_path / "b.arrow", "file", 7, image=data)
    source = source_of(path)
    source.read(f"{path}#3")
    copy = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as threads:
        rows = [(at * 37) % 100 for at in range(400)]
        assert list(threads.map(lambda row: copy.read(f"{path}#{row}"), rows)) == [data[row] for row in rows]


def test_a_folder_of_arrow_files(tmp_path: Path) -> None:
    for number in (1, 0):
        write(tmp_path / f"p-{number}.arrow", "file", image=[b"x"], key=[f"k{number}"])
    put(tmp_path, "_SUCCESS", ".hidden")
    assert keys_of(tmp_path) == ["k0", "k1"]
    put(tmp_path, "x.jpg")
    assert keys_of(tmp_path) == ["x"]


def test_what_datasets_saved(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(decode=False), "image_id": datasets.Value("int64")})
    rows = {"image": [{"bytes": b"%d" % number, "path": None} for number in range(5)], "image_id": list(range(5, 10))}
    saved = datasets.Dataset.from_dict(rows, features=features)
    saved.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert bytes_by_key(source_of(tmp_path / "one")) == {str(number + 5): b"%d" % number for number in range(5)}
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(SourceError, match="holds the data sets test, train; name"):
        source_of(tmp_path / "both")
    assert len(keys_of(tmp_path / "both/test")) == 5


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", "file", image=[b"x" * 1000])
    path.write_bytes(path.read_bytes()[:600])
    for name, content in (("cut", path.read_bytes()), ("text", b"hello world, no Arrow"), ("empty", b"")):
        (tmp_path / f"{name}.arrow").write_bytes(content)
        with pytest.raises(SourceError, match=f"{name}.arrow .*wanted an Arrow IPC file") as caught:
            source_of(tmp_path / f"{name}.arrow")
        assert "\n" not in str(caught.value)


def test_a_file_at_an_address_is_read_in_parts(tmp_path: Path) -> None:
    table = pa.table({"image": [b"a", b"bb", b"ccc"], "key": ["x", "y", "z"]})
    memory = fsspec.filesystem("memory")
    with memory.open("/arrow/a.arrow", "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    source = source_of("memory://arrow/a.arrow")
    assert [(ref.key, source.read(ref.uri)) for ref in source.list().refs] == [("x", b"a"), ("y", b"bb"), ("z", b"ccc")]
    again = pickle.loads(pickle.dumps(source))
    assert again.read(source.list().refs[2].uri) == b"ccc"


def test_a_stream_at_an_address_is_refused(tmp_path: Path) -> None:
    table = pa.table({"image": [b"a"], "key": ["x"]})
    with fsspec.filesystem("memory").open("/arrow/s.arrow", "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    with pytest.raises(SourceError, match="would be fetched whole; copy it here, or save it as Parquet"):
        source_of("memory://arrow/s.arrow")
