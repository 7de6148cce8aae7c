"""The images of several units on their way: who goes with whom, how far ahead, and that nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import pytest
import torch

from extractors import Prepared
from pipeline.batching import BatchSize
from pipeline.feeding import UNTOLD, Batch, Done, Feeder, Flow, Image, Loaded, most_begun
from pipeline.sources import ImageRef
from tests.helpers import until


class Networks:
    """Loads at once, but L only when told; runs what it is given one by one, once it may. Images named w are wide."""

    def __init__(self, batch: int, at_once: int = 1) -> None:
        self.begun: list[str] = []  # each batch's names
        self.ran: list[str] = []
        self.size = BatchSize(batch, None)
        self.late: Future[None] = Future()
        self.may = threading.Event()
        self.may.set()
        self._thread = ThreadPoolExecutor(1)
        self.feeder = Feeder(self.load, self.run, self.size, loaders=2, networks=at_once)

    def load(self, ref: ImageRef) -> Future[Loaded]:
        future: Future[Loaded] = Future()
        pixels = torch.zeros(3, 2, 9 if ref.key.startswith("w") else 2)
        loaded = Loaded(ref, {"grid": Prepared(ref.key, (2, 2), pixels, 1.0)}, {})
        if ref.key == "L":
            self.late.add_done_callback(lambda _: future.set_result(loaded))
        else:
            future.set_result(loaded)
        return future

    def run(self, images: list[Image]) -> Future[Batch]:
        self.begun.append("".join(sorted(image.loaded.ref.key for image in images)))

        def wait() -> Batch:
            assert self.may.wait(10)
            self.ran.extend(image.loaded.ref.key for image in images)
            return Batch([Done(image.number, {}, {}, image.unit) for image in images], 0.0)

        return self._thread.submit(wait)

    def unit(self, names: str) -> Flow:
        return self.feeder.add([ImageRef(name, name) for name in names])

    def close(self) -> None:
        self.feeder.close()
        self._thread.shutdown()


def numbers(flow: Flow) -> list[int]:
    return sorted(image.number for batch in flow for image in batch.images if image.unit is flow)


@pytest.fixture
def networks() -> Iterator[Networks]:
    made = Networks(batch=4)
    yield made
    made.may.set()
    made.close()


def test_a_unit_gets_its_own_images_from_batches_that_it_shares(networks: Networks) -> None:
    networks.may.clear()
    first = networks.unit("abcdew")
    until(lambda: networks.begun == ["abcd"])  # the networks have nothing to do: whatever there is begins
    second = networks.unit("fghw")
    networks.may.set()
    assert (numbers(first), numbers(second)) == ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3])
    assert networks.begun == ["abcd", "efgh", "ww"]


def test_what_is_left_over_waits_for_its_like_while_the_networks_have_work(networks: Networks) -> None:
    networks.may.clear()
    networks.unit("abcde")
    until(lambda: networks.begun == ["abcd"])
    time.sleep(0.05)
    assert networks.begun == ["abcd"]
    networks.may.set()
    until(lambda: networks.begun == ["abcd", "e"])


def test_what_was_ready_before_the_one_ahead_of_it_begins_with_it() -> None:
    """One that is alone in its batch; nothing more happens that could tell of it."""
    networks = Networks(batch=1, at_once=2)
    networks.may.clear()
    networks.unit("Lb")
    time.sleep(0.05)
    assert networks.begun == []
    networks.late.set_result(None)
    until(lambda: networks.begun == ["L", "b"])
    networks.may.set()
    networks.close()


def test_networks_do_not_wait_for_who_writes_but_never_run_far_ahead_of_it(networks: Networks) -> None:
    flow = networks.unit("x" * 200)
    until(lambda: len(networks.begun) >= UNTOLD)
    time.sleep(0.05)
    assert UNTOLD <= len(networks.begun) <= UNTOLD + 2  # one may run, and one be kept waiting for it
    assert numbers(flow) == list(range(200))


def test_a_unit_that_nobody_waits_for_leaves_the_others_its_place(networks: Networks) -> None:
    networks.may.clear()
    first, second = networks.unit("abcdefgh"), networks.unit("stuv")
    until(lambda: networks.begun == ["abcd"])
    networks.feeder.leave(first)
    networks.may.set()
    assert numbers(second) == [0, 1, 2, 3]
    assert networks.begun == ["abcd", "stuv"]


def test_units_end_with_their_feeder(networks: Networks) -> None:
    networks.may.clear()
    flow = networks.unit("x" * 30)
    networks.feeder.close()
    with pytest.raises(CancelledError):
        list(flow)
    with pytest.raises(CancelledError):
        networks.unit("y")


def test_whatever_goes_wrong_in_its_thread_ends_all_units(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(images: list[Image]) -> Future[Batch]:
        raise ValueError("nobody thought of this")

    monkeypatch.setattr(networks.feeder, "_run", odd)
    with pytest.raises(ValueError, match="nobody thought of this"):
        list(networks.unit("abcd"))


def test_a_batch_that_fails_is_told_to_each_of_its_units(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    networks.may.clear()
    networks.unit("ab")
    until(lambda: networks.begun == ["ab"])

    def failing(images: list[Image]) -> Future[Batch]:
        future: Future[Batch] = Future()
        future.set_exception(ArithmeticError("a network's error"))
        return future

    monkeypatch.setattr(networks.feeder, "_run", failing)
    flows = [networks.unit("cd"), networks.unit("ef")]
    networks.may.set()
    for flow in flows:
        with pytest.raises(ArithmeticError):
            list(flow)


def test_a_unit_of_no_images_has_come(networks: Networks) -> None:
    assert list(networks.unit("")) == []


def test_batches_that_grow_and_shrink_meanwhile_lose_nothing(networks: Networks) -> None:
    sizes = iter([4, 1, 3, 2, 4, 1] * 50)
    run = networks.run

    def changing(images: list[Image]) -> Future[Batch]:
        networks.size.now = next(sizes)
        return run(images)

    networks.feeder._run = changing
    flows = [networks.unit("xwxxw" * 12) for _ in range(3)]
    assert [numbers(flow) for flow in flows] == [list(range(60))] * 3
    assert len(networks.ran) == 180


def test_an_image_that_takes_long_holds_back_no_unit_that_is_gone(networks: Networks) -> None:
    slow: Future[Loaded] = Future()
    slow.set_running_or_notify_cancel()  # as one that is being read: it cannot be cancelled
    load = networks.load
    networks.feeder._load = lambda ref: slow if ref.key == "slow" else load(ref)
    gone = networks.feeder.add([ImageRef("slow", "slow")])
    waits = networks.unit("ab")
    until(lambda: len(networks.feeder._loading) == 3)
    assert networks.begun == []
    networks.feeder.leave(gone)
    assert numbers(waits) == [0, 1]


def test_an_image_that_cannot_be_asked_for_ends_all_units(networks: Networks) -> None:
    def full(ref: ImageRef) -> Future[Loaded]:
        raise RuntimeError("can't start new thread")

    networks.feeder._load = full
    with pytest.raises(RuntimeError, match="new thread"):
        list(networks.unit("abc"))
    with pytest.raises(CancelledError):
        networks.unit("d")


def test_a_cluster_suspects_all_that_one_process_can_have_begun() -> None:
    """Of who writes nothing at all, as many images as can be under way are begun."""
    for batch, at_once in [(1, 2), (4, 1), (32, 3)]:
        networks = Networks(batch, at_once)
        try:
            flow = networks.unit("x" * 2000)
            until(lambda flow=flow: flow.untold >= UNTOLD)  # type: ignore[misc]
            time.sleep(0.05)
            assert 2000 - len(flow.left) <= most_begun(batch, at_once, loaders=2)
        finally:
            networks.close()
