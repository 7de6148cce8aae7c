"""The truth of scenes in the official files of the data sets, as `trainers.data` and everybody else reads them.

All data sets show the same pictures, whose official id is the scene's number + 1, so one store serves all of them but
NLVR2 and VCR, which name pictures in their own way. Of Visual Genome, which has no splits, there is training only.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainers.scenes.asking import Balance, Question, guessed, questions
from trainers.scenes.looks import COLOURS, KINDS, TEXTURES
from trainers.scenes.saying import LABELS, captions, expressions, hypothesis, statement
from trainers.scenes.scene import Scene, Thing, chance

SPLITS = ("train", "val", "test")
PARTS = {"train": "train2014", "val": "val2014", "test": "test2015"}  # COCO's folders
ASKED = 5  # questions of a picture, as many as VQA has
PEOPLE = 10  # who answer each
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
PREDICATES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}

Scenes = Mapping[str, Sequence[Scene]]  # by split


@dataclass(frozen=True)
class Written:
    """What was written of one data set: examples by split; of questions, what guessing from the text alone gets of the
    validation split, in percent."""

    examples: dict[str, int]
    guessed: float | None = None


def image_id(scene: Scene) -> int:
    return scene.number + 1


def coco_path(scene: Scene, split: str) -> str:
    """Where a scene's picture lies below the images of COCO."""
    return f"{PARTS[split]}/COCO_{PARTS[split]}_{image_id(scene):012d}.jpg"


