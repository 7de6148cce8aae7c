"""Memory of outputs is used again, never while someone reads it, and never grows beyond what was used at once."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest
import torch

from extractors.output_memory import HUGE_PAGE, OutputMemory

PAGE = HUGE_PAGE // 4  # float32 numbers that fill one


def test_it_is_used_again_once_the_last_view_is_gone() -> None:
    memory = OutputMemory()
    first = memory.empty(3, PAGE)
    place, view = first.data_ptr(), first[1:, :5].numpy()
    del first
    assert memory.empty(3, PAGE).data_ptr() != place
    del view
    assert {memory.empty(3, PAGE).data_ptr(), memory.empty(3, PAGE).data_ptr()} >= {place}


def test_what_is_written_is_there_and_aligned() -> None:
    memory = OutputMemory()
    shape = (2, 5, PAGE)
    x = memory.empty(*shape)
    assert x.shape == shape and x.dtype == torch.float32 and x.data_ptr() % 64 == 0
    x.fill_(3)
    other = memory.empty(*shape).fill_(4)
    assert (x == 3).all() and (other == 4).all()


def test_small_outputs_are_left_to_the_allocator() -> None:
    memory = OutputMemory()
    for shape in [(2, 5, 7), (2, 0, 7), (PAGE - 1,)]:
        x = memory.empty(*shape)
        assert x.shape == shape and x.dtype == torch.float32 and not memory._total


def test_smaller_outputs_take_larger_memory_unless_it_is_far_too_large() -> None:
    memory = OutputMemory()
    place = memory.empty(8 * PAGE).data_ptr()
    assert memory.empty(2 * PAGE).data_ptr() == place
    assert memory.empty(PAGE).data_ptr() != place


def test_all_of_it_is_never_more_than_was_used_at_once() -> None:
    memory = OutputMemory()
    for pages in [1, 9, 2, 40, 3, 17, 40, 1, 8]:
        pair = memory.empty(pages * PAGE), memory.empty(PAGE)
        del pair
        assert memory._total <= 41 * HUGE_PAGE
    assert memory._total > 0


def test_no_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = OutputMemory()
    memory.empty(2 * PAGE)
    monkeypatch.setattr(mmap, "mmap", Mock(side_effect=OSError("Cannot allocate memory")))
    with pytest.raises(MemoryError, match="no memory for an output of 12 MiB"):
        memory.empty(6 * PAGE)
    monkeypatch.undo()
    assert memory.empty(PAGE).shape == (PAGE,) and memory._total == HUGE_PAGE


def test_threads_never_share_it() -> None:
    memory = OutputMemory()

    def work(value: int) -> bool:
        fine = True
        for round in range(50):
            x = memory.empty(PAGE - round % 3 + 2).fill_(value)
            y = memory.empty(PAGE).fill_(-value)
            fine &= bool((x == value).all() and (y == -value).all())
        return fine

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(1, 9)))
    assert memory._total <= 4 * 3 * 2 * HUGE_PAGE  # an x goes when the next is there; none takes more than two pages
