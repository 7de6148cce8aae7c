"""The pool of a Ray job, as the driver sees it: who runs which unit, who died over what, and what is done about it.

The plan is walked, never listed: only the units under way are held, and those that wait to be repeated. A unit may run
twice, since it is committed once. One that killed two processes is cut: the images that were under way when the second
one died are run one by one at the end, the others as a unit of their own; an image that kills two more is given up.
A lost node is nobody's fault and counts against nothing.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from pipeline.cluster_actor import Note, Standing
from pipeline.plan import Unit
from pipeline.sources import ImageRef
from pipeline.unit import OnImages, UnitReport
from storage import TriptychError

DEATHS_ALLOWED = 2  # of processes over one unit, or one image alone
STARTS_IN_VAIN = 3  # actors that die in a row before they stand: the job's fault, not an image's
DEATHS_IN_A_ROW = 100  # without one finished image between them
NOTES_A_SECOND = 500  # that all actors together may send
UNREACHABLE_FOR = 60.0  # seconds until an actor that does not answer, and is not known to be dead, is given up

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Work:
    """A unit on its way to being committed.

    deaths  processes that died over it
    wary    it is suspected: it has an actor to itself, so that a death is surely its own, and tells of each image
    counts  images finished and failed in its present run
    told    the same, as progress has counted them: images that are run again are not counted again
    """

    unit: Unit
    deaths: int = 0
    wary: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    ended: bool = False


@dataclass(eq=False)
class Member:
    """An actor, until it is lost. `coming` resolves once it stands; of what it was given, the first is what it runs, or
    is about to commit while it runs those behind."""

    handle: Any
    coming: Any
    standing: Standing | None = None
    given: deque[tuple[Any, Work]] = field(default_factory=deque)


@dataclass(frozen=True)
class Size:
    """How many actors there may be, how many must stand before work begins, seconds to wait for so many, and how many
    units each of them has at once."""

    most: int
    least: int
    patience: float
    units: int


class Pool:
    """Runs units on actors, replaces those that die, and finds the images that kill them.

    Args:
        start: asks for one more actor; Ray places it when there is room, and its autoscaler sees that it is wanted.
        units: the plan's; read from front to back.
        window: images of a unit that are under way at once, at most.
        give_up: writes the error row of an image that kills its process, with what is known of the cause.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        units: Sequence[Unit],
        size: Size,
        window: int,
        give_up: Callable[[ImageRef, str], None],
    ) -> None:
        self._start, self._size, self._window, self._give_up = start, size, window, give_up
        self._coming, self._left = iter(units), len(units)
        self._again: deque[Work] = deque()
        self._suspects: deque[Work] = deque()
        self._members: list[Member] = []
        self._lost: list[tuple[Future[str], Member]] = []
        self._begun, self._enough_since = False, time.monotonic()
        self._vain_starts = self._deaths_in_a_row = 0
        self._inquiries = ThreadPoolExecutor(4, thread_name_prefix="inquiry")

    @property
    def standing(self) -> int:
        """Actors that are ready now."""
        return sum(member.standing is not None for member in self._members)

    def run(self, on_images: OnImages) -> Iterator[UnitReport]:
        """Yield a report a unit, in the order they finish.

        Raises:
            TriptychError: an error that concerns the whole job, or no actors to be had.
        """
        try:
            while self._open:
                self._fit()
                self._hand_out()
                for member, ready in self._awaited():
                    yield from self._hear(member, ready, on_images)
                yield from self._settle_losses(on_images)
                self._check_patience()
        finally:
            for member in [*self._members, *(member for _, member in self._lost)]:
                _kill(member)
            self._inquiries.shutdown(wait=False, cancel_futures=True)

    @property
    def _waiting(self) -> int:
        """Units that nobody has been given."""
        return self._left + len(self._again) + len(self._suspects)

    @property
    def _open(self) -> int:
        """Units that are not finished."""
        held = [*self._members, *(member for _, member in self._lost)]
        return self._waiting + sum(len(member.given) for member in held)

    def _fit(self) -> None:
        """Ask for actors as long as there are units for them, and let those go that will have none."""
        busy = sum(bool(member.given) for member in self._members)
        while len(self._members) < min(self._size.most, busy + self._waiting):
            handle = self._start()
            self._members.append(Member(handle, handle.standing.remote()))
        if not self._waiting and not self._lost:
            for member in [each for each in self._members if not each.given]:
                self._members.remove(member)
                _kill(member)

    def _hand_out(self) -> None:
        """One unit each, and another one where there are more than enough."""
        standing = [member for member in self._members if member.standing]
        self._begun = self._begun or len(standing) >= min(self._size.least, self._open)
        for depth in range(1, self._size.units + 1 if self._waiting > len(self._members) else 2):
            for member in standing if self._begun else []:
                free = len(member.given) < depth and not any(work.wary for _, work in member.given)
                if free and (work := self._next(second=bool(member.given))):
                    every = 0.0 if work.wary else max(0.1, self._size.most / NOTES_A_SECOND)
                    notes = member.handle.run.options(num_returns="streaming").remote(work.unit, every)
                    member.given.append((notes, work))

    def _next(self, second: bool) -> Work | None:
        """What was interrupted goes first, what is suspected goes last, and never behind another unit."""
        if self._again and not (second and self._again[0].wary):
            return self._again.popleft()
        if self._left:
            self._left -= 1
            return Work(next(self._coming))
        return self._suspects.popleft() if self._suspects and not second else None

    def _awaited(self) -> list[tuple[Member, Any]]:
        """Members that have something to say, and by what; waits for the first a second at most."""
        by = {_awaited_of(member): member for member in self._members if member.given or not member.standing}
        if not by:
            time.sleep(0.05)  # all are being inquired after
            return []
        ready, rest = ray.wait(list(by), num_returns=1, timeout=1.0, fetch_local=False)
        if ready and rest:  # and whoever speaks at the same time, so that a large pool is not asked for each note
            ready += ray.wait(rest, num_returns=len(rest), timeout=0.01, fetch_local=False)[0]
        return [(by[each], each) for each in ready]

    def _hear(self, member: Member, ready: Any, on_images: OnImages) -> Iterator[UnitReport]:
        try:
            if not member.standing:
                self._stands(member, ray.get(ready))
                return
            note = ray.get(next(ready))
        except StopIteration:
            member.given.popleft()
        except ray.exceptions.ActorUnavailableError:
            self._lose(member, self._inquiries.submit(_cause_of, member))
        except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
            known: Future[str] = Future()
            known.set_result(str(error))
            self._lose(member, known)
        else:
            yield from self._take(member.given[0][1], note, on_images)

    def _stands(self, member: Member, standing: Standing) -> None:
        if standing.trouble:
            raise TriptychError(standing.trouble)
        member.standing, self._vain_starts = standing, 0

    def _take(self, work: Work, note: Note, on_images: OnImages) -> Iterator[UnitReport]:
        if note.trouble:
            raise TriptychError(note.trouble)
        if note.images:
            self._deaths_in_a_row = 0
        work.counts += Counter(images=note.images, failed=note.failed)
        _tell(work, on_images)
        if note.report:
            work.ended = True
            yield note.report

    def _lose(self, member: Member, cause: Future[str]) -> None:
        self._members.remove(member)
        self._lost.append((cause, member))

    def _settle_losses(self, on_images: OnImages) -> Iterator[UnitReport]:
        """Give the units of dead actors to others, once it is known what they died of."""
        for loss in [each for each in self._lost if each[0].done()]:
            self._lost.remove(loss)
            cause, member = loss[0].result(), loss[1]
            _kill(member)  # one that is only unreachable must not go on
            works = [work for _, work in member.given if not work.ended]
            fault = not _is_lost_node(cause)
            where = f"on {member.standing.address}" if member.standing else "that was being started"
            log.warning("an actor %s is lost (%s); its %d units are run again", where, short(cause), len(works))
            if fault:
                self._count_death(member, cause)
            if fault and works and works[0] is member.given[0][1]:
                yield from self._blame(works.pop(0), cause, on_images)
            for work in works:
                self._repeat(work)

    def _count_death(self, member: Member, cause: str) -> None:
        if member.standing:
            self._deaths_in_a_row += 1
        else:
            self._vain_starts += 1
        if self._vain_starts >= STARTS_IN_VAIN or self._deaths_in_a_row >= DEATHS_IN_A_ROW:
            deaths = self._deaths_in_a_row if member.standing else self._vain_starts
            what = "without finishing one image" if member.standing else "while they were being started"
            raise TriptychError(
                f"{deaths} actors in a row died {what}, the last one so: {short(cause)}; look into the logs of its "
                "node (`ray logs`), and run the same command again. What is committed is kept."
            )

    def _blame(self, work: Work, cause: str, on_images: OnImages) -> Iterator[UnitReport]:
        """Run once more what killed one process; cut what killed two, or give it up."""
        work.deaths, work.wary = work.deaths + 1, True
        if work.deaths < DEATHS_ALLOWED:
            self._repeat(work)
        elif len(work.unit.refs) > 1:
            rest, suspects = _cut(work, self._window)
            self._again += rest
            self._suspects += suspects
            log.warning("%d images are suspected of killing their process; they are run one by one", len(suspects))
        else:
            [ref] = work.unit.refs
            log.warning("image %r killed %d processes alone (%s); given up", ref.key, work.deaths, short(cause))
            self._give_up(ref, cause)
            work.counts = Counter(images=1, failed=1)
            _tell(work, on_images)
            yield UnitReport(images=1, reasons=Counter(crashed=1))

    def _repeat(self, work: Work) -> None:
        work.counts = Counter()
        self._again.append(work)

    def _check_patience(self) -> None:
        needed = 1 if self._begun else min(self._size.least, self._open)
        if self.standing >= needed or self._lost:
            self._enough_since = time.monotonic()
        elif time.monotonic() - self._enough_since > self._size.patience:
            raise TriptychError(
                f"{self.standing} of {needed} actors were to be had within {self._size.patience:.0f} seconds: "
                f"{what_there_is()}; wait for other jobs, add nodes, or ask for fewer with --workers and --min-workers."
            )


