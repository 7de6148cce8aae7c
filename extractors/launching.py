"""One thread gives a GPU all its networks' work; nothing in it waits, and results come to the CPU by themselves.

torch remembers for each thread by itself how cuDNN runs a convolution of a shape, and memory belongs to one stream:
threads that took turns would learn every shape anew, and their small kernels would wait behind the others' large ones.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def started(work: Callable[[], T], device: torch.device) -> Future[T]:
    """What `work` gives: on a GPU by the thread of that device, in its turn; else it is done at once, here.

    Raises:
        Whatever work raises, on a CPU; on a GPU the result does.
    """
    if device.type == "cuda":
        return _thread(device).submit(_after, _given(device), work)
    done: Future[T] = Future()
    done.set_result(work())
    return done


@cache
def _thread(device: torch.device) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix=f"launch-{device}", initializer=take_stream, initargs=(device,))


def take_stream(device: torch.device) -> None:
    """Give this thread a queue of a GPU for itself."""
    torch.cuda.synchronize(device)  # the weights went there in another stream
    torch.cuda.set_stream(torch.cuda.Stream(device))


def _given(device: torch.device) -> torch.cuda.Event:
    """What this thread has given the device so far, such as weights."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def _after(given: torch.cuda.Event, work: Callable[[], T]) -> T:
    given.wait()
    return work()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU's tensor there. A GPU copies memory that is not pinned only after all that it has to do, and its thread
    waits."""
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def to_host(tensor: Tensor) -> Tensor:
    """A copy on the CPU; from a GPU it is there when what `arrival` gave afterwards has waited. Of a CPU's tensor it is
    the tensor.

    The copy is in pinned memory: into other memory a GPU copies at a tenth of the speed, and its thread waits.
    """
    if tensor.device.type != "cuda":
        return tensor
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return copy.copy_(tensor, non_blocking=True)


def arrival(device: torch.device) -> Callable[[], None]:
    """What waits until all that this thread has given the device so far is done."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event(blocking=True)  # sleeps: a thread that asks all the time would keep others from running
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
