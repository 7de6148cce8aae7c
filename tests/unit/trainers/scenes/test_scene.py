"""Scenes and their pictures: the same each time, as said, and with all that is there to be seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainers.scenes.drawing import draw
from trainers.scenes.looks import COLOURS, KINDS, TEXTURES, extent, plural
from trainers.scenes.scene import HIDDEN, SHAPES, THINGS, Scene, Thing, make_scene

PHOTOGRAPHS = sorted((Path(__file__).parents[4] / "workflows" / "photos").glob("*.jpg"))
SCENES = [make_scene(3, number) for number in range(300)]


def alone(kind: str, colour: str, texture: str = "plain", side: int = 160) -> Scene:
    return Scene(0, 0, 320, 240, (Thing(kind, colour, texture, "large", (60, 30, side)),))


def test_a_scene_follows_from_seed_and_number() -> None:
    assert make_scene(3, 7) == SCENES[7]
    assert len({repr(scene.things) for scene in SCENES}) == len(SCENES)
    assert make_scene(4, 7) != SCENES[7]
    np.testing.assert_array_equal(draw(SCENES[7], PHOTOGRAPHS), draw(make_scene(3, 7), PHOTOGRAPHS))


def test_there_are_many_kinds_of_things_and_all_come() -> None:
    assert len(KINDS) >= 20 and len(COLOURS) >= 10 and len(TEXTURES) == 4
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.kind for thing in things} == set(KINDS)
    assert {thing.colour for thing in things} == set(COLOURS) and {thing.texture for thing in things} == set(TEXTURES)
    assert {(scene.width, scene.height) for scene in SCENES} == set(SHAPES)


def test_things_lie_within_the_picture_look_different_and_can_be_seen() -> None:
    touching = 0
    for scene in SCENES:
        assert 1 <= len(scene.things) <= THINGS[1] and len({thing.looks for thing in scene.things}) == len(scene.things)
        for at, thing in enumerate(scene.things):
            x1, y1, x2, y2 = thing.box
            assert 0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height
            seen = np.ones((y2 - y1, x2 - x1), bool)
            for front in scene.things[at + 1 :]:
                left, top, right, bottom = front.box
                seen[max(top - y1, 0) : max(bottom - y1, 0), max(left - x1, 0) : max(right - x1, 0)] = False
            assert seen.mean() >= 1 - HIDDEN - 1e-9
            touching += not seen.all()
    assert touching > len(SCENES) / 2, "things are in front of others"
    assert np.mean([len(scene.things) >= THINGS[0] for scene in SCENES]) > 0.95
    assert {len(make_scene(5, number, (1, 3)).things) for number in range(50)} == {1, 2, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_is_where_its_box_is_and_has_its_colour(kind: str) -> None:
    for colour, rgb in COLOURS.items():
        scene = alone(kind, colour)
        picture = np.asarray(draw(scene, PHOTOGRAPHS), float)
        without = np.asarray(draw(Scene(0, 0, 320, 240, ()), PHOTOGRAPHS), float)
        y, x = np.nonzero(np.abs(picture - without).max(axis=2) > 25)
        x1, y1, x2, y2 = scene.things[0].box
        # the shadow falls a few pixels to the lower right
        assert x.min() >= x1 - 2 and y.min() >= y1 - 2 and x.max() <= x2 + 12 and y.max() <= y2 + 12
        hues = picture[y, x]
        near = min(COLOURS, key=lambda name: float(np.abs(np.median(hues, axis=0) - COLOURS[name]).sum()))
        assert near == colour or np.abs(np.median(hues, axis=0) - rgb).max() < 60, (
            kind,
            colour,
            np.median(hues, axis=0),
        )


def test_boxes_are_tight() -> None:
    for kind in KINDS:
        bare = Scene(0, 0, 320, 240, ())
        picture, without = (np.asarray(draw(each, PHOTOGRAPHS), float) for each in (alone(kind, "black"), bare))
        y, x = np.nonzero(np.abs(picture - without).max(axis=2) > 25)
        x1, y1, x2, _ = alone(kind, "black").things[0].box
        assert x.min() <= x1 + 12 and y.min() <= y1 + 12 and x.max() >= x2 - 12, (kind, extent(kind))


def test_textures_are_seen() -> None:
    plain = np.asarray(draw(alone("ball", "red"), PHOTOGRAPHS), float)[60:150, 100:190]
    for texture in TEXTURES[1:]:
        marked = np.asarray(draw(alone("ball", "red", texture), PHOTOGRAPHS), float)[60:150, 100:190]
        share = float((np.abs(marked - plain).max(axis=2) > 40).mean())
        assert 0.2 < share < 0.7, texture


def test_places_are_said_only_where_they_are_plain() -> None:
    a, b, c = (Thing("ball", "red", "plain", "small", (x, 50, 40)) for x in (20, 25, 250))
    scene = Scene(0, 0, 320, 240, (a, b, c))
    assert scene.left_of(a, b) is None and scene.left_of(a, c) is True and scene.left_of(c, a) is False
    assert scene.above(a, c) is None and scene.side_of(a) == "left" and scene.side_of(c) == "right"


def test_words_for_more_than_one() -> None:
    assert [plural(kind) for kind in ("ball", "box", "bus", "fish")] == ["balls", "boxes", "buses", "fish"]
