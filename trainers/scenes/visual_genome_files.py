"""Things, attributes, relations, regions and questions in the official files of Visual Genome."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from trainers.data.files import write_json
from trainers.scenes.asking import Question
from trainers.scenes.official import Written, image_id
from trainers.scenes.saying import described, expressions
from trainers.scenes.scene import Scene

PREDICATES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}


def write_visual_genome(scenes: Sequence[Scene], asked: Sequence[Sequence[Question]], folder: Path) -> Written:
    own: dict[str, Callable[[Scene], Any]] = {
        "image_data": lambda scene: {"width": scene.width, "height": scene.height, "url": "", "coco_id": None},
        "objects": lambda scene: {"objects": [_vg_object(scene, at) for at in range(len(scene.things))]},
        "attributes": lambda scene: {"attributes": [_vg_attributes(scene, at) for at in range(len(scene.things))]},
        "relationships": lambda scene: {"relationships": list(_vg_relations(scene))},
    }
    for name, made in own.items():
        write_json(folder / f"{name}.json", [{"image_id": image_id(scene), **made(scene)} for scene in scenes])
    regions = [list(_vg_regions(scene)) for scene in scenes]
    described = [{"id": image_id(scene), "regions": each} for scene, each in zip(scenes, regions, strict=True)]
    write_json(folder / "region_descriptions.json", described)
    rows = [
        {"id": image_id(scene), "qas": [_vg_question(scene, at, each) for at, each in enumerate(of_scene)]}
        for scene, of_scene in zip(scenes, asked, strict=True)
    ]
    write_json(folder / "question_answers.json", rows)
    return Written({"train": sum(map(len, regions))})


def _vg_place(scene: Scene, at: int) -> dict[str, Any]:
    x1, y1, x2, y2 = scene.things[at].box
    return {"object_id": image_id(scene) * 10 + at, "x": x1, "y": y1, "w": x2 - x1, "h": y2 - y1}


def _vg_object(scene: Scene, at: int) -> dict[str, Any]:
    return {**_vg_place(scene, at), "names": [scene.things[at].kind], "synsets": []}


def _vg_attributes(scene: Scene, at: int) -> dict[str, Any]:
    thing = scene.things[at]
    return {**_vg_object(scene, at), "attributes": [thing.colour, thing.texture, thing.size]}


def _vg_relations(scene: Scene) -> Iterable[dict[str, Any]]:
    number = 0
    for a, b in ((a, b) for a in range(len(scene.things)) for b in range(len(scene.things)) if a < b):
        one, other = scene.things[a], scene.things[b]
        found = {"left": scene.left_of(one, other), "above": scene.above(one, other)}
        for way, holds in found.items():
            if holds is None:
                continue
            name = way if holds else {"left": "right", "above": "below"}[way]
            number += 1
            yield {
                "relationship_id": image_id(scene) * 100 + number,
                "predicate": PREDICATES[name],
                "synsets": [],
                "subject": {**_vg_place(scene, a), "name": one.kind, "synsets": []},
                "object": {**_vg_place(scene, b), "name": other.kind, "synsets": []},
            }


def _vg_regions(scene: Scene) -> Iterable[dict[str, Any]]:
    """Of each thing two phrases: one with all that can be said of it, and one that fits it alone, if one does."""
    number = 0
    for thing in scene.things:
        x1, y1, x2, y2 = thing.box
        place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "image_id": image_id(scene)}
        for said in dict.fromkeys((described(thing, size=True), *expressions(scene, thing)[-1:])):
            yield {**place, "region_id": image_id(scene) * 100 + number, "phrase": said}
            number += 1


def _vg_question(scene: Scene, at: int, question: Question) -> dict[str, Any]:
    answer = f"{question.answer[0].upper()}{question.answer[1:]}."
    own = {"image_id": image_id(scene), "qa_id": image_id(scene) * 1000 + at, "a_objects": [], "q_objects": []}
    return {**own, "question": question.text, "answer": answer}
