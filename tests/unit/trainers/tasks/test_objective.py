"""The chance of an example, split by purpose."""

from __future__ import annotations

from trainers.tasks.base import generator
from trainers.tasks.objective import PURPOSES, Chances


def test_each_purpose_has_the_generator_that_is_spawned_for_it_in_whatever_order_they_are_asked() -> None:
    spawned = generator(1, 2, 3).spawn(2)[1].spawn(len(PURPOSES))
    chances = Chances(generator(1, 2, 3).spawn(2)[1])
    found = {purpose: chances[purpose].random() for purpose in reversed(PURPOSES)}
    assert found == {purpose: each.random() for purpose, each in zip(PURPOSES, spawned, strict=True)}


def test_a_generator_goes_on_and_only_those_that_are_asked_are_made() -> None:
    chances = Chances(generator(1, 2, 3))
    assert chances["words"].random() != chances["words"].random()
    assert list(chances) == ["words"]
