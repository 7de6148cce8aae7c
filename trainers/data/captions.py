"""Images with a caption each, by the million: Arrow columns of under 100 bytes a pair, a fifth of what objects take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import overload

import pyarrow as pa

from trainers.data.base import Example

PAGE = 65536  # pairs turned into columns, or back into examples, at a time
NAMES = ("id", "image", "text")


class Captions(Sequence[Example]):
    """Examples of one image and one text, without truth; each is made when it is asked for.

    table  id, image, text: as `Example` has them
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str, str]]) -> Captions:
        """From (id, key of the image, text) of each pair."""
        coming = iter(rows)
        schema = pa.schema([(name, pa.large_string()) for name in NAMES])
        pages = []
        while page := list(islice(coming, PAGE)):
            columns = [pa.array(column, pa.large_string()) for column in zip(*page, strict=True)]
            pages.append(pa.RecordBatch.from_arrays(columns, schema=schema))
        return cls(pa.Table.from_batches(pages, schema))

    @classmethod
    def joined(cls, parts: Sequence[Captions]) -> Captions:
        """Several end to end."""
        return cls(pa.concat_tables([part.table for part in parts]))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, at: int) -> Example: ...

    @overload
    def __getitem__(self, at: slice) -> Captions: ...

    def __getitem__(self, at: int | slice) -> Example | Captions:
        if isinstance(at, slice):
            return Captions(self.table.take(pa.array(range(*at.indices(len(self))), pa.int64())))
        if not -len(self) <= at < len(self):
            raise IndexError(f"{at} is not among {len(self):,} captions")
        return _example(*(column[at % len(self)].as_py() for column in self.table.columns))

    def __iter__(self) -> Iterator[Example]:
        for page in self.table.to_batches(max_chunksize=PAGE):
            for row in zip(*(column.to_pylist() for column in page.columns), strict=True):
                yield _example(*row)

    def take(self, numbers: Sequence[int]) -> Captions:
        """These pairs, in this order."""
        return Captions(self.table.take(pa.array(numbers, pa.int64())))


def _example(id: str, image: str, text: str) -> Example:
    return Example(id, (image,), (text,))
