"""The pool without a cluster: actors that are objects here, and die as the test says."""

from __future__ import annotations

import queue
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions

import pipeline.cluster_pool as cluster_pool
from pipeline.cluster_actor import Note, Standing, _gathered
from pipeline.cluster_pool import DEATHS_IN_A_ROW, Pool, Size, Work, _cut, short
from pipeline.plan import Unit
from pipeline.sources import ImageRef
from pipeline.unit import UNITS_AT_ONCE, UnitReport
from storage import TriptychError

CRASH = "Worker exit type: SYSTEM_ERROR Worker exit detail: connection error code 2. End of file."
NODE = "The actor died because its node has died. Node Id: 12"


def unit_of(*keys: str) -> Unit:
    return Unit(tuple(ImageRef(key, f"/photos/{key}") for key in keys))


class Units:
    """A plan that can only be walked; it counts how far."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size, self.walked = count, size, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Unit]:
        for number in range(self.count):
            self.walked += 1
            yield unit_of(*(f"{number}/{row}" for row in range(self.size)))


class Cluster:
    """What the pool asks of Ray. `fate(actor, key)` names a cause where an actor dies over an image."""

    exceptions = ray.exceptions

    def __init__(self, fate: Callable[[int, str], str] = lambda actor, key: "", start: str = "") -> None:
        self.fate, self.start_fails, self.actors, self.killed = fate, start, 0, 0
        self.done: Counter[str] = Counter()
        self.units: list[list[str]] = []
        self.under_way: Counter[int] = Counter()
        self.met: list[tuple[str, int]] = []  # first key of a unit, and how many others its actor had as it was given
        self.given_up: list[str] = []

    def start(self) -> Any:
        self.actors += 1
        actor = self.actors
        run = SimpleNamespace(remote=lambda unit, every: self._given(actor, unit))
        standing = SimpleNamespace(remote=lambda: lambda: self._standing(actor))
        return SimpleNamespace(standing=standing, run=SimpleNamespace(options=lambda num_returns: run))

    def _standing(self, actor: int) -> Standing:
        if self.start_fails:
            raise ray.exceptions.RayActorError("id", self.start_fails)
        return Standing("node", f"host{actor}", actor)

    def _given(self, actor: int, unit: Unit) -> Iterator[Callable[[], Note]]:
        self.met.append((unit.keys[0], self.under_way[actor]))
        self.under_way[actor] += 1
        return self._run(actor, unit)

    def _run(self, actor: int, unit: Unit) -> Iterator[Callable[[], Note]]:
        for key in unit.keys:
            if cause := self.fate(actor, key):
                while True:
                    yield lambda cause=cause: self._die(cause)  # type: ignore[misc]
            yield lambda: Note(images=1)
        self.done.update(unit.keys)
        self.units.append(unit.keys)
        yield lambda: Note(report=UnitReport(images=len(unit.refs), records=len(unit.refs)))
        self.under_way[actor] -= 1

    def _die(self, cause: str) -> Note:
        raise ray.exceptions.RayActorError("id", cause)

    def wait(self, refs: list[Any], num_returns: int, **_: Any) -> tuple[list[Any], list[Any]]:
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref: Callable[[], Any], timeout: float = 0) -> Any:
        return ref()

    def kill(self, handle: Any) -> None:
        self.killed += 1

    def give_up(self, ref: ImageRef, cause: str) -> None:
        self.given_up.append(ref.key)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[UnitReport, Counter[str]]]:
    """Run units on a cluster; returns the sum of reports, and what progress was told."""

    def run(cluster: Cluster, units: Any, most: int = 2, window: int = 2) -> tuple[UnitReport, Counter[str]]:
        monkeypatch.setattr(cluster_pool, "ray", cluster)
        pool, told, total = (
            Pool(cluster.start, units, Size(most, 1, 5.0, UNITS_AT_ONCE), window, cluster.give_up),
            Counter(),
            UnitReport(),
        )
        for report in pool.run(lambda images, failed: told.update(images=images, failed=failed)):
            total += report
        return total, told

    return run


def test_units_are_walked_as_they_are_run_and_every_image_is_counted_once(play: Any) -> None:
    cluster, units = Cluster(), Units(50, 3)
    seen = []

    def fate(actor: int, key: str) -> str:
        seen.append(units.walked - len(cluster.units))
        return ""

    cluster.fate = fate
    total, told = play(cluster, units)
    assert (total.images, told["images"], set(cluster.done.values())) == (150, 150, {1})
    assert max(seen) <= 2 * UNITS_AT_ONCE + 1  # of two actors, and the one that is being ended
    assert cluster.actors == cluster.killed == 2


def test_an_actor_that_has_no_more_work_is_let_go_and_not_replaced(play: Any) -> None:
    cluster = Cluster()
    units = Units(7, 1)

    def one_at_a_time(refs: list[Any], num_returns: int, timeout: float, **_: Any) -> tuple[list[Any], list[Any]]:
        ready = [ref for ref in refs if callable(ref)][:1] or refs[-1:]  # whoever stands, then the last actor alone
        return (ready, [ref for ref in refs if ref not in ready]) if timeout == 1 else ([], refs)

    cluster.wait = one_at_a_time  # type: ignore[method-assign]
    total, _ = play(cluster, units)
    assert total.images == 7 and cluster.actors == 2


def test_an_image_that_kills_its_process_is_found_and_only_it_is_given_up(play: Any) -> None:
    cluster = Cluster(lambda actor, key: CRASH if key == "1/4" else "")
    total, told = play(cluster, Units(3, 8))
    assert cluster.given_up == ["1/4"]
    assert set(cluster.done.values()) == {1} and len(cluster.done) == 23
    assert (total.images, total.reasons["crashed"], told["images"], told["failed"]) == (24, 1, 24, 1)
    assert ["1/5"] in cluster.units  # what was under way beside it is run alone
    assert [f"1/{row}" for row in (0, 1, 2, 3, 6, 7)] in cluster.units


def test_what_is_suspected_has_an_actor_to_itself(play: Any) -> None:
    """Else the last note of a finished neighbour may die with the process, and the neighbour be blamed."""
    cluster = Cluster(lambda actor, key: CRASH if key == "1/4" else "")
    play(cluster, Units(12, 8), window=6)
    suspects = [(key, others) for key, others in cluster.met if key in {f"1/{row}" for row in (4, 5, 6, 7)}]
    assert len(suspects) >= 5 and {others for _, others in suspects} == {0}
    assert [others for key, others in cluster.met if key == "1/0"][1] == 0
    assert max(others for _, others in cluster.met) == UNITS_AT_ONCE - 1


def test_lost_nodes_count_against_no_image(play: Any) -> None:
    died: list[int] = []

    def fate(actor: int, key: str) -> str:
        if key == "0/0" and len(died) < 6:
            died.append(actor)
            return NODE
        return ""

    cluster = Cluster(fate)
    total, _ = play(cluster, Units(1, 1))
    assert (total.images, total.reasons, cluster.given_up, len(died)) == (1, Counter(), [], 6)


def test_only_the_unit_that_was_run_is_blamed_for_a_death(play: Any) -> None:
    cluster = Cluster(lambda actor, key: CRASH if key.startswith("0/") and actor < 3 else "")
    total, _ = play(cluster, Units(6, 1), most=1)
    assert total.images == 6 and cluster.given_up == ["0/0"]


def test_actors_that_die_as_they_start_end_the_job(play: Any) -> None:
    with pytest.raises(TriptychError, match="3 actors in a row died while they were being started, .*No module named"):
        play(Cluster(start="Traceback\nModuleNotFoundError: No module named 'pipeline'"), Units(5, 1))


def test_deaths_without_end_end_the_job(play: Any) -> None:
    cluster = Cluster(lambda actor, key: CRASH)
    with pytest.raises(TriptychError, match=f"{DEATHS_IN_A_ROW} actors in a row died without finishing one image"):
        play(cluster, Units(200, 1))


def test_a_pool_that_cannot_be_had_is_told_with_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster()
    cluster.wait = lambda refs, **_: ([], refs)  # type: ignore[method-assign]
    cluster.cluster_resources = lambda: {"CPU": 2.0}  # type: ignore[attr-defined]
    cluster.available_resources = lambda: {"CPU": 1.0}  # type: ignore[attr-defined]
    cluster.nodes = lambda: [{"Alive": True}]  # type: ignore[attr-defined]
    monkeypatch.setattr(cluster_pool, "ray", cluster)
    pool = Pool(cluster.start, [unit_of("a")], Size(1, 1, 0.0, UNITS_AT_ONCE), 1, cluster.give_up)
    with pytest.raises(TriptychError, match=r"0 of 1 actors .*has 2 CPUs \(1 free\) and 0 GPUs \(0 free\) on 1 node;"):
        list(pool.run(lambda images, failed: None))


def test_an_error_of_the_job_ends_it_in_the_actors_words(play: Any) -> None:
    cluster = Cluster()
    cluster._standing = lambda actor: Standing("", "", 0, "no space left")  # type: ignore[method-assign]
    with pytest.raises(TriptychError, match="^no space left$"):
        play(cluster, Units(5, 1))


@pytest.mark.parametrize(("finished", "rest", "suspects"), [(0, "cde", "ab"), (3, "abc", "de"), (5, "abcd", "e")])
def test_a_unit_is_cut_where_its_process_died(finished: int, rest: str, suspects: str) -> None:
    work = Work(unit_of(*"abcde"), counts=Counter(images=finished), told=Counter(images=4))
    others, alone = _cut(work, window=2)
    assert [each.unit.keys for each in others] == [list(rest)]
    assert [each.unit.keys for each in alone] == [[key] for key in suspects]
    assert sum(each.told["images"] for each in others + alone) == 4


def test_a_unit_that_was_under_way_as_a_whole_has_no_rest() -> None:
    assert _cut(Work(unit_of("a", "b")), window=9)[0] == []


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (NODE, "its node is gone"),
        (CRASH, "its process was killed or crashed"),
        ("Task was killed due to the node running low on memory.", "out of memory: killed by Ray's memory monitor"),
        ("first\nValueError: x\nThe actor never ran - it was cancelled", "ValueError: x"),
        ("", "no reason given"),
    ],
)
def test_causes_are_told_in_a_few_words(cause: str, words: str) -> None:
    assert short(cause) == words


def test_notes_are_gathered_for_a_while_and_lose_nothing() -> None:
    told: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
    for counts in [(1, 0), (1, 1), (2, 0)]:
        told.put(counts)
    assert _gathered(told, 0.05) == (4, 1, True)
    for end in [(1, 0), None]:
        told.put(end)  # type: ignore[arg-type]
    assert _gathered(told, 60) == (1, 0, False)
