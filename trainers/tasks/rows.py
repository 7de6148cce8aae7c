"""One text as a model reads it, and many of them side by side. Shapes in this file: B texts, T positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainers.batch import Text
from trainers.models.heads import IGNORED
from trainers.text import Tokenizer


@dataclass(frozen=True)
class Row:
    """Tokens of one text with its special ones.

    ids     token ids
    second  where a second text begins, which is segment 1; None: there is none
    tags    of each token the region that it speaks of, counted from 1; 0 for the whole image; None: 0
    labels  of each token what masked words are to be told, or IGNORED; None: IGNORED
    """

    ids: tuple[int, ...]
    second: int | None = None
    tags: tuple[int, ...] | None = None
    labels: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def without(self, place: int) -> Row:
        """The row without one token."""
        cut = {
            name: None if value is None else (*value[:place], *value[place + 1 :])
            for name, value in (("ids", self.ids), ("tags", self.tags), ("labels", self.labels))
        }
        second = self.second if self.second is None or place >= self.second else self.second - 1
        return replace(self, second=second, **cut)  # type: ignore[arg-type]


def enclosed(tokenizer: Tokenizer, first: Sequence[int], second: Sequence[int] | None = None) -> Row:
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]."""
    ids = (tokenizer.start, *first, tokenizer.end)
    return Row(ids) if second is None else Row((*ids, *second, tokenizer.end), len(ids))


def text_of(rows: Sequence[Row], padding: int) -> Text:
    """Rows padded to the longest."""
    width = max(len(row) for row in rows)
    lengths = torch.tensor([len(row) for row in rows])
    ids = _padded([row.ids for row in rows], width, padding)
    segments = tags = None
    if any(row.second is not None for row in rows):
        starts = torch.tensor([width if row.second is None else row.second for row in rows])
        place = torch.arange(width)
        segments = ((place >= starts[:, None]) & (place < lengths[:, None])).long()
    if any(row.tags is not None for row in rows):
        tags = _padded([row.tags or () for row in rows], width, 0)
    return Text(ids, torch.arange(width) < lengths[:, None], segments, tags)


def labels_of(rows: Sequence[Row]) -> Tensor:
    """(B, T) int64: what masked words are to be told, IGNORED elsewhere."""
    return _padded([row.labels or () for row in rows], max(len(row) for row in rows), IGNORED)


def _padded(rows: Sequence[Sequence[int]], width: int, filler: int) -> Tensor:
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.int64)
