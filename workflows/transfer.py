"""`triptych convert`, `import` and `export`: a store in another format, and other projects' feature files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import tyro

from storage.convert import convert, shard_bytes
from storage.errors import StoreError
from storage.interop import coco
from storage.interop.base import ExportReport, ImportOptions
from storage.interop.parquet import write_parquet
from storage.interop.transfer import FORMATS, check_known, export_store, import_store, read_sizes
from storage.places import local_path
from storage.secrets import shown
from storage.store import FeatureStore, open_store
from storage.writer import HEAD
from workflows.output import Command, emit
from workflows.stores import difference_facts, difference_text
from workflows.text import byte_progress, size


def _write_tars(store: FeatureStore, out: Path) -> ExportReport:
    return ExportReport(len(store), len(store.to_webdataset(out)))


EXPORT_ONLY: dict[str, Callable[[FeatureStore, Path], ExportReport]] = {
    "webdataset": _write_tars,
    "parquet": write_parquet,
    coco.NAME: coco.write_detections,
}
WRITTEN = (*FORMATS, *EXPORT_ONLY)
StoreDtype = Literal["float16", "float32", "bfloat16", "uint8"]
SHOWN = 20


@dataclass(frozen=True)
class Convert(Command):
    """Copy a store into another shard format or number type, and compare.

    triptych convert features/regions --to hdf5 --out features/regions-h5
    """

    store: tyro.conf.Positional[str]
    """The store to copy; it is not changed."""
    out: str
    """The copy, a folder or an address such as s3://bucket/features."""
    to: Literal["arrow", "hdf5"] = "arrow"
    """Shard format of the copy."""
    archive: bool = False
    """arrow: compress the columns (zstd). Smaller, and slow to read at random; convert back before training."""
    dtype: StoreDtype | None = None
    """Number type of the copy's features; default: the same, to the last bit."""

    def run(self) -> int:
        if self.archive and self.to != "arrow":
            raise StoreError("--archive goes with --to arrow; h5py reads zstd only with a plugin.")
        with byte_progress("converting") as on_records:
            done = convert(self.store, self.out, "arrow-zstd" if self.archive else self.to, self.dtype, on_records)
        sizes = {"bytes_before": done.bytes_before, "bytes_after": done.bytes_after}
        emit({"out": shown(self.out), **sizes, "difference": difference_facts(done.difference)})
        print(difference_text(done.difference))
        print(
            f"{shown(self.out)}: {size(done.bytes_after)}, "
            f"{done.bytes_after / max(1, done.bytes_before):.3f} of the store's"
        )
        return 0


@dataclass(frozen=True)
class Import(Command):
    """Take other projects' feature files into a store. Rows that cannot be read are listed, and become error rows.

    triptych import --from lxmert-tsv train2014_obj36.tsv --out features/lxmert --dtype float32
    """

    source: tyro.conf.Positional[str]
    """The file or folder."""
    from_: Annotated[str, tyro.conf.arg(name="from", help=f"Its format: {', '.join(FORMATS)}.")]
    out: str
    """The store. Importing another file of the same kind into it adds to it."""
    dtype: StoreDtype = "float16"
    """Number type to store features in; float32 keeps every bit of the formats that have it."""
    format: Literal["arrow", "hdf5"] = "arrow"
    """Kind of shard file."""
    sizes: str | None = None
    """COCO-style JSON with the images' sizes, for formats that do not tell them."""

    def run(self) -> int:
        options = ImportOptions(read_sizes(self.sizes)) if self.sizes else ImportOptions()
        done = import_store(self.source, self.out, self.from_, self.dtype, format=self.format, options=options)
        emit({"out": shown(self.out), "dtype": self.dtype, **asdict(done)})
        for note in done.notes:
            print(f"note: {note}")
        for bad in done.bad[:SHOWN]:
            print(f"BAD  {bad.where}: {bad.key or 'key not known'}: {bad.message}")
        if len(done.bad) > SHOWN:
            print(f"... and {len(done.bad) - SHOWN} more: `triptych errors {shown(self.out)}`")
        if done.repeated:
            print(f"{len(done.repeated)} keys stand there more than once, the first is taken: {done.repeated[0]}, ...")
        if done.file_dtype == "float16" and self.dtype == "float32":
            print("features are stored as float32; the file's are float16, which loses nothing")
        elif done.file_dtype != self.dtype:
            far = f"at most {done.largest:.3g} from the file's"
            print(f"features are stored as {self.dtype}, {far}; --dtype {done.file_dtype} keeps every bit")
        known = f", {done.known} were there before" if done.known else ""
        store = open_store(self.out)
        print(
            f"{done.records} records imported{known}, {len(done.bad)} bad rows; "
            f"{shown(self.out)}: {size(shard_bytes(store))}"
        )
        return 0


@dataclass(frozen=True)
class Export(Command):
    """Write a store as another project's feature file.

    triptych export features/regions --to lxmert-tsv --out train2014_obj36.tsv

    triptych export features/regions --to parquet --out share
    """

    store: tyro.conf.Positional[str]
    """The store."""
    to: Annotated[str, tyro.conf.arg(help=f"Format to write: {', '.join(WRITTEN)}.")]
    out: str
    """File or folder to write; it must not be there yet, but for parquet, which goes on where it stopped."""
    images: str | None = None
    """coco-detections: the images, as of extract, for their file names. Default: the key and .jpg."""

    def run(self) -> int:
        check_known(self.to, WRITTEN)
        if self.images is not None and self.to != coco.NAME:
            raise StoreError(f"--images goes with --to {coco.NAME}; {self.to} has no file names of images.")
        out = local_path(self.out)
        if (out / HEAD).exists():
            raise StoreError(f"--out {self.out} is a store; choose another folder for what is not.")
        if self.to == coco.NAME:
            files = file_names(self.images) if self.images is not None else None
            done = coco.write_detections(open_store(self.store), out, files)
        elif self.to in EXPORT_ONLY:
            done = EXPORT_ONLY[self.to](open_store(self.store), out)
        else:
            done = export_store(self.store, out, self.to)
        emit({"out": shown(self.out), **asdict(done)})
        for note in done.notes:
            print(f"note: {note}")
        print(f"{done.records} records written to {shown(self.out)}, {done.files} files")
        return 0


def file_names(images: str) -> dict[str, str]:
    """The images' file names by key: the key and the suffix of its file, or the file's own name where that is another.

    Raises:
        SourceError: the images cannot be listed.
    """
    from pipeline.sources import SourceConfig, open_source

    return {ref.key: file_name(ref.key, ref.uri) for ref in open_source(SourceConfig(images)).list().refs}


def file_name(key: str, uri: str) -> str:
    """Of one image, by where a source says that it lies: in a folder, in a tar, or in a row of a table."""
    from pipeline.sources.files import uri_place

    whole, inside, member = uri.partition("#")
    if inside and member.isdecimal():
        return f"{key}.jpg"  # there is no file
    path = PurePosixPath(member.rpartition("@")[0] if inside else str(uri_place(whole)))
    is_key = f"/{path.with_suffix('')}".endswith(f"/{key}")
    return key + path.suffix if is_key else path.name
