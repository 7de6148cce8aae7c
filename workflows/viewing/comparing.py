"""Two stores beside each other: how far they are apart, over all records and in one."""

from __future__ import annotations

from typing import Any

from storage.diff import Difference, diff_record, diff_stores
from workflows.viewing.jobs import Job
from workflows.viewing.opened import Opened

NAMED = 500  # keys of each list that are sent to the page
_LISTS = ("only_in_first", "only_in_second", "resized", "reshaped")


def start_diff(first: Opened, second: Opened) -> Job:
    """Start to compare all records; the result is what the page shows."""

    def work(job: Job) -> None:
        job.result = difference(diff_stores(first.store, second.store, job.tell))

    return Job(work, len(first.store))


def record_difference(first: Opened, second: Opened, key: str) -> dict[str, Any]:
    """How far one record is apart.

    Raises:
        KeyError: one of the stores has no such record.
        StoreError: the stores are of different views or widths.
    """
    return difference(diff_record(first.store, second.store, key))


def difference(found: Difference) -> dict[str, Any]:
    """What `triptych diff --json` prints, the lists of keys cut short, and how long they are."""
    from workflows.stores import difference_facts

    facts = difference_facts(found)
    counts = {name: len(facts[name]) for name in _LISTS}
    fields = {name: {what: _finite(value) for what, value in each.items()} for name, each in facts["fields"].items()}
    return {**facts, **{name: facts[name][:NAMED] for name in _LISTS}, "counts": counts, "fields": fields}


def _finite(value: float) -> float | str:
    return value if abs(value) < float("inf") else str(value)
