"""On object stores, which have no locks, one process at a time folds, compacts or repairs."""

from __future__ import annotations

import pytest

from storage import StoreWriter, open_store, verify_store
from storage.compact import compact, fold
from storage.places import FOLDING, BusyError
from storage.repair import repair_store
from tests.unit.storage.samples import REGIONS, write_unit

URL = "memory://alone/features"


@pytest.fixture
def writer() -> StoreWriter:
    import fsspec

    fsspec.filesystem("memory").store.clear()
    writer = StoreWriter(URL, REGIONS)
    write_unit(writer, ["a", "b"])
    write_unit(writer, ["c"])
    return writer


@pytest.mark.parametrize("work", [fold, compact, repair_store], ids=["fold", "compact", "repair"])
def test_a_second_process_is_told_who_is_at_it(writer: StoreWriter, work: object) -> None:
    with (
        writer.place.alone(),
        pytest.raises(BusyError, match=r"by another process \(.*process.*remove .*folding\.lock"),
    ):
        work(URL)  # type: ignore[operator]
    work(URL)  # type: ignore[operator]
    assert verify_store(URL).problems == [] and sorted(open_store(URL)) == ["a", "b", "c"]


def test_the_mark_goes_when_the_work_ends_and_when_it_fails(writer: StoreWriter) -> None:
    with pytest.raises(RuntimeError), writer.place.alone():
        assert writer.place.size(FOLDING) is not None
        raise RuntimeError
    assert writer.place.size(FOLDING) is None
    assert fold(URL) == 2


def test_units_are_committed_meanwhile(writer: StoreWriter) -> None:
    with writer.place.alone():
        write_unit(StoreWriter(URL, REGIONS), ["d"])
    assert sorted(open_store(URL)) == ["a", "b", "c", "d"]
