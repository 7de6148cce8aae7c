"""Batches: like sizes together, nobody waits for ever, and as many as fit."""

from __future__ import annotations

import threading

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extractors.ragged import fits, groups
from pipeline.batching import LARGEST, LOOK_AHEAD, BatchSize, Memory, device_memory, in_order, largest, like_sized

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


def test_auto_doubles_while_twice_as_many_have_room() -> None:
    used = Memory(1000, 1000, 100_000)
    size = BatchSize("auto", lambda: used)
    seen = []
    for _ in range(10):
        seen.append(size.now)
        used = Memory(1000, 1000 + 4000 * size.now, 100_000)  # 4000 an image: 19 of them fill 80 %
        size.fitted(size.now)
    assert seen == [1, 2, 4, 8, 16, 16, 16, 16, 16, 16]


def test_auto_ends_at_the_largest_and_a_part_of_a_batch_proves_nothing() -> None:
    size = BatchSize("auto", lambda: Memory(0, 0, 1))
    size.fitted(1)
    assert size.now == 2
    size.fitted(1)
    assert size.now == 2
    for _ in range(10):
        size.fitted(size.now)
    assert size.now == LARGEST


def test_what_did_not_fit_is_not_tried_again() -> None:
    size = BatchSize("auto", lambda: Memory(0, 0, 1))
    for _ in range(4):
        size.fitted(size.now)
    assert size.now == 16
    size.overflowed(16)
    size.fitted(8)
    assert size.now == 8 and size.ahead == 8 * LOOK_AHEAD
    size.overflowed(2)
    assert size.now == 1 and size.ahead == 1


def test_an_image_that_is_too_large_alone_says_nothing_of_others() -> None:
    size = BatchSize(32, None)
    for images in (32, 16, 8, 4, 2, 1):  # it is the first one of its batch, so that no batch has fitted before
        size.overflowed(images)
    for images in (1, 2, 4, 8, 16):
        size.fitted(images)
    assert size.now == 16
    for images in (16, 8, 4, 2, 1):
        size.overflowed(images)
    assert size.now == 16, "as many as have fitted"
    size.overflowed(16)
    size.fitted(16)  # of a batch that began before
    assert size.now == 8


def test_a_first_image_that_is_too_large_does_not_end_growth() -> None:
    size = BatchSize("auto", lambda: Memory(0, 0, 1))
    size.overflowed(1)
    size.fitted(1)
    assert size.now == 2


def test_a_batch_that_does_not_fit_while_another_one_is_told_of() -> None:
    """The device is asked while nobody else changes what is known."""
    size = BatchSize("auto", lambda: asked())

    def asked() -> Memory:
        other = threading.Thread(target=size.overflowed, args=(2,))
        other.start()
        other.join(0.2)
        others.append(other)
        return Memory(0, 0, 1)

    others: list[threading.Thread] = []
    size.fitted(1)
    others[0].join()
    assert size.now == 1


def test_a_cpu_takes_one_and_a_number_is_a_number() -> None:
    assert device_memory(torch.device("cpu")) is None
    size = BatchSize("auto", None)
    size.fitted(1)
    assert size.now == 1 == largest("auto", on_gpu=False)
    assert largest("auto", on_gpu=True) == LARGEST and largest(5, on_gpu=False) == 5
    assert BatchSize(5, lambda: Memory(0, 0, 1)).now == 5


def test_what_would_pad_too_much_waits_for_its_like() -> None:
    sizes = [(600, 800), (800, 600), (608, 800), (600, 800), (600, 1000), (800, 600)]
    batch, rest = like_sized(sizes, 4, lambda size: size)
    assert batch == [(600, 800), (600, 800), (608, 800)] and rest == [(800, 600), (600, 1000), (800, 600)]
    batch, rest = like_sized(rest, 4, lambda size: size)
    assert batch == [(800, 600)] * 2 and rest == [(600, 1000)]
