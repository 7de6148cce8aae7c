"""Every reader of foreign bytes: how a small sound sample is made, how all of it is read, and how it may be damaged."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from extractors.given_boxes import read_boxes
from extractors.images import decode
from extractors.weights import read_checkpoint
from pipeline.sources import SourceConfig, open_source
from storage import FeatureLayout, FeatureStore, Spec, StoreWriter, open_store, verify_store
from storage.against import coverage
from storage.compact import fold
from storage.formats import open_shard_file
from storage.interop import FORMATS, unpickling
from storage.interop.base import BadRow, ImportOptions
from storage.interop.lmdbs import write_entries
from storage.interop.transfer import read_sizes
from tests.fuzz.mutations import Damage, damaged, damaged_member, other_values
from tests.fuzz.properties import check_line
from tests.unit.interop.samples_npz import region_record as wide_record
from tests.unit.storage.samples import GRID, REGIONS, grid_record, make_store, region_record, with_layout

Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """One reader.

    make    writes the sample below a folder
    read    reads all of it, from that folder
    damage  of one file, whose name ends in `only`
    asks_first  see `works_or_says_why`
    """

    make: Callable[[Path], object]
    read: Callable[[Path], object]
    damage: Callable[[], st.SearchStrategy[Damage]] = damaged
    only: str = ""
    asks_first: bool = False

    @cache  # noqa: B019 (readers live as long as the process)
    def sample(self) -> Files:
        with TemporaryDirectory() as name:
            folder = Path(name)
            self.make(folder)
            return {
                path.relative_to(folder).as_posix(): path.read_bytes()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }

    def cases(self) -> st.SearchStrategy[tuple[str, Damage]]:
        names = sorted(name for name in self.sample() if name.endswith(self.only) and self.sample()[name])
        return st.tuples(st.sampled_from(names), self.damage())

    def write(self, folder: Path, file: str, damage: Damage) -> None:
        """The sample with one file damaged."""
        for name, data in self.sample().items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(damage(data) if name == file else data)


# Stores


def _spec(view: str, format: str) -> Spec:
    if view == "grid":
        return GRID
    return with_layout(REGIONS, class_probs=3, dtype="uint8" if format == "hdf5" else "float16")


def _shard(view: str, format: str, folder: Path) -> None:
    keys = [f"image{number}" for number in range(20)]
    make_store(folder, [keys], _spec(view, format), format=format)


def _read_shard(view: str, format: str, folder: Path) -> None:
    [path] = (folder / "shards").iterdir()
    shard = open_shard_file(path, _spec(view, format), format)
    for row in range(len(shard)):
        record = shard[row]
        record.features.astype(np.float32).sum()


def _store(folder: Path) -> None:
    """Folded entries, and later ones."""
    make_store(folder, [["a", "b"], ["c"]], failed=("b",))
    fold(folder)
    make_store(folder, [["d", "e"]], failed=("e",))


def _read_store(folder: Path) -> None:
    store = open_store(folder)
    for position in range(len(store)):
        store.at(position)
    if len(store):
        store.batch(np.arange(len(store)))
    _ = list(store), "a" in store, store.errors(), store.run, store.units, store.entries
    verify_store(folder)


# Other projects' files


def _narrow(view: str, folder: Path) -> FeatureStore:
    spec = with_layout(REGIONS, dtype="float32", class_probs=5, probs_dtype="float32") if view == "regions" else GRID
    return open_store(make_store(folder, [["1", "2", "3"]], spec))


def _wide(folder: Path, boxes: int = 2) -> FeatureStore:
    layout = FeatureLayout(2048, "float32", class_probs=5, probs_dtype="float32")
    records = [wide_record(str(key), boxes, layout) for key in (1, 2)]
    return _stored(folder, Spec("regions", layout), records)


def _stored(folder: Path, spec: Spec, records: Iterable[Any]) -> FeatureStore:
    with StoreWriter(folder, spec).unit(["1", "2"]) as unit:
        for record in records:
            unit.append(record)
        unit.commit()
    return open_store(folder)


def _exportable(format: str, folder: Path) -> FeatureStore:
    if format in ("mcan-npz", "milvlg-npz", "openvqa-npz"):
        return _wide(folder)
    if format == "hu-hdf5":
        spec = with_layout(REGIONS, dtype="float32")
        boxes = np.tile(BOXES, (18, 1))
        records = [replace(region_record(key, 36, spec), boxes=boxes, image_size=(48, 64)) for key in "12"]
        return _stored(folder, spec, records)
    if format == "grid-feats-pth":
        spec = Spec("grid", FeatureLayout(2048, "float32"))
        return _stored(folder, spec, [grid_record(key, (1, 2), spec) for key in "12"])
    if format == "oscar-tsv":
        spec = with_layout(REGIONS, dtype="float32")
        records = [replace(region_record(key, 2, spec), boxes=BOXES, image_size=(48, 64)) for key in "12"]
        return _stored(folder, spec, records)
    return _narrow("regions", folder)


BOXES = np.array([[1, 2, 30, 40], [5, 6, 7, 8]], np.float32)
SUFFIXES = {"butd-tsv": ".tsv", "lxmert-tsv": ".tsv", "vlbert-zip": ".zip", "hu-hdf5": ".hdf5", "ban-hdf5": ".hdf5"}


def _foreign(format: str, folder: Path) -> None:
    with TemporaryDirectory() as name:
        store = _exportable(format, Path(name) / "store")
        FORMATS[format].write(store, folder / _named(format))


def _named(format: str) -> str:
    return {"uniter-lmdb": "all", "mmf-lmdb": "x.lmdb"}.get(format, f"x{SUFFIXES.get(format, '')}")


def _import(format: str, folder: Path, name: str = "") -> None:
    for row in FORMATS[format].read(folder / (name or _named(format)), ImportOptions()).rows:
        if isinstance(row, BadRow):
            check_line(row.message)
        else:
            assert isinstance(row.key, str) and row.features.dtype in (np.float16, np.float32)


def _vlbert_folder(folder: Path) -> None:
    with TemporaryDirectory() as name:
        FORMATS["vlbert-zip"].write(_narrow("regions", Path(name) / "store"), folder / "x")


def _lmdb_values(format: str, folder: Path) -> None:
    """The entries of an LMDB as files, so that a damaged value can be put into a sound LMDB."""
    import lmdb

    with TemporaryDirectory() as name:
        _foreign(format, Path(name))
        with lmdb.open(str(Path(name) / _named(format)), readonly=True, lock=False) as found, found.begin() as entries:
            for key, value in entries.cursor():
                (folder / key.hex()).write_bytes(value)


def _import_values(format: str, folder: Path) -> None:
    with TemporaryDirectory() as name:
        path = Path(name) / _named(format)
        path.mkdir()
        write_entries(path, [(bytes.fromhex(each.name), each.read_bytes()) for each in sorted(folder.iterdir())])
        _import(format, Path(name))


def _pickles(folder: Path) -> None:
    content = {"boxes": np.arange(8, dtype=np.float32).reshape(2, 4), "n": np.int64(3), "of": [b"x", "y", None, {1.5}]}
    for protocol in range(6):
        (folder / f"{protocol}.pkl").write_bytes(pickle.dumps(content, protocol))
    (folder / "old.pkl").write_bytes(unpickling.dumps(content))
    (folder / "bytes.pkl").write_bytes(pickle.dumps(bytearray(b"abc"), 5))


def _unpickle(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        unpickling.loads(path.read_bytes(), path.name)


# Sources


def _photo(format: str = "PNG", size: tuple[int, int] = (6, 4), **options: Any) -> bytes:
    target = io.BytesIO()
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)
    Image.fromarray(pixels).save(target, format, **options)
    return target.getvalue()


def _tar(folder: Path) -> None:
    for format, name in ((tarfile.PAX_FORMAT, "é" * 60), (tarfile.GNU_FORMAT, "n" * 120)):
        with tarfile.open(folder / f"{format}.tar", "w", format=format) as tar:
            for key in ("a", name):
                member = tarfile.TarInfo(f"{key}.png")
                member.size = len(_photo())
                tar.addfile(member, io.BytesIO(_photo()))


def _parquet(folder: Path) -> None:
    images = [{"bytes": _photo(), "path": f"{key}.png"} for key in "abc"]
    table = pa.table({"key": ["a", "b", "c"], "image": images})
    pq.write_table(table, folder / "plain.parquet", compression="none", row_group_size=2)
    pq.write_table(table, folder / "zstd.parquet", compression="zstd")


def _coco(folder: Path) -> None:
    (folder / "a.png").write_bytes(_photo())
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "coco_url": "http://x/b.png"}]
    (folder / "x.json").write_text(json.dumps({"images": images}))


def _listed(folder: Path) -> None:
    (folder / "a.png").write_bytes(_photo())
    (folder / "x.txt").write_text("# photos\na.png\nkey\ta.png\nb/c.png\n")


def _read_source(suffix: str, folder: Path) -> None:
    for path in sorted(folder.glob(f"*{suffix}")):
        source = open_source(SourceConfig(str(path)))
        for ref in source.list().refs:
            check_line(ref.key), check_line(ref.uri)
            _each(lambda ref=ref, source=source: source.read(ref.uri))


def _each(read: Callable[[], object]) -> None:
    """One image that cannot be read is no reason not to read the next."""
    from extractors.images import ImageError

    try:
        read()
    except ImageError as error:
        check_line(str(error))


# What else a user may be given

IMAGES: dict[str, dict[str, Any]] = {
    "JPEG": {}, "PNG": {}, "GIF": {}, "WEBP": {}, "TIFF": {"compression": "tiff_lzw"}, "BMP": {}, "ICO": {},
    "JPEG2000": {}, "AVIF": {}, "TGA": {"compression": "tga_rle"}, "PPM": {}, "MPO": {}, "PCX": {}, "SGI": {},
    "DDS": {}, "ICNS": {}, "QOI": {},
}  # fmt: skip


def _images(folder: Path) -> None:
    for format, options in IMAGES.items():
        (folder / format).write_bytes(_photo(format, (32, 32), **options))


def _decode(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        _each(lambda path=path: decode(path.read_bytes(), max_pixels=4_000_000))


def _weights(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3, dtype=torch.float16)}
    torch.save({"model": tensors}, folder / "x.pth")
    torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
    trainer = {"state_dict": tensors, "dirpath": Fraction(1, 2)}  # any object that torch does not know by itself
    torch.save(trainer, folder / "x.ckpt")
    torch.save(trainer, folder / "x.model", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "x.safetensors")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    (folder / "x.pkl").write_bytes(pickle.dumps({"model": arrays, "matching_heuristics": True}, 2))


def _read_weights(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        read_checkpoint(path)


def _boxes(folder: Path) -> None:
    (folder / "x.json").write_text(json.dumps({"a": [[1, 2, 3, 4], [0.5, 1, 9, 9.5]], "b": []}))


def _annotations(folder: Path) -> None:
    make_store(folder / "store", [["1", "2"]])
    rows = [{"image_id": 1, "id": 7}, {"img_fn": "a/2.jpg"}]
    documents = {"list": rows, "coco": {"images": [{"id": 1, "file_name": "1.jpg"}]}, "vqa": {"questions": rows}}
    documents["gqa"] = {"1": {"objects": {}}, "2": {"objects": {}}}
    for name, document in documents.items():
        (folder / f"{name}_rows.json").write_text(json.dumps(document))


def _read_annotations(folder: Path) -> None:
    store = open_store(folder / "store")
    for path in sorted(folder.glob("*_rows.json")):
        coverage(store, path)


def _sizes(folder: Path) -> None:
    (folder / "x.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 6}]}))


READERS: dict[str, Reader] = {
    **{
        f"shard {format} {view}": Reader(
            partial(_shard, view, format),
            partial(_read_shard, view, format),
            only=end,
            asks_first=format == "arrow-zstd",
        )
        for view in ("regions", "grid")
        for format, end in (("arrow", ".arrow"), ("arrow-zstd", ".arrow"), ("hdf5", ".h5"))
    },
    "store": Reader(_store, _read_store),
    "store, sealed again": Reader(_store, _read_store, partial(other_values, sealed=True), ".json"),
    **{name: Reader(partial(_foreign, name), partial(_import, name)) for name in FORMATS if "lmdb" not in name},
    "vlbert folder": Reader(_vlbert_folder, partial(_import, "vlbert-zip", name="x")),
    "vlbert folder, values": Reader(_vlbert_folder, partial(_import, "vlbert-zip", name="x"), other_values),
    **{
        f"{name}, members": Reader(partial(_foreign, name), partial(_import, name), damaged_member, end)
        for name, end in (
            ("vlbert-zip", ".zip"), ("mcan-npz", ".npz"), ("milvlg-npz", ".npz"), ("openvqa-npz", ".npz"),
            ("uniter-npz", ".npz"), ("grid-feats-pth", ".pth"),
        )
    },
    **{f"{name}, values": Reader(partial(_lmdb_values, name), partial(_import_values, name))
       for name in FORMATS if "lmdb" in name},
    "pickle": Reader(_pickles, _unpickle),
    "tar": Reader(_tar, partial(_read_source, ".tar")),
    "parquet": Reader(_parquet, partial(_read_source, ".parquet")),
    "coco": Reader(_coco, partial(_read_source, ".json"), only=".json"),
    "coco, values": Reader(_coco, partial(_read_source, ".json"), other_values, ".json"),
    "list": Reader(_listed, partial(_read_source, ".txt"), only=".txt"),
    "image": Reader(_images, _decode),
    "weights": Reader(_weights, _read_weights, asks_first=True),  # torch does, for files of before 1.6
    "weights, members": Reader(_weights, _read_weights, damaged_member, "x.pth"),
    "boxes": Reader(_boxes, lambda folder: read_boxes(str(folder / "x.json"), "xyxy", "pixels")),
    "boxes, values": Reader(_boxes, lambda folder: read_boxes(str(folder / "x.json"), "xyxy", "pixels"), other_values),
    "annotations": Reader(_annotations, _read_annotations, only="_rows.json"),
    "annotations, values": Reader(_annotations, _read_annotations, other_values, "_rows.json"),
    "sizes": Reader(_sizes, lambda folder: read_sizes(folder / "x.json")),
    "sizes, values": Reader(_sizes, lambda folder: read_sizes(folder / "x.json"), other_values),
}  # fmt: skip
