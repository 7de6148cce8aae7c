"""Parquet files, local or at addresses, read a row group at a time."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.sources.addresses import open_address
from pipeline.sources.contract import SourceConfig
from pipeline.sources.files import Place, files_of
from pipeline.sources.table import Tables, TableSource

_CACHED_ROW_GROUPS = 2  # readers go through the rows in order: the group they are in, and the next


def open_parquet(config: SourceConfig) -> TableSource:
    """The files that `config.images` names, and the columns to use in them.

    Raises:
        SourceError: no such file, no Parquet, or no such column.
    """
    return TableSource.of(config, files_of(config.images), RowGroups)


class RowGroups(Tables):
    """Keeps the last row groups read, since their neighbours are asked for next."""

    wanted = "a Parquet file with images or their paths"

    def __init__(self, column: str | None = None) -> None:
        super().__init__(column)
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple[Place, int], pa.ChunkedArray] = OrderedDict()
        self._ends: dict[Place, list[int]] = {}

    def schema(self, place: Place) -> pa.Schema:
        with _opened(place) as parquet:
            return parquet.schema_arrow

    def batches(self, place: Place, names: list[str]) -> Iterator[pa.RecordBatch]:
        with _opened(place) as parquet:
            if names:
                yield from parquet.iter_batches(columns=names)
            else:
                yield _without_columns(parquet.metadata.num_rows)

    def value(self, place: Place, row: int) -> Any:
        with self._lock:  # held while reading: the threads behind mostly wait for the same row group
            ends = self._ends_in(place)
            if not 0 <= row < (ends[-1] if ends else 0):
                raise ValueError(f"there is no row {row}")
            group = bisect_right(ends, row)
            values = self._group(place, group)
        return values[row - ends[group] + len(values)].as_py()

    def _ends_in(self, place: Place) -> list[int]:
        """For each row group, the number of the row after its last."""
        if place not in self._ends:
            with _opened(place) as parquet:
                metadata = parquet.metadata
            sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            self._ends[place] = list(accumulate(sizes))
        return self._ends[place]

    def _group(self, place: Place, group: int) -> pa.ChunkedArray:
        at = (place, group)
        if at not in self._loaded:
            with _opened(place) as parquet:
                self._loaded[at] = parquet.read_row_group(group, columns=[self.column]).column(0)
        self._loaded.move_to_end(at)
        while len(self._loaded) > _CACHED_ROW_GROUPS:
            self._loaded.popitem(last=False)
        return self._loaded[at]


@contextmanager
def _opened(place: Place) -> Iterator[pq.ParquetFile]:
    if isinstance(place, str):
        with open_address(place, ahead=False) as file, pq.ParquetFile(file, pre_buffer=True) as parquet:
            yield parquet
    else:
        with pq.ParquetFile(place) as parquet:
            yield parquet


def _without_columns(rows: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_struct_array(pa.nulls(rows, pa.struct([])))
