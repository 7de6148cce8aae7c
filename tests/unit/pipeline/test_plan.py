"""Cutting work into units."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from pipeline.plan import CPU_SHARD_IMAGES, bytes_per_image, images_per_unit, make_plan
from pipeline.sources import ImageRef, Listing, Refs, refs
from storage import FeatureLayout, Spec

LISTING = Listing([ImageRef(f"k{index}", f"/x/k{index}.jpg") for index in range(10)])


def among(keys: set[str]) -> Callable[[Sequence[str]], list[bool]]:
    return lambda asked: [key in keys for key in asked]


def region_spec(rule: str = "10-100", probs: int = 0) -> Spec:
    selection = {"rule": rule, "max_boxes": 36}
    return Spec("regions", FeatureLayout(2048, class_probs=probs), selection=selection)


def test_units_hold_every_uncommitted_image_once_and_in_order() -> None:
    plan = make_plan(LISTING, among({"k3", "k8", "elsewhere"}), per_unit=3)
    assert [unit.keys for unit in plan.units] == [["k0", "k1", "k2"], ["k4", "k5", "k6"], ["k7", "k9"]]
    assert (plan.images, plan.done, plan.to_do) == (10, 2, 8)


def test_a_limit_takes_the_first_images_done_or_not() -> None:
    plan = make_plan(LISTING, among({"k1"}), per_unit=5, limit=3)
    assert [unit.keys for unit in plan.units] == [["k0", "k2"]]
    assert (plan.images, plan.done) == (3, 1)


def test_a_done_source_leaves_no_unit() -> None:
    assert list(make_plan(LISTING, among({ref.key for ref in LISTING.refs}), per_unit=5).units) == []


def test_units_are_a_sequence_cut_when_asked_for() -> None:
    plan = make_plan(LISTING, among({"k0"}), per_unit=4)
    assert [len(unit.refs) for unit in plan.units] == [4, 4, 1] and len(plan.units) == 3
    assert plan.units[-1].keys == ["k9"] and [unit.keys[0] for unit in plan.units[:2]] == ["k1", "k5"]
    with pytest.raises(IndexError):
        plan.units[3]
    again = plan.cut(9)
    assert [unit.keys for unit in again.units] == [[f"k{number}" for number in range(1, 10)]]
    assert (again.images, again.done, len(plan.units)) == (10, 1, 3)


def test_a_large_source_is_planned_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is asked for a page of keys at a time, and never for those beyond the limit."""
    monkeypatch.setattr(refs, "PAGE", 100)
    monkeypatch.setattr(refs, "HELD", 300)
    listing = Listing(Refs.of(ImageRef(f"k{number}", f"/x/{number}") for number in range(1000)))
    asked: list[int] = []

    def done(keys: Sequence[str]) -> list[bool]:
        asked.append(len(keys))
        return [int(key[1:]) % 5 < 2 for key in keys]

    plan = make_plan(listing, done, per_unit=64, limit=950)
    assert (plan.images, plan.done, plan.to_do, len(plan.units)) == (950, 380, 570, 9)
    assert sum(asked) == 950 and max(asked) == 100
    planned = [key for unit in plan.units for key in unit.keys]
    assert planned == [f"k{number}" for number in range(950) if number % 5 >= 2]
    assert plan.refs.holding(["k949", "k950", "x"]) == {"k949"}


def test_a_unit_is_about_256_mib_on_a_gpu() -> None:
    assert 1300 < images_per_unit(region_spec(), on_cpu=False) < 1500
    grid = Spec("grid", FeatureLayout(2048), preprocess={"shorter": 600, "longer": 1000})
    assert 115 < images_per_unit(grid, on_cpu=False) < 145


def test_a_unit_is_small_on_a_cpu() -> None:
    assert images_per_unit(region_spec(), on_cpu=True) == CPU_SHARD_IMAGES


@pytest.mark.parametrize(
    ("wide", "narrow"), [(region_spec(probs=1601), region_spec()), (region_spec(), region_spec("class-aware"))]
)
def test_more_stored_numbers_make_an_image_larger(wide: Spec, narrow: Spec) -> None:
    assert bytes_per_image(wide) > bytes_per_image(narrow)
