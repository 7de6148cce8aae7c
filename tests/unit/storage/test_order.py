"""The sequence of an epoch: each record once over all processes, in blocks, and the same from wherever it is begun."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import order as order_module
from storage.order import BLOCK_BYTES, WINDOW_BYTES, Order, batches

SEEDS = st.none() | st.integers(0, 2**40)


@contextmanager
def windows_of(blocks: int, block_bytes: int = 4) -> Iterator[None]:
    """Blocks and windows small enough that a few records make many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "BLOCK_BYTES", block_bytes)
        patch.setattr(order_module, "WINDOW_BYTES", blocks * block_bytes)
        yield


def sequence(order: Order, start: int = 0) -> list[int]:
    return [position for window in order.positions(start) for position in window.tolist()]


@st.composite
def orders(draw: st.DrawFn) -> Order:
    world = draw(st.integers(1, 9))
    return Order(
        records=draw(st.integers(0, 120)),
        record_bytes=draw(st.integers(1, 6)),
        seed=draw(SEEDS),
        epoch=draw(st.integers(0, 3)),
        rank=draw(st.integers(0, world - 1)),
        world=world,
    )


@settings(max_examples=200, deadline=None)
@given(orders(), st.integers(1, 4))
def test_all_processes_together_take_each_record_once_and_about_equally_many(order: Order, blocks: int) -> None:
    with windows_of(blocks):
        shares = [sequence(replace(order, rank=rank)) for rank in range(order.world)]
        lengths = [len(replace(order, rank=rank)) for rank in range(order.world)]
    assert sorted(position for share in shares for position in share) == list(range(order.records))
    assert [len(share) for share in shares] == lengths
    assert max(lengths) - min(lengths) <= 1


@settings(max_examples=60, deadline=None)
@given(orders(), st.integers(1, 4))
def test_an_order_begun_anywhere_goes_on_as_the_whole_one_does(order: Order, blocks: int) -> None:
    with windows_of(blocks):
        whole = sequence(order)
        for start in range(len(order) + 1):
            windows = list(order.positions(start))
            assert [position for window in windows for position in window.tolist()] == whole[start:]
            assert all(len(window) and window.dtype == np.int64 for window in windows)


@settings(max_examples=100, deadline=None)
@given(orders(), st.integers(1, 4), st.integers(1, 30), st.integers(0, 10), st.booleans())
def test_batches_are_the_order_cut_into_pieces(
    order: Order, blocks: int, size: int, done: int, drop_last: bool
) -> None:
    with windows_of(blocks):
        whole = sequence(order)[done * size :]
        found = list(batches(order, size, done * size, drop_last))
    kept = len(whole) // size * size if drop_last else len(whole)
    assert np.concatenate([np.empty(0, np.int64), *found]).tolist() == whole[:kept]
    assert all(len(batch) == size for batch in found[:-1])
    assert all(0 < len(batch) <= size for batch in found)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_a_window_takes_whole_blocks_but_for_one_at_either_end(
    records: int, record_bytes: int, blocks: int, seed: int
) -> None:
    with windows_of(blocks, block_bytes=12):
        order = Order(records, record_bytes, seed)
        assert order.block == 12 // record_bytes and order.window == blocks * order.block
        for window in order.positions():
            touched, counts = np.unique(window // order.block, return_counts=True)
            sizes = np.minimum(order.block, records - touched * order.block)
            assert (counts < sizes).sum() <= 2
            assert len(touched) <= blocks + 2  # the store's last block may be smaller


@settings(max_examples=60, deadline=None)
@given(orders())
def test_without_a_seed_the_order_is_the_stores_own(order: Order) -> None:
    unshuffled = replace(order, seed=None)
    share = sequence(unshuffled)
    assert share == list(range(share[0], share[0] + len(share))) if share else len(unshuffled) == 0
    assert share == sequence(replace(unshuffled, epoch=order.epoch + 1))


def test_the_same_seed_and_epoch_give_the_same_order_and_others_another() -> None:
    with windows_of(3):
        order = Order(200, 1, seed=5, epoch=2, rank=1, world=2)
        first = sequence(order)
        assert sequence(Order(200, 1, seed=5, epoch=2, rank=1, world=2)) == first
        others = [
            replace(order, epoch=3),
            replace(order, seed=6),
            replace(order, seed=2, epoch=5),
            replace(order, seed=0),
        ]
        found = [sequence(other) for other in others]
        assert first not in found and first != sorted(first)
        assert len({tuple(each) for each in found}) == len(found)


def test_a_shuffle_moves_blocks_as_well_as_records() -> None:
    with windows_of(4, block_bytes=8):
        windows = list(Order(800, 1, seed=1).positions())
    firsts = [int(window.min()) for window in windows]
    assert firsts != sorted(firsts)
    # Four blocks of neighbours would span 32 positions, and in order they would be sorted.
    assert np.median([np.ptp(window) for window in windows]) > 100
    assert all((np.diff(window) < 0).any() for window in windows)


def test_a_store_of_a_single_block_has_another_order_in_each_epoch_too() -> None:
    found = [sequence(Order(20, 1, seed=1, epoch=epoch)) for epoch in range(10)]
    assert len({tuple(each) for each in found}) == 10
    assert all(sorted(each) == list(range(20)) for each in found)


def test_epochs_put_a_record_at_places_all_over_the_order() -> None:
    with windows_of(2):
        places = [sequence(Order(64, 1, seed=3, epoch=epoch)).index(10) for epoch in range(300)]
    assert np.histogram(places, bins=4, range=(0, 64))[0].min() > 45  # 75 expected


def test_a_store_without_records_gives_every_process_nothing() -> None:
    for seed in (None, 1):
        for rank in range(3):
            order = Order(0, 1, seed, rank=rank, world=3)
            assert len(order) == 0 and sequence(order) == [] and list(batches(order, 4)) == []


def test_more_processes_than_records_get_one_or_none() -> None:
    shares = [sequence(Order(3, 1, seed=1, rank=rank, world=8)) for rank in range(8)]
    assert sorted(map(len, shares)) == [0] * 5 + [1] * 3
    assert sorted(position for share in shares for position in share) == [0, 1, 2]


@pytest.mark.parametrize("record_bytes", [1, 2**20, 10 * 2**20, 2**40], ids=["tiny", "a grid", "ten MiB", "absurd"])
def test_blocks_and_windows_have_their_size_in_bytes_and_a_record_at_least(record_bytes: int) -> None:
    order = Order(1000, record_bytes)
    assert order.block == max(1, BLOCK_BYTES // record_bytes)
    assert order.window == WINDOW_BYTES // BLOCK_BYTES * order.block


def test_ten_million_records_are_begun_in_a_moment_and_share_out_exactly() -> None:
    order = Order(10_000_019, 300_000, seed=1, epoch=4, rank=6, world=7)
    [first] = [next(order.positions())]
    middle = next(order.positions(1_000_000))
    assert len(first) == order.window and len(middle) <= order.window
    assert sum(len(replace(order, rank=rank)) for rank in range(7)) == 10_000_019


@pytest.mark.parametrize(("rank", "world"), [(1, 1), (-1, 2), (0, 0), (0, -1), (5, 3)])
def test_a_rank_that_is_none_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ValueError, match=rf"rank {rank} is not one of {world} processes"):
        Order(10, 1, rank=rank, world=world)


def test_negative_seeds_and_epochs_are_refused_before_anything_is_read() -> None:
    for settings_ in ({"seed": -1}, {"epoch": -2}, {"seed": 3, "epoch": -1}):
        with pytest.raises(ValueError, match="must not be negative"):
            Order(10, 1, **settings_)
