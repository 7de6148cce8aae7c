"""Work that goes on while the page is looked at: on a thread, telling how far it is, given up when it is not wanted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

from storage import TriptychError

PATIENCE = 90.0  # seconds that work goes on without being asked for; a browser asks once a minute from a hidden tab


class GivenUpError(Exception):
    """Nobody wants the result any more; raised in the work itself."""


class Job:
    """One piece of work on a thread of its own.

    done, of  how far it is, in images
    result    what it has found so far
    error     what stopped it; empty if nothing did
    finished  True once it has ended, however it did
    """

    def __init__(self, work: Callable[[Job], None], of: int) -> None:
        self.done, self.of = 0, of
        self.result: Any = None
        self.error = ""
        self.finished = False
        self._began = self._ended = self._asked = time.monotonic()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        return (self._ended if self.finished else time.monotonic()) - self._began

    def tell(self, done: int) -> None:
        """Called by the work as it goes.

        Raises:
            GivenUpError: the work is to end, or nobody has asked for it for long.
        """
        if time.monotonic() - self._asked > PATIENCE:
            self.give_up()
        if self.given_up:
            raise GivenUpError
        self.done = done

    def asked(self) -> None:
        """Somebody still wants it."""
        self._asked = time.monotonic()

    @property
    def given_up(self) -> bool:
        return self._given_up.is_set()

    def give_up(self) -> None:
        self._given_up.set()

    def wait(self, seconds: float | None = None) -> None:
        """Until it has ended, or so long."""
        self._thread.join(seconds)

    def facts(self) -> dict[str, Any]:
        """Where it is, for the page."""
        facts = {"done": self.done, "of": self.of, "finished": self.finished, "seconds": round(self.seconds, 2)}
        return facts | ({"error": self.error} if self.error else {})

    def _run(self, work: Callable[[Job], None]) -> None:
        try:
            work(self)
            self.done = self.of
        except GivenUpError:
            self.error = "given up"
        except (TriptychError, OSError) as error:
            self.error = str(error)
        except Exception as error:  # the page must not wait for ever
            self.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            self._ended, self.finished = time.monotonic(), True


class Jobs:
    """The last `most` jobs, by what was asked for: asking again finds the same one, and older ones are given up."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._jobs: dict[Hashable, Job] = {}
        self._lock = threading.Lock()

    def get(self, asked: Hashable, start: Callable[[], Job]) -> Job:
        with self._lock:
            job = self._jobs.pop(asked, None)
            if job is None or job.given_up:
                job = start()
            job.asked()
            self._jobs[asked] = job
            while len(self._jobs) > self._most:
                self._jobs.pop(next(iter(self._jobs))).give_up()
            return job

    def close(self) -> None:
        """Give all of them up, and wait a moment for them."""
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.give_up()
        for job in jobs:
            job.wait(1)
