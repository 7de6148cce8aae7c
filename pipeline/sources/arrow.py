"""Arrow IPC files and streams (.arrow, .feather), and folders that Hugging Face `datasets` saved, all mapped; of a
file at an address only the batches that are asked for are fetched."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.sources.addresses import open_address
from pipeline.sources.contract import SourceConfig, SourceError
from pipeline.sources.files import Place, absolute, files_of, source_errors
from pipeline.sources.table import Tables, TableSource

ARROW = (".arrow", ".feather", ".ipc")

_CACHED_BATCHES = 2  # readers go through the rows in order: the batch they are in, and the next
_FILE = b"ARROW1"  # how the file format begins; the stream format has no such mark


def open_arrow(config: SourceConfig) -> TableSource:
    """The files that `config.images` names, or those of a folder that `datasets` saved, in its order.

    Raises:
        SourceError: no such file, no Arrow, or no such column.
    """
    folder = Path(config.images)
    paths = _saved(folder) if is_saved_data_set(folder) else files_of(config.images)
    return TableSource.of(config, paths, Mapped)


def is_saved_data_set(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` made this folder.

    Raises:
        SourceError: it is a `DatasetDict`, which is several data sets.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(each.name for each in folder.iterdir() if each.is_dir())
        raise SourceError(
            f"{folder} holds the data sets {', '.join(splits)}; name one of them, as {folder}/{splits[0]}"
        )
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _saved(folder: Path) -> tuple[Place, ...]:
    wanted = "a data set as `datasets` saves it, whose state.json names its files"
    with source_errors(folder / "state.json", wanted):
        state = json.loads((folder / "state.json").read_bytes())
    try:
        names = [Path(file["filename"]).name for file in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise SourceError(f"{folder / 'state.json'} names no files ({error}); wanted {wanted}") from None
    if state.get("_indices_files") or not names:
        raise SourceError(f"{folder} has rows chosen by an index, or none; save it after `flatten_indices()`")
    return tuple(absolute(folder / name) for name in names)


class Mapped(Tables):
    """Keeps the files mapped and the last record batches read, which are views of the map unless they are compressed.

    A stream has no list of its batches; all of them are kept, as Hugging Face writes them uncompressed.
    """

    wanted = "an Arrow IPC file or stream with images or their paths"

    def __init__(self, column: str | None = None) -> None:
        super().__init__(column)
        self._lock = threading.Lock()
        self._files: dict[Place, _File] = {}
        self._loaded: OrderedDict[tuple[Place, int], pa.RecordBatch] = OrderedDict()

    def schema(self, place: Place) -> pa.Schema:
        with self._lock:
            return self._file(place).schema

    def batches(self, place: Place, names: list[str]) -> Iterator[pa.RecordBatch]:
        columns = list(dict.fromkeys(name.partition(".")[0] for name in names))
        for number in range(len(self._file(place).ends)):
            with self._lock:
                batch = self._batch(place, number)
            yield batch.select(columns)

    def value(self, place: Place, row: int) -> Any:
        with self._lock:
            ends = self._file(place).ends
            if not 0 <= row < (ends[-1] if ends else 0):
                raise ValueError(f"there is no row {row}")
            number = bisect_right(ends, row)
            batch = self._batch(place, number)
        return batch.column(self.column)[row - ends[number] + batch.num_rows].as_py()

    def _file(self, place: Place) -> _File:
        if place not in self._files:
            self._files[place] = _File(place)
        return self._files[place]

    def _batch(self, place: Place, number: int) -> pa.RecordBatch:
        at = (place, number)
        if at not in self._loaded:
            self._loaded[at] = self._file(place).get(number)
        self._loaded.move_to_end(at)
        while len(self._loaded) > _CACHED_BATCHES:
            self._loaded.popitem(last=False)
        return self._loaded[at]


class _File:
    """A mapped file, or one at an address: its columns, what gets one of its batches, and for each the number of the
    row after its last."""

    def __init__(self, place: Place) -> None:
        mapped = open_address(place, ahead=False) if isinstance(place, str) else pa.memory_map(str(place))
        is_file = mapped.read(len(_FILE)) == _FILE
        mapped.seek(0)
        if isinstance(place, str) and not is_file:
            raise ValueError("a stream of Arrow batches would be fetched whole; copy it here, or save it as Parquet")
        self.get: Callable[[int], pa.RecordBatch]
        if is_file:
            reader = pa.ipc.open_file(mapped)
            self.get, count = reader.get_batch, reader.num_record_batches
        else:
            reader = pa.ipc.open_stream(mapped)
            batches = list(reader)
            self.get, count = batches.__getitem__, len(batches)
        self.schema = reader.schema
        self.ends = list(accumulate(self.get(number).num_rows for number in range(count)))
