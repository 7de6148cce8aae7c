"""Batches: like sizes together, nobody waits for ever, and as many as fit."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.ragged import fits, groups
from pipeline.batching import (
    LARGEST,
    LOOK_AHEAD,
    BatchSize,
    DeviceMemory,
    Memory,
    Turns,
    device_memory,
    in_order,
    largest,
    like_sized,
)
from tests.helpers import until

SIZES = st.one_of(st.none(), st.tuples(st.integers(1, 5), st.integers(1, 5)))


@settings(max_examples=200, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=20), st.integers(1, 6))
def test_the_one_that_waited_longest_goes_with_its_like(sizes: list[tuple[int, int] | None], count: int) -> None:
    waiting = list(enumerate(sizes))
    batch, rest = like_sized(waiting, count, lambda each: each[1])
    assert waiting[0] in batch and len(batch) <= min(count, len(waiting))
    sized = [size for _, size in batch if size]
    assert fits(sized) and len(groups(sized)) <= 1  # they run at once
    assert sorted(batch + rest, key=lambda each: each[0]) == waiting and rest == sorted(rest, key=lambda each: each[0])
    first = next((size for size in sizes if size), None)
    assert len(batch) == count or all(size and size != first for _, size in rest)  # its like wait for want of room only
    kinds = [size for at, (_, size) in enumerate(batch) if size and (at == 0 or batch[at - 1][1] != size)]
    assert len(kinds) <= len({size for _, size in batch}) + sum(size is None for _, size in batch)


@settings(max_examples=100, deadline=None)
@given(st.permutations(range(12)), st.integers(1, 5))
def test_numbers_come_out_in_order_whatever_batch_they_were_in(numbers: list[int], size: int) -> None:
    batches = [[(each, f"v{each}") for each in numbers[at : at + size]] for at in range(0, 12, size)]
    assert list(in_order(batches)) == [f"v{each}" for each in range(12)]


def test_what_is_ready_is_not_held_back() -> None:
    coming = iter([[(1, "b")], [(0, "a")], [(2, "c")]])
    found = in_order(coming)
    assert [next(found), next(found)] == ["a", "b"]
    assert next(coming) == [(2, "c")]


class Device(DeviceMemory):
    """With so many bytes, of which an image takes some."""

    def __init__(self, everything: int = 100, an_image: int = 0) -> None:
        self.all, self.an_image, self.most = everything, an_image, 0

    def ran(self, images: int) -> None:
        self.most = max(self.most, images * self.an_image)

    def now(self) -> Memory:
        return Memory(0, self.most, self.all)

    def forget(self) -> None:
        self.most = 0


def grown(size: BatchSize, device: Device, rounds: int = 10) -> list[int]:
    """Sizes, batch after full batch."""
    seen = []
    for _ in range(rounds):
        seen.append(size.now)
        device.ran(size.now)
        size.fitted(size.now)
    return seen


def test_auto_doubles_while_twice_as_many_have_room() -> None:
    device = Device(100_000, 4000)  # 19 images fill 80 %
    assert grown(BatchSize("auto", device), device) == [1, 2, 4, 8, 16, 16, 16, 16, 16, 16]


def test_auto_ends_at_the_largest_and_a_part_of_a_batch_proves_nothing() -> None:
    size = BatchSize("auto", device := Device())
    size.fitted(1)
    assert size.now == 2
    size.fitted(1)
    assert size.now == 2
    assert grown(size, device)[-1] == LARGEST


def test_what_did_not_fit_is_not_tried_again() -> None:
    size = BatchSize("auto", device := Device())
    assert grown(size, device, 5)[-1] == 16
    size.overflowed(16)
    size.fitted(8)
    assert size.now == 8 and size.ahead == 8 * LOOK_AHEAD
    size.overflowed(2)
    assert size.now == 1 and size.ahead == 1


@pytest.mark.parametrize("before", [0, 3])  # batches
def test_an_image_that_is_too_large_alone_says_nothing_of_others(before: int) -> None:
    size = BatchSize("auto", device := Device(100_000, 1500))
    grown(size, device, before)
    began = size.now
    device.most = 99_000  # what it filled before it failed
    for power in range(began.bit_length() - 1, 0, -1):
        size.overflowed(2**power)
    size.one_alone(began)
    assert grown(size, device)[:2] == [began, 2 * began] and size.now == LARGEST
    fixed = BatchSize(32, None)
    for images in (32, 16, 8, 4, 2):
        fixed.overflowed(images)
    fixed.one_alone(32)
    assert fixed.now == 32
    fixed.overflowed(32)
    fixed.fitted(32)  # of a batch that began before
    assert fixed.now == 16


def test_a_batch_that_does_not_fit_while_another_one_is_told_of() -> None:
    """The device is asked while nobody else changes what is known."""

    class Asked(Device):
        def now(self) -> Memory:
            self.other = threading.Thread(target=size.overflowed, args=(2,))
            self.other.start()
            self.other.join(0.2)
            return super().now()

    device = Asked()
    size = BatchSize("auto", device)
    size.fitted(1)
    device.other.join()
    assert size.now == 1


def test_who_wants_to_be_alone_gets_it_and_others_wait() -> None:
    """Two that want it, each within its batch, beside one that ends and one that comes."""
    turns, running, seen = Turns(), Counter[str](), []
    ends, both = threading.Event(), threading.Barrier(3)

    def wanting(name: str) -> None:
        with turns.beside():
            both.wait()
            with turns.alone():
                running[name] += 1
                seen.append((name, running.total(), ends.is_set()))
                time.sleep(0.05)
                running[name] -= 1

    def ending() -> None:
        with turns.beside():
            running["ending"] += 1
            both.wait()
            ends.wait(10)
            running["ending"] -= 1

    def coming() -> None:
        with turns.beside():
            seen.append(("coming", running.total(), True))

    with ThreadPoolExecutor(4) as threads:
        first = [threads.submit(wanting, "a"), threads.submit(wanting, "b"), threads.submit(ending)]
        until(lambda: turns._waiting == 2)
        last = threads.submit(coming)
        time.sleep(0.1)
        assert seen == []
        ends.set()
        for each in (*first, last):
            each.result(10)
    assert sorted(seen) == [("a", 1, True), ("b", 1, True), ("coming", 0, True)] and seen[-1][0] == "coming"


def test_a_cpu_takes_one_and_a_number_is_a_number() -> None:
    assert device_memory(torch.device("cpu")) is None
    size = BatchSize("auto", None)
    size.fitted(1)
    assert size.now == 1 == largest("auto", on_gpu=False)
    assert largest("auto", on_gpu=True) == LARGEST and largest(5, on_gpu=False) == 5
    assert BatchSize(5, Device()).now == 5


def test_what_would_pad_too_much_waits_for_its_like() -> None:
    sizes = [(600, 800), (800, 600), (608, 800), (600, 800), (600, 1000), (800, 600)]
    batch, rest = like_sized(sizes, 4, lambda size: size)
    assert batch == [(600, 800), (600, 800), (608, 800)] and rest == [(800, 600), (600, 1000), (800, 600)]
    batch, rest = like_sized(rest, 4, lambda size: size)
    assert batch == [(800, 600)] * 2 and rest == [(600, 1000)]
