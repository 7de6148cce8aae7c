"""The chance of an example, split by purpose."""

from __future__ import annotations

from trainers.tasks.base import generator, seeds
from trainers.tasks.objective import PURPOSES, Chances, Drawn


def test_each_purpose_has_the_generator_that_is_spawned_for_it_in_whatever_order_they_are_asked() -> None:
    spawned = generator(1, 2, 3).spawn(2)[1].spawn(len(PURPOSES))
    chances = Chances(seeds(1, 2, 3).spawn(2)[1])
    found = {purpose: chances[purpose].random() for purpose in reversed(PURPOSES)}
    assert found == {purpose: each.random() for purpose, each in zip(PURPOSES, spawned, strict=True)}


def test_a_generator_goes_on_and_only_those_that_are_asked_are_made() -> None:
    chances = Chances(seeds(1, 2, 3))
    assert chances["words"].random() != chances["words"].random()
    assert list(chances) == ["words"]


def test_generators_that_nobody_asks_for_are_not_made() -> None:
    chances = [Chances(seeds(1, 2, number)) for number in range(4)]
    drawn = Drawn(chances, "colours")
    assert len(drawn) == 4 and not any(chances)
    assert drawn[1:3][1] is chances[2]["colours"] and [len(each) for each in chances] == [0, 0, 1, 0]
    assert list(drawn) == [each["colours"] for each in chances]