def what_there_is() -> str:
    """The cluster's resources, and how much of them nobody uses, in words."""
    there, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{there.get(kind, 0):g} {kind}s ({free.get(kind, 0):g} free)" for kind in ("CPU", "GPU")]
    nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return f"the Ray cluster has {' and '.join(parts)} on {nodes} {'node' if nodes == 1 else 'nodes'}"


def short(cause: str) -> str:
    """What Ray says of a death, in a few words."""
    if _is_lost_node(cause):
        return "its node is gone"
    if "memory" in cause and "killed due to" in cause:
        return "out of memory: killed by Ray's memory monitor"
    if "connection error code 2" in cause or "SYSTEM_ERROR" in cause:
        return "its process was killed or crashed"
    lines = [line.strip() for line in cause.splitlines() if line.strip() and "never ran" not in line]
    return lines[-1][:200] if lines else "no reason given"


def _is_lost_node(cause: str) -> bool:
    return "its node has died" in cause or "node was terminated" in cause or cause == _UNREACHABLE


_UNREACHABLE = "unreachable"


def _cause_of(member: Member) -> str:
    """Why an actor does not answer: Ray learns of a lost node by its missing heartbeats, within half a minute."""
    until = time.monotonic() + UNREACHABLE_FOR
    while time.monotonic() < until:
        try:
            ray.get(member.handle.standing.remote(), timeout=5)
            return _UNREACHABLE  # it is back, but what it said meanwhile is lost
        except (ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
            time.sleep(0.5)
        except ray.exceptions.RayActorError as error:
            return str(error)
    return _UNREACHABLE


def _awaited_of(member: Member) -> Any:
    return member.given[0][0] if member.standing else member.coming


def _kill(member: Member) -> None:
    with suppress(ray.exceptions.RayError, ValueError):
        ray.kill(member.handle)


def _tell(work: Work, on_images: OnImages) -> None:
    """Count what is finished, except what an earlier run of the unit has counted."""
    images, failed = (max(0, work.counts[kind] - work.told[kind]) for kind in ("images", "failed"))
    if images or failed:
        on_images(images, failed)
    work.told |= work.counts


def _cut(work: Work, window: int) -> tuple[list[Work], list[Work]]:
    """A unit that killed two processes: what was surely not under way as a unit, and what may have been, one by one."""
    refs = work.unit.refs
    first = min(work.counts["images"], len(refs) - 1)
    rest = refs[:first] + refs[first + window :]
    parts = [Unit(rest, work.unit.again)] if rest else []
    parts += [Unit((ref,), work.unit.again) for ref in refs[first : first + window]]
    cut = [Work(part, wary=len(part.refs) == 1) for part in parts]
    for each in cut:  # what progress has counted stays counted
        for kind in ("images", "failed"):
            each.told[kind] = min(len(each.unit.refs), work.told[kind])
            work.told[kind] -= each.told[kind]
    return cut[: bool(rest)], cut[bool(rest) :]