def write_all(scenes: Scenes, root: Path) -> dict[str, Written]:
    """Write the annotations of all data sets to `root/annotations/NAME`, by name of data set; the pictures of COCO are
    there already."""
    asked = {split: _asked(of_split) for split, of_split in scenes.items()}
    annotations = root / "annotations"
    return {
        "vqav2": _vqa(scenes, asked, annotations / "vqav2"),
        "gqa": _gqa(scenes, asked, annotations / "gqa"),
        "coco_captions": _coco_captions(scenes, annotations / "coco_captions"),
        "coco": _karpathy(scenes, annotations / "coco", "coco"),
        "flickr30k": _karpathy(scenes, annotations / "flickr30k", "flickr30k"),
        "snli_ve": _snli_ve(scenes, annotations / "snli_ve"),
        "nlvr2": _nlvr2(scenes, annotations / "nlvr2", root / "images"),
        "refcoco": _refcoco(scenes, annotations / "refcoco", places=True),
        "refcoco+": _refcoco(scenes, annotations / "refcoco+", places=False),
        "vcr": _vcr(scenes, annotations / "vcr", root / "images"),
        "visual_genome": _visual_genome(scenes["train"], asked["train"], annotations / "visual_genome"),
    }


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _json_lines(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _linked(source: Path, target: Path) -> None:
    """The same picture under another name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    os.link(source, target)


# Questions


def _asked(scenes: Sequence[Scene]) -> list[list[Question]]:
    balance = Balance()
    return [balance.choose(questions(scene), ASKED) for scene in scenes]


Asked = Mapping[str, Sequence[Sequence[Question]]]


def _flat(asked: Sequence[Sequence[Question]]) -> list[Question]:
    return [each for of_scene in asked for each in of_scene]


def _of_questions(asked: Asked, splits: Mapping[str, str]) -> Written:
    counts = {name: len(_flat(asked[split])) for name, split in splits.items()}
    return Written(counts, guessed(_flat(asked["train"]), _flat(asked["val"])))


def _vqa(scenes: Scenes, asked: Asked, folder: Path) -> Written:
    for split in SPLITS:
        rows, answers = [], []
        for scene, of_scene in zip(scenes[split], asked[split], strict=True):
            for at, each in enumerate(of_scene):
                ids = {"image_id": image_id(scene), "question_id": image_id(scene) * 1000 + at}
                rows.append({**ids, "question": each.text})
                answers.append({**ids, **_ten_answers(each, chance(scene.seed, scene.number, 100 + at))})
        head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": PARTS[split]}
        for part in (PARTS[split], "test-dev2015") if split == "test" else (PARTS[split],):
            path = folder / f"v2_OpenEnded_mscoco_{part}_questions.json"
            _json(path, {**head, "task_type": "Open-Ended", "questions": rows})
        if split != "test":
            _json(folder / f"v2_mscoco_{PARTS[split]}_annotations.json", {**head, "annotations": answers})
    return _of_questions(asked, {**{split: split for split in SPLITS}, "test-dev": "test"})


def _ten_answers(question: Question, rng: np.random.Generator) -> dict[str, Any]:
    """Ten people's answers, of whom up to three are wrong."""
    others = [each for each in question.answers if each != question.answer]
    wrong = [str(rng.choice(others)) for _ in range(rng.integers(4))]
    given = [str(each) for each in rng.permutation([question.answer] * (PEOPLE - len(wrong)) + wrong)]
    kinds = {"yes": "yes/no", "no": "yes/no", "0": "number", "1": "number", "2": "number", "3": "number"}
    rows = [{"answer": each, "answer_confidence": "yes", "answer_id": at} for at, each in enumerate(given, 1)]
    return {
        "question_type": " ".join(question.text.lower().split()[:2]),
        "answer_type": kinds.get(question.answer, "other"),
        "multiple_choice_answer": question.answer,
        "answers": rows,
    }


def _gqa(scenes: Scenes, asked: Asked, folder: Path) -> Written:
    splits = {"train": "train", "val": "val", "testdev": "test"}
    for name, split in splits.items():
        rows = {
            f"{image_id(scene):08d}{at}": _gqa_question(scene, each)
            for scene, of_scene in zip(scenes[split], asked[split], strict=True)
            for at, each in enumerate(of_scene)
        }
        _json(folder / f"{name}_balanced_questions.json", rows)
    return _of_questions(asked, splits)


def _gqa_question(scene: Scene, question: Question) -> dict[str, Any]:
    verify = question.answer in ("yes", "no")
    structural = "verify" if verify else "choose" if question.family in ("size", "pattern") else "query"
    return {
        "question": question.text,
        "imageId": str(image_id(scene)),
        "answer": question.answer,
        "fullAnswer": f"{question.answer[0].upper()}{question.answer[1:]}.",
        "isBalanced": True,
        "types": {"detailed": question.family, "semantic": "rel" if len(question.about) > 1 else "attr"}
        | {"structural": structural},
        "groups": {"global": question.family, "local": None},
        "entailed": [],
        "equivalent": [],
        "semantic": [],
        "semanticStr": "",
        "annotations": {},
    }


# Sentences


def _coco_image(scene: Scene, split: str) -> dict[str, Any]:
    name = coco_path(scene, split).split("/")[1]
    return {"id": image_id(scene), "file_name": name, "height": scene.height, "width": scene.width}


def _coco_captions(scenes: Scenes, folder: Path) -> Written:
    counts = {}
    for split in ("train", "val"):
        rows = [
            {"image_id": image_id(scene), "id": image_id(scene) * 10 + at, "caption": said}
            for scene in scenes[split]
            for at, said in enumerate(captions(scene))
        ]
        images = [_coco_image(scene, split) for scene in scenes[split]]
        _json(
            folder / f"captions_{PARTS[split]}.json",
            {"info": {}, "licenses": [], "images": images, "annotations": rows},
        )
        counts[split] = len(rows)
    return Written(counts)


def _karpathy(scenes: Scenes, folder: Path, name: str) -> Written:
    rows = []
    for split in SPLITS:
        for scene in scenes[split]:
            number, said = image_id(scene), captions(scene)
            path = coco_path(scene, split).split("/")
            own = {"filepath": path[0], "filename": path[1], "cocoid": number}
            sentences = [
                {"raw": text, "tokens": _tokens(text), "imgid": scene.number, "sentid": number * 10 + at}
                for at, text in enumerate(said)
            ]
            # COCO's training takes "restval" as well, which wants to be there
            of = "restval" if name == "coco" and split == "train" and scene.number % 4 == 3 else split
            row = {"imgid": scene.number, "split": of, "sentids": [each["sentid"] for each in sentences]}
            row |= {"sentences": sentences}
            rows.append({**own, **row} if name == "coco" else {"filename": f"{number}.jpg", **row})
    _json(folder / f"dataset_{name}.json", {"images": rows, "dataset": name})
    return Written({split: len(scenes[split]) for split in SPLITS})


def _tokens(text: str) -> list[str]:
    return text.lower().replace(",", "").rstrip(".").split()


def _snli_ve(scenes: Scenes, folder: Path) -> Written:
    counts = {}
    for name, split in {"train": "train", "dev": "val", "test": "test"}.items():
        rows = []
        for scene in scenes[split]:
            key, premise = str(image_id(scene)), captions(scene)[0]
            said = {label: hypothesis(scene, label) for label in LABELS}
            rows += [
                {
                    "Flickr30K_ID": key,
                    "captionID": f"{key}.jpg#0",
                    "pairID": f"{key}.jpg#0r1{label[0]}",
                    "gold_label": label,
                    "annotator_labels": [label],
                    "sentence1": premise,
                    "sentence2": text,
                }
                for label, text in said.items()
                if text is not None and None not in said.values()
            ]
        _json_lines(folder / f"snli_ve_{name}.jsonl", rows)
        counts[name] = len(rows)
    return Written(counts)


# Pairs


def _nlvr2(scenes: Scenes, folder: Path, images: Path) -> Written:
    """Two pairs a sentence, of which one is right; four scenes each."""
    counts = {}
    for name, split in {"train": "train", "dev": "val", "test1": "test"}.items():
        rows = []
        for number in range(len(scenes[split]) // 4):
            four = scenes[split][4 * number : 4 * number + 4]
            pairs = ((four[0], four[1]), (four[2], four[3]))
            found = statement(*pairs, chance(four[0].seed, four[0].number, 8))
            if found is None:
                continue
            for at, pair in enumerate(pairs):
                key, folder_of = f"{name}-{number}-{at}", f"train/{number % 100}" if name == "train" else name
                for side, scene in enumerate(pair):
                    source = images / "coco" / coco_path(scene, split)
                    _linked(source, images / "nlvr2" / "images" / folder_of / f"{key}-img{side}.png")
                row = {"identifier": f"{key}-0", "sentence": found[0], "label": str(found[1] == (at == 0))}
                more = {"left_url": "", "right_url": "", "writer": "0", "synset": "", "query": ""}
                rows.append({**row, **more, **({"directory": number % 100} if name == "train" else {})})
        _json_lines(folder / f"{name}.json", rows)
        counts[name] = len(rows)
    return Written(counts)


# Things


def _refcoco(scenes: Scenes, folder: Path, places: bool) -> Written:
    """The refer toolkit's files; scenes of the test split are testA and testB in turn."""
    refs, images, annotations, counts = [], [], [], dict[str, int]()
    category = {kind: at for at, kind in enumerate(KINDS, 1)}
    for split, scene in [(each, scene) for each in SPLITS for scene in scenes[each]]:
        name = f"test{'AB'[scene.number % 2]}" if split == "test" else split
        images.append(_coco_image(scene, split))
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
    _json(folder / "instances.json", {"images": images, "annotations": annotations, "categories": names})
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


def _vcr(scenes: Scenes, folder: Path, images: Path) -> Written:
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
            _linked(images / "coco" / coco_path(scene, split), place / f"{name}.jpg")
            _json(place / f"{name}.json", _vcr_metadata(scene, tagged))
            rows.append(_vcr_row(scene, split, name, tagged))
        _json_lines(folder / f"{split}.jsonl", rows)
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


def _visual_genome(scenes: Sequence[Scene], asked: Sequence[Sequence[Question]], folder: Path) -> Written:
    own: dict[str, Callable[[Scene], Any]] = {
        "image_data": lambda scene: {"width": scene.width, "height": scene.height, "url": "", "coco_id": None},
        "objects": lambda scene: {"objects": [_vg_object(scene, at) for at in range(len(scene.things))]},
        "attributes": lambda scene: {"attributes": [_vg_attributes(scene, at) for at in range(len(scene.things))]},
        "relationships": lambda scene: {"relationships": list(_vg_relations(scene))},
    }
    for name, made in own.items():
        _json(folder / f"{name}.json", [{"image_id": image_id(scene), **made(scene)} for scene in scenes])
    regions = [list(_vg_regions(scene)) for scene in scenes]
    described = [{"id": image_id(scene), "regions": each} for scene, each in zip(scenes, regions, strict=True)]
    _json(folder / "region_descriptions.json", described)
    rows = [
        {"id": image_id(scene), "qas": [_vg_question(scene, at, each) for at, each in enumerate(of_scene)]}
        for scene, of_scene in zip(scenes, asked, strict=True)
    ]
    _json(folder / "question_answers.json", rows)
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
    for at, thing in enumerate(scene.things):
        x1, y1, x2, y2 = thing.box
        said = (expressions(scene, thing) or [f"{thing.colour} {thing.kind}"])[-1]
        place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "image_id": image_id(scene)}
        yield {**place, "region_id": image_id(scene) * 10 + at, "phrase": said}


def _vg_question(scene: Scene, at: int, question: Question) -> dict[str, Any]:
    answer = f"{question.answer[0].upper()}{question.answer[1:]}."
    own = {"image_id": image_id(scene), "qa_id": image_id(scene) * 1000 + at, "a_objects": [], "q_objects": []}
    return {**own, "question": question.text, "answer": answer}
