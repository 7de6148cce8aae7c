"""One thread does a GPU's work in the order it was given; on a CPU it is done at once, where it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from extractors import launching
from extractors.launching import arrival, started, to_host

GPU = torch.device("cuda")


@pytest.fixture
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    launching._thread.cache_clear()
    monkeypatch.setattr(launching, "take_stream", lambda device: None)
    monkeypatch.setattr(launching, "_given", lambda device: threading.Event())
    monkeypatch.setattr(launching, "_after", lambda given, work: work())
    yield
    launching._thread(GPU).shutdown()
    launching._thread.cache_clear()


def test_one_thread_does_all_work_in_its_order(no_gpu_needed: None) -> None:
    seen: list[tuple[int, int]] = []

    def work(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number

    def ask(number: int) -> None:
        assert started(lambda: work(number), GPU).result() == number

    begun = [started(lambda number=number: work(number), GPU) for number in range(5)]  # type: ignore[misc]
    others = [threading.Thread(target=ask, args=(number,)) for number in range(5, 9)]
    for each in others:
        each.start()
    for each in others:
        each.join()
    assert [each.result() for each in begun] == list(range(5)) == [number for number, _ in seen[:5]]
    assert len(seen) == 9 and {thread for _, thread in seen} == {seen[0][1]} != {threading.get_ident()}


def test_what_goes_wrong_is_told_where_the_result_is_asked_for(no_gpu_needed: None) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("no room")

    begun = started(full, GPU)
    assert started(lambda: 3, GPU).result() == 3, "the thread goes on"
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        begun.result()
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        started(full, torch.device("cpu"))


def test_a_cpu_s_tensors_are_there_already() -> None:
    here = torch.device("cpu")
    tensor = torch.ones(3)
    assert to_host(tensor) is tensor
    arrival(here)()
    assert started(threading.get_ident, here).result() == threading.get_ident()
