"""Things by their boxes in the official files of RefCOCO, RefCOCO+ and VCR."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainers.data.files import write_json, write_json_lines
from trainers.scenes.looks import COLOURS, KINDS, TEXTURES
from trainers.scenes.official import SPLITS, Scenes, Written, coco_image, coco_path, image_id, linked
from trainers.scenes.saying import expressions
from trainers.scenes.scene import Scene, Thing, chance

VCR_KINDS = (
    "bird",
    "boat",
    "book",
    "bottle",
    "bowl",
    "bus",
    "car",
    "chair",
    "clock",
    "cup",
    "kite",
    "umbrella",
    "vase",
)


def write_refcoco(scenes: Scenes, folder: Path, places: bool) -> Written:
    """The refer toolkit's files; scenes of the test split are testA and testB in turn."""
    refs, images, annotations, counts = [], [], [], dict[str, int]()
    category = {kind: at for at, kind in enumerate(KINDS, 1)}
    for split, scene in [(each, scene) for each in SPLITS for scene in scenes[each]]:
        name = f"test{'AB'[scene.number % 2]}" if split == "test" else split
        images.append(coco_image(scene, split))
        for at, thing in enumerate(scene.things):
            x1, y1, x2, y2 = map(float, thing.box)
            own = image_id(scene) * 10 + at
            annotations.append(
                {"id": own, "image_id": image_id(scene), "category_id": category[thing.kind], "iscrowd": 0}
                | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            )
            said = expressions(scene, thing, places)[:3]
            if said:
                refs.append(_ref(scene, split, name, own, category[thing.kind], said))
                counts[name] = counts.get(name, 0) + len(said)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    names = [{"id": number, "name": kind, "supercategory": "thing"} for kind, number in category.items()]
    write_json(folder / "instances.json", {"images": images, "annotations": annotations, "categories": names})
    return Written(counts)


def _ref(scene: Scene, split: str, name: str, own: int, category: int, said: Sequence[str]) -> dict[str, Any]:
    sentences = [
        {"sent_id": own * 10 + at, "sent": text, "raw": text, "tokens": text.split()} for at, text in enumerate(said)
    ]
    file = coco_path(scene, split).split("/")[1].replace(".jpg", f"_{own}.jpg")
    return {
        "ref_id": own,
        "ann_id": own,
        "image_id": image_id(scene),
        "category_id": category,
        "split": name,
        "file_name": file,
        "sent_ids": [each["sent_id"] for each in sentences],
        "sentences": sentences,
    }


def write_vcr(scenes: Scenes, folder: Path, images: Path) -> Written:
    """Of scenes with two things or more whose kinds are COCO's: which colour has one, and what stands beside it?"""
    counts = {}
    for split in SPLITS:
        rows = []
        for scene in scenes[split]:
            tagged = [thing for thing in scene.things if thing.kind in VCR_KINDS]
            if len(tagged) < 2:
                continue
            name = f"lsmdc_0000_Scenes/{image_id(scene):08d}@0"
            place = images / "vcr" / "vcr1images"
            linked(images / "coco" / coco_path(scene, split), place / f"{name}.jpg")
            write_json(place / f"{name}.json", _vcr_metadata(scene, tagged))
            rows.append(_vcr_row(scene, split, name, tagged))
        write_json_lines(folder / f"{split}.jsonl", rows)
        counts[split] = len(rows)
    return Written(counts)


def _vcr_metadata(scene: Scene, tagged: Sequence[Thing]) -> dict[str, Any]:
    corners = [[[x1, y1], [x2, y1], [x2, y2], [x1, y2]] for x1, y1, x2, y2 in (thing.box for thing in tagged)]
    return {
        "boxes": [[*map(float, thing.box), 1.0] for thing in tagged],
        "segms": [[each] for each in corners],
        "names": [thing.kind for thing in tagged],
        "width": scene.width,
        "height": scene.height,
    }


def _vcr_row(scene: Scene, split: str, name: str, tagged: Sequence[Thing]) -> dict[str, Any]:
    rng = chance(scene.seed, scene.number, 9)
    thing, other = tagged[0], tagged[1]
    answer, colours = _one_of_four(rng, thing.colour, list(COLOURS))
    # The reason says the pattern of another thing: the answer does not tell it.
    reason, textures = _one_of_four(rng, other.texture, list(TEXTURES))
    row = {
        "annot_id": f"{split}-{image_id(scene)}",
        "img_id": f"{split}-{image_id(scene)}",
        "img_fn": f"{name}.jpg",
        "metadata_fn": f"{name}.json",
        "movie": "0000_Scenes",
        "objects": [each.kind for each in tagged],
        "question": ["What", "color", "is", [0], "?"],
        "answer_choices": [[[0], "is", colour, "."] for colour in colours],
        "rationale_choices": [["I", "see", [0], "and", [1], ",", "which", "is", texture, "."] for texture in textures],
    }
    return row if split == "test" else {**row, "answer_label": answer, "rationale_label": reason}


def _one_of_four(rng: np.random.Generator, right: str, names: Sequence[str]) -> tuple[int, list[str]]:
    """Four different names with the right one among them, and its place."""
    others = rng.choice([name for name in names if name != right], 3, replace=False)
    four = [str(each) for each in rng.permutation([right, *others])]
    return four.index(right), four
