"""Between a foreign file and a store: every row becomes a record, or an error row that says why it could not."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from storage.codecs import cast, record_dtype
from storage.convert import in_dtype
from storage.errors import StoreError, did_you_mean
from storage.interop import FORMATS
from storage.interop.base import BadRow, ExportReport, Foreign, Import, ImportOptions
from storage.interop.unpickling import first_line
from storage.manifest import ErrorRow
from storage.records import Record
from storage.spec import Spec
from storage.store import FeatureStore, open_store
from storage.writer import StoreWriter

UNIT_BYTES = 256 << 20
OnRecords = Callable[[int], None]  # told of records taken in so far


@dataclass
class ImportReport:
    """What importing made.

    records, known  written now, and there before
    bad        rows that became error rows
    repeated   keys that stood in the file more than once; the first one was taken
    largest    largest absolute difference of a feature to the file's, where the dtype is another
    """

    records: int = 0
    known: int = 0
    bad: list[BadRow] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    largest: float = 0.0
    file_dtype: str = ""
    notes: tuple[str, ...] = ()


def foreign(name: str) -> Foreign:
    """The format of this name.

    Raises:
        StoreError: there is none.
    """
    check_known(name, FORMATS)
    return FORMATS[name]


def check_known(name: str, formats: Collection[str]) -> None:
    """That a format is one of these.

    Raises:
        StoreError: it is none of them.
    """
    if name not in formats:
        raise StoreError(
            f"format {name!r} is not known; choose one of {', '.join(formats)}{did_you_mean(name, formats)}"
        )


def import_store(
    source: str | Path,
    out: str | Path,
    name: str,
    dtype: str = "float16",
    *,
    format: str = "arrow",
    options: ImportOptions | None = None,
    on_records: OnRecords = lambda done: None,
) -> ImportReport:
    """Take a foreign file into a store; the same call again goes on where it stopped, another file adds to it.

    Args:
        source: the foreign file or folder.
        out: the store.
        name: of the foreign format, one of `storage.interop.FORMATS`.
        dtype: stored dtype of the features.
        format: of the shards.

    Raises:
        StoreError: the file is not of that format, or the store there has another spec.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise StoreError(f"there is nothing at {path}; give the {name} file or folder to import.")
    found = foreign(name).read(path, options or ImportOptions())
    writer = StoreWriter(out, imported_spec(found, name, dtype), format=format)
    report = ImportReport(file_dtype=found.layout.dtype, notes=found.notes)
    _take_in(found, writer, report, on_records)
    writer.write_run({"complete": True, "imported_from": str(source), "format": name, "bad_rows": len(report.bad)})
    return report


def export_store(store: str | Path, out: str | Path, name: str) -> ExportReport:
    """Write a whole store as a foreign file or folder.

    Raises:
        StoreError: `out` is there already, or the store lacks what the format needs.
    """
    kind, opened = foreign(name), open_store(store)
    if opened.spec.view not in kind.views:
        raise StoreError(f"{name} holds {' or '.join(kind.views)}, {store} holds {opened.spec.view}.")
    if Path(out).exists():
        raise StoreError(f"{out} is there already; choose another --out.")
    exact = "float32" if opened.spec.layout.dtype == "uint8" else None
    return kind.write(FeatureStore(store, exact), Path(out))


def imported_spec(found: Import, name: str, dtype: str) -> Spec:
    """The spec of a store of imported features; nothing is known of their network but the format."""
    model = {"name": f"imported from {name}", "format": name}
    return Spec(found.view, replace(found.layout, dtype=dtype), model=model)


def _take_in(found: Import, writer: StoreWriter, report: ImportReport, on_records: OnRecords) -> None:
    waiting: dict[str, Record | ErrorRow] = {}
    size = 0
    seen: set[str] = set()
    for row in found.rows:
        if isinstance(row, BadRow):
            report.bad.append(row)
        elif row.key in seen:
            report.repeated.append(row.key)
        else:
            seen.add(row.key)
            waiting[row.key] = _narrowed(row, writer.spec, report)
            size += row.features.nbytes
            if size >= UNIT_BYTES:
                _commit(waiting, writer, report)
                waiting, size = {}, 0
            on_records(len(seen))
    for bad in report.bad:  # last: a torn row may have a whole one after it
        key = bad.key or bad.where
        if key not in seen:
            waiting.setdefault(key, ErrorRow(key, bad.where, "read", "bad_row", bad.message))
    _commit(waiting, writer, report)


def _narrowed(record: Record, spec: Spec, report: ImportReport) -> Record:
    wanted = record_dtype(spec.layout.dtype).name
    made = in_dtype(record, wanted)
    if made is not record and made.features.size:
        gap = np.abs(cast(made.features, "float32") - cast(record.features, "float32"))
        report.largest = max(report.largest, float(gap.max()))
    return made


def _commit(waiting: dict[str, Record | ErrorRow], writer: StoreWriter, report: ImportReport) -> None:
    keys = list(waiting)
    left = [key for key, done in zip(keys, writer.done(keys), strict=True) if not done] if keys else []
    report.known += len(keys) - len(left)
    if not left:
        return
    with writer.unit(left) as unit:
        for key in left:
            each = waiting[key]
            if isinstance(each, ErrorRow):
                unit.fail(each)
            else:
                unit.append(each)
                report.records += 1
        unit.commit()


def read_sizes(path: str | Path) -> dict[str, tuple[int, int]]:
    """(height, width) by image id and by file name without extension, from a COCO-style JSON.

    Raises:
        StoreError: the file cannot be read or has no sizes.
    """
    try:
        images: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))["images"]
        sizes = {}
        for image in images:
            size = (int(image["height"]), int(image["width"]))
            sizes[str(image["id"])] = size
            if image.get("file_name"):
                sizes[Path(image["file_name"]).stem] = size
        return sizes
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreError(
            f"{path} is not a COCO-style JSON with image sizes ({type(error).__name__}: {first_line(error)})."
        ) from error
