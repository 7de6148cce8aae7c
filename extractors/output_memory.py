"""Memory of a layer's outputs on a CPU, used again by layers to come.

An allocator gives outputs of some megabytes back to the system as soon as they are dropped, and the system zeroes what
it gives anew: for a ResNeXt a tenth of an image's time.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import weakref
from collections import deque
from contextlib import suppress
from threading import Lock

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20  # bytes
MOST_TOO_LARGE = 4  # times what is wanted


class OutputMemory:
    """Tensors on memory that comes back when the last view of it is gone; for any number of threads.

    All of it together, used or waiting, is never more than was used at some moment; a piece that is longer than what
    lies in it, at most MOST_TOO_LARGE times, counts whole.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: list[mmap.mmap] = []  # the longest first
        self._come_back: deque[mmap.mmap] = deque()  # at any moment, one inside of `empty` included
        self._total = self._most_used = 0  # bytes

    def empty(self, *shape: int) -> Tensor:
        """float32, with whatever was there, from an address that is a multiple of 64 on; in huge pages, where the
        system has any and one would be full. Of smaller ones allocators keep the memory themselves.

        Raises:
            MemoryError: there is no room for it.
        """
        count = math.prod(shape)
        if 4 * count < HUGE_PAGE:
            return torch.empty(shape)
        block = self._block(-(-4 * count // HUGE_PAGE) * HUGE_PAGE)
        view = (ctypes.c_char * len(block)).from_buffer(block)
        weakref.finalize(view, self._come_back.append, block).atexit = False
        return torch.frombuffer(view, dtype=torch.float32, count=count).view(shape)

    def _block(self, size: int) -> mmap.mmap:
        with self._lock:
            while self._come_back:
                self._waiting.append(self._come_back.popleft())
            fitting = [each for each in self._waiting if size <= len(each) <= MOST_TOO_LARGE * size]
            if fitting:
                block = min(fitting, key=len)
                self._waiting.remove(block)
                return block
            self._most_used = max(self._most_used, self._total - sum(map(len, self._waiting)) + size)
            while self._waiting and self._total + size > self._most_used:
                self._total -= len(self._waiting.pop(0))
            try:
                block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except OSError as error:
                raise MemoryError(f"there is no memory for an output of {size >> 20} MiB") from error
            with suppress(OSError):  # a system without huge pages
                block.madvise(mmap.MADV_HUGEPAGE)
            self._total += size
            return block
