"""Jobs: found again, told of, given up when others take their place."""

from __future__ import annotations

import threading

import pytest

from storage import StoreError
from workflows.viewing.jobs import Job, Jobs


def waiting(job: Job) -> None:
    """Goes on until it is given up."""
    at = 0
    while True:
        at = min(at + 1, 5)
        job.tell(at)


def test_the_same_question_finds_the_same_job_and_the_oldest_is_given_up() -> None:
    jobs = Jobs(2)
    first = jobs.get("a", lambda: Job(waiting, 9))
    assert jobs.get("a", lambda: pytest.fail("it was started twice")) is first
    second = jobs.get("b", lambda: Job(waiting, 9))
    jobs.get("c", lambda: Job(waiting, 9))
    first.wait(5)
    assert first.finished and first.error == "given up" and not second.finished
    jobs.close()
    assert second.finished


def test_what_nobody_asks_for_ends_and_is_started_anew_when_somebody_does(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs(2)
    first = jobs.get("a", lambda: Job(waiting, 9))
    monkeypatch.setattr("workflows.viewing.jobs.PATIENCE", -1.0)
    first.wait(5)
    assert first.error == "given up"
    monkeypatch.undo()
    assert jobs.get("a", lambda: Job(waiting, 9)) is not first
    jobs.close()


def test_what_goes_wrong_is_told_and_what_ends_is_done() -> None:
    def fail(job: Job) -> None:
        raise StoreError("shard 3 is damaged")

    broken, whole = Job(fail, 4), Job(lambda job: job.tell(1), 4)
    for job in (broken, whole):
        job.wait(5)
    assert broken.facts()["error"] == "shard 3 is damaged" and broken.facts()["finished"]
    assert whole.facts()["done"] == 4 and "error" not in whole.facts()


def test_a_fault_of_ours_ends_the_job_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    job = Job(lambda job: {}["x"], 1)
    job.wait(5)
    assert job.error == "KeyError: 'x'"
