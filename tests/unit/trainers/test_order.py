"""The order of examples, and the threads that load them."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from extractors import ConfigError
from tests.helpers import until
from tests.unit.trainers.toy import Toy
from trainers.loading import load
from trainers.order import Cut, Order
from trainers.tasks.base import Batches


def test_every_example_has_its_turn_once_an_epoch_and_epochs_differ() -> None:
    order = Order(10, 4, seed=3)
    turns = [turn for step in range(10) for turn in order.batch(step)]
    epochs = [[number for epoch, number in turns if epoch == wanted] for wanted in range(4)]
    assert all(sorted(each) == list(range(10)) for each in epochs)
    assert epochs[0] != epochs[1]
    assert [number for _, number in Order(10, 5, 3).batch(0)] == epochs[0][:5]
    assert Order(10, 4, 4).batch(0) != order.batch(0)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("most", [None, 1, 3])
def test_shares_and_parts_make_up_the_batch_whatever_the_number_of_ranks(world: int, most: int | None) -> None:
    order = Order(10, 7, seed=0)
    for step in range(5):
        cuts = [cut for rank in range(world) for cut in order.cuts(step, rank, world, most)]
        assert [(cut.epoch, number) for cut in cuts for number in cut.numbers] == order.batch(step)
        assert all(len(cut.numbers) <= (most or 7) for cut in cuts)


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 workers cannot share batches of 2; lower --workers or raise"):
        Order(10, 2, 0).cuts(0, 0, 3)
    with pytest.raises(ConfigError, match="no examples"):
        Order(0, 2, 0)


class Watched(Toy):
    """Notes how many batches are made, and by whom."""

    def __init__(self) -> None:
        super().__init__(100)
        self.made, self.threads = 0, set[str]()

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        self.made += 1
        self.threads.add(threading.current_thread().name)
        if 99 in numbers:
            raise ValueError("number 99 is damaged")
        return super().collate(numbers, epoch)


def test_threads_are_ahead_but_not_far() -> None:
    task = Watched()
    coming = iter([[Cut(0, (number,)), Cut(0, (number + 1,))] for number in range(0, 60, 2)])
    found = []
    for parts in load(task, coming, workers=3):
        taken = len(found) + 2
        found += [number for part in parts for number in part.cut.numbers]
        until(lambda taken=taken: task.made >= min(taken + 1, 60))  # type: ignore[misc]
        assert task.made <= taken + 2 * 3 + 1
    assert found == list(range(60))
    assert len(task.threads) == 3 and all(name.startswith("loading") for name in task.threads)


def test_one_list_of_many_parts_is_always_ahead() -> None:
    task = Watched()
    coming = load(task, iter([[Cut(0, (number,)) for number in range(20)]] * 3), workers=1)
    next(coming)
    until(lambda: task.made == 40)
    coming.close()  # type: ignore[attr-defined]


class Large:
    """Remembers which thread gave it back."""

    def __init__(self, freed: list[str]) -> None:
        self.freed = freed

    def __del__(self) -> None:
        self.freed.append(threading.current_thread().name)


class Heavy(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.freed: list[str] = []

    def collate(self, numbers: Sequence[int], epoch: int) -> Batches:
        return {"one": Large(self.freed)}  # type: ignore[dict-item]

    def counts(self, batches: Batches) -> dict[str, float]:
        return {}


def test_what_was_used_is_given_back_by_the_threads_not_by_the_loop() -> None:
    task, parts = Heavy(), None
    coming = load(task, iter([[Cut(0, (number,))] for number in range(12)]), workers=2)
    for number in range(10):
        parts = next(coming)
        until(lambda number=number: len(task.freed) >= number - 2)  # type: ignore[misc]  # no more than two are kept
    assert parts is not None and all(name.startswith("loading") for name in task.freed)
    coming.close()


def test_trouble_in_a_thread_reaches_the_loop_and_ends_the_threads() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="number 99 is damaged"):
        list(load(Watched(), iter([[Cut(0, (5,))], [Cut(0, (99,))], [Cut(0, (6,))]]), workers=2))
    assert threading.active_count() == before
