"""Tiny data sets in the official files, with pictures from which every answer can be learnt.

A picture shows plain shapes on grey; picture i's colour and shape follow from i. Each writer makes `n` pictures a
split, other ones in each, below `root`, and returns where they are. Files, keys and image names are the published ones.
"""

from __future__ import annotations

import csv
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from trainers.data.files import write_json, write_json_lines

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "yellow": (230, 220, 30)}
SHAPES = ("circle", "square")
SIDE = 64  # pixels of a picture
SNLI_LABELS = ("contradiction", "neutral", "entailment")

Box = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels
Thing = tuple[str, str, Box]  # colour, shape, where


@dataclass(frozen=True)
class Files:
    """Where a data set was written.

    annotations  what `--annotations` and `--root` take
    images       what `--images` takes
    """

    annotations: Path
    images: Path

    def __post_init__(self) -> None:
        self.annotations.mkdir(parents=True, exist_ok=True)
        self.images.mkdir(parents=True, exist_ok=True)


def files_in(root: Path) -> Files:
    return Files(root / "annotations", root / "images")


def colour_of(number: int) -> str:
    return list(COLOURS)[number % len(COLOURS)]


def shape_of(number: int) -> str:
    return SHAPES[number // len(COLOURS) % len(SHAPES)]


def words_of(number: int) -> str:
    """What a caption says of a picture: `red circle`."""
    return f"{colour_of(number)} {shape_of(number)}"


def thing_of(number: int) -> Thing:
    """One large shape, a few pixels from the middle."""
    shift = number % 5 * 2
    return colour_of(number), shape_of(number), (8 + shift, 10, 48 + shift, 50)


def pair_of(number: int) -> list[Thing]:
    """Two shapes beside each other, of two colours."""
    left, right = colour_of(number), colour_of(number + 1 + number // 4 % 3)
    shape = shape_of(number)
    return [(left, shape, (4, 16, 30, 42)), (right, shape, (34, 20, 60, 46))]


def draw(path: Path, things: Iterable[Thing]) -> None:
    """A picture as JPEG, whatever its name ends in: NLVR2's are like that."""
    image = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    canvas = ImageDraw.Draw(image)
    for colour, shape, box in things:
        shown = canvas.ellipse if shape == "circle" else canvas.rectangle
        shown(box, fill=COLOURS[colour])
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=95)


def split_numbers(splits: Sequence[str], n: int) -> dict[str, range]:
    """The pictures of each split, n to each, in order."""
    return {split: range(at * n, (at + 1) * n) for at, split in enumerate(splits)}


def coco_name(part: str, image_id: int) -> str:
    return f"{part}/COCO_{part}_{image_id:012d}.jpg"


def write_vqa(root: Path, n: int = 8) -> Files:
    """VQA v2: train2014, val2014 with answers, test2015 and test-dev2015 without. Two questions a picture.

    Seven of the ten answers are right, so that its soft target is 1; the others say something else.
    """
    files = files_in(root)
    for part, numbers in split_numbers(("train2014", "val2014", "test2015"), n).items():
        questions, annotations = [], []
        for number in numbers:
            draw(files.images / coco_name(part, number + 1), [thing_of(number)])
            asked = (("What color is it?", colour_of(number)), ("What shape is it?", shape_of(number)))
            for at, (question, answer) in enumerate(asked):
                ids = {"image_id": number + 1, "question_id": (number + 1) * 1000 + at}
                questions.append({**ids, "question": question})
                annotations.append({**ids, **_vqa_answers(question, answer)})
        head = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": part}
        named = [part, "test-dev2015"] if part == "test2015" else [part]
        for name in named:
            path = files.annotations / f"v2_OpenEnded_mscoco_{name}_questions.json"
            write_json(path, {**head, "task_type": "Open-Ended", "questions": questions})
        if part != "test2015":
            path = files.annotations / f"v2_mscoco_{part}_annotations.json"
            write_json(path, {**head, "annotations": annotations})
    return files


def _vqa_answers(question: str, answer: str) -> dict[str, Any]:
    given = [answer] * 7 + ["thing", "picture", f"a {answer}"]
    answers = [{"answer": each, "answer_confidence": "yes", "answer_id": at} for at, each in enumerate(given, 1)]
    kind = "what color is" if "color" in question else "what"
    return {"question_type": kind, "answer_type": "other", "multiple_choice_answer": answer, "answers": answers}


def write_gqa(root: Path, n: int = 8) -> Files:
    """GQA: balanced questions of train, val and testdev; an open and a yes-no question a picture."""
    files = files_in(root)
    for split, numbers in split_numbers(("train", "val", "testdev"), n).items():
        questions: dict[str, Any] = {}
        for number in numbers:
            draw(files.images / f"{_gqa_image(number)}.jpg", [thing_of(number)])
            said = colour_of(number + number // len(COLOURS) % 2)
            questions |= {
                f"{number:05d}0": _gqa_question(number, "What color is it?", colour_of(number), "query"),
                f"{number:05d}1": _gqa_question(
                    number, f"Is it {said}?", "yes" if said == colour_of(number) else "no", "verify"
                ),
            }
        write_json(files.annotations / f"{split}_balanced_questions.json", questions)
    return files


def _gqa_image(number: int) -> str:
    return f"n{578564 + number}" if number % 2 else str(2354786 + number)


def _gqa_question(number: int, question: str, answer: str, structural: str) -> dict[str, Any]:
    return {
        "question": question,
        "imageId": _gqa_image(number),
        "answer": answer,
        "fullAnswer": f"It is {answer}.",
        "isBalanced": True,
        "types": {"detailed": "x", "semantic": "attr", "structural": structural},
        "groups": {"global": None, "local": None},
        "entailed": [],
        "equivalent": [],
        "semantic": [],
        "semanticStr": "",
        "annotations": {},
    }


def write_nlvr2(root: Path, n: int = 8) -> Files:
    """NLVR2: train, dev, test1. A sentence is said of two pairs of pictures and true of one of them."""
    files = files_in(root)
    for split, numbers in split_numbers(("train", "dev", "test1"), n).items():
        rows = []
        for number in numbers:
            pair, left = number % 2, colour_of(number // 2)
            seen = left if pair == 0 else colour_of(number // 2 + 1)
            name = f"{split}-{number // 2}-{pair}"
            folder = f"{split}/{number % 3}" if split == "train" else split
            for side, colour in enumerate((seen, colour_of(number))):
                draw(files.images / f"{folder}/{name}-img{side}.png", [(colour, shape_of(number), (10, 10, 50, 50))])
            row = {
                "identifier": f"{name}-0",
                "sentence": f"The left image shows a {left} shape.",
                "label": str(seen == left),
                "left_url": "",
                "right_url": "",
                "writer": "1",
                "synset": "",
                "query": "",
            }
            rows.append({**row, "directory": number % 3} if split == "train" else row)
        write_json_lines(files.annotations / f"{split}.json", rows)
    return files


def write_snli_ve(root: Path, n: int = 8) -> Files:
    """SNLI-VE: train, dev and test; three hypotheses a picture, one of each label."""
    files = files_in(root)
    for split, numbers in split_numbers(("train", "dev", "test"), n).items():
        rows = []
        for number in numbers:
            key = str(1000092795 + number)
            draw(files.images / f"{key}.jpg", [thing_of(number)])
            said = (f"It is {colour_of(number + 1)}.", "It is heavy.", f"It is {colour_of(number)}.")
            for label, hypothesis in zip(SNLI_LABELS, said, strict=True):
                rows.append(
                    {
                        "Flickr30K_ID": key,
                        "captionID": f"{key}.jpg#0",
                        "pairID": f"{key}.jpg#0r1{label[0]}",
                        "gold_label": label,
                        "annotator_labels": [label],
                        "sentence1": f"A {words_of(number)}.",
                        "sentence2": hypothesis,
                    }
                )
        write_json_lines(files.annotations / f"snli_ve_{split}.jsonl", rows)
    return files


def write_vcr(root: Path, n: int = 8) -> Files:
    """VCR: train, val and test (without labels), with object tags, and each image's metadata beside it."""
    files = files_in(root)
    for split, numbers in split_numbers(("train", "val", "test"), n).items():
        rows = []
        for number in numbers:
            name = f"lsmdc_0001_Shapes/0001_Shapes_00.00.{number:02d}.000-00.00.{number:02d}.500@0"
            draw(files.images / f"{name}.jpg", pair_of(number))
            write_json(files.images / f"{name}.json", _vcr_metadata(number))
            rows.append(_vcr_row(split, number, name))
        write_json_lines(files.annotations / f"{split}.jsonl", rows)
    return files


def _vcr_metadata(number: int) -> dict[str, Any]:
    boxes = [box for _, _, box in pair_of(number)]
    corners = [[[x1, y1], [x2, y1], [x2, y2], [x1, y2]] for x1, y1, x2, y2 in boxes]
    return {
        "boxes": [[*map(float, box), 0.9] for box in boxes],
        "segms": [[corner] for corner in corners],
        "names": ["person", "cup"],
        "width": SIDE,
        "height": SIDE,
    }


def _vcr_row(split: str, number: int, name: str) -> dict[str, Any]:
    colours = list(COLOURS)
    right, reason = colours.index(pair_of(number)[0][0]), number % 4
    row = {
        "annot_id": f"{split}-{number}",
        "img_id": f"{split}-{number}",
        "img_fn": f"{name}.jpg",
        "metadata_fn": f"{name}.json",
        "movie": "0001_Shapes",
        "objects": ["person", "cup"],
        "question": ["What", "color", "is", [0], "?"],
        "answer_choices": [[[0], "is", colour, "."] for colour in colours],
        "rationale_choices": [
            ["I", "see", [0], "and", [0, 1], "which", "is", colours[(right + at - reason) % 4], "."] for at in range(4)
        ],
    }
    return row if split == "test" else {**row, "answer_label": right, "rationale_label": reason}


def write_refcoco(root: Path, n: int = 8, name: str = "refcoco+") -> Files:
    """RefCOCO, RefCOCO+ or RefCOCOg: two shapes a picture, each with two expressions; the refer toolkit's files.

    Splits of refcoco and refcoco+ are train, val, testA, testB; of refcocog train, val, test. Detected boxes lie in
    `proposal`, as VL-BERT reads them: a box a little off each shape, and one of neither.
    """
    files = Files(root / "annotations" / name, root / "images")
    splits = ("train", "val", "test") if name == "refcocog" else ("train", "val", "testA", "testB")
    refs, images, annotations, detections = [], [], [], []
    for split, numbers in split_numbers(splits, n).items():
        for number in numbers:
            image_id = number + 1
            draw(files.images / coco_name("train2014", image_id), pair_of(number))
            images.append(_coco_image("train2014", image_id))
            detections.append({"image_id": image_id, "box": [1.0, 1.0, 60.0, 8.0], "category_id": 1, "score": 0.3})
            for at, (colour, shape, (x1, y1, x2, y2)) in enumerate(pair_of(number)):
                ann_id, box = image_id * 10 + at, [float(x1), float(y1), float(x2 - x1), float(y2 - y1)]
                annotations.append(
                    {"id": ann_id, "image_id": image_id, "category_id": 1, "bbox": box, "iscrowd": 0, "area": 676.0}
                )
                moved = [box[0] + 1, box[1] + 1, *box[2:]]
                detections.append({"image_id": image_id, "box": moved, "category_id": 1, "score": 0.9})
                said = (f"{colour} {shape}", f"the {colour} one")
                refs.append(_ref(split, image_id, ann_id, said))
    by = "umd" if name == "refcocog" else "unc"
    (files.annotations / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    write_json(files.annotations / "instances.json", {"images": images, "annotations": annotations, "categories": []})
    write_json(files.annotations / "proposal/res101_coco_minus_refer_notime_dets.json", detections)
    return Files(root / "annotations", files.images)


def _coco_image(part: str, image_id: int) -> dict[str, Any]:
    return {"id": image_id, "file_name": coco_name(part, image_id).split("/")[1], "height": SIDE, "width": SIDE}


def _ref(split: str, image_id: int, ann_id: int, said: Sequence[str]) -> dict[str, Any]:
    sentences = [
        {"sent_id": ann_id * 10 + at, "sent": text, "raw": text.upper(), "tokens": text.split()}
        for at, text in enumerate(said)
    ]
    return {
        "ref_id": ann_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "split": split,
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def captions_of(number: int) -> list[str]:
    """Two captions of a picture."""
    return [f"A {words_of(number)}.", f"There is a {words_of(number)} in the picture."]


def write_karpathy(root: Path, n: int = 8, name: str = "coco") -> Files:
    """Karpathy's dataset_coco.json (train, restval, val, test) or dataset_flickr30k.json (train, val, test)."""
    files = files_in(root)
    splits = ("train", "restval", "val", "test") if name == "coco" else ("train", "val", "test")
    images = []
    for split, numbers in split_numbers(splits, n).items():
        for number in numbers:
            part = "train2014" if split == "train" else "val2014"
            if name == "coco":
                path = coco_name(part, number + 1)
                own = {"filepath": part, "filename": path.split("/")[1], "cocoid": number + 1}
            else:
                path = f"{1000092795 + number}.jpg"
                own = {"filename": path}
            draw(files.images / path, [thing_of(number)])
            sentences = [
                {"raw": text, "tokens": text.lower().strip(".").split(), "imgid": number, "sentid": number * 2 + at}
                for at, text in enumerate(captions_of(number))
            ]
            ids = [sentence["sentid"] for sentence in sentences]
            images.append({**own, "imgid": number, "split": split, "sentids": ids, "sentences": sentences})
    write_json(files.annotations / f"dataset_{name}.json", {"images": images, "dataset": name})
    return files


def write_coco_captions(root: Path, n: int = 8) -> Files:
    """COCO captions of 2014: captions_train2014.json and captions_val2014.json."""
    files = files_in(root)
    for part, numbers in split_numbers(("train2014", "val2014"), n).items():
        for number in numbers:
            draw(files.images / coco_name(part, number + 1), [thing_of(number)])
        annotations = [
            {"image_id": number + 1, "id": number * 2 + at, "caption": caption}
            for number in numbers
            for at, caption in enumerate(captions_of(number))
        ]
        images = [_coco_image(part, number + 1) for number in numbers]
        path = files.annotations / f"captions_{part}.json"
        write_json(path, {"info": {}, "licenses": [], "images": images, "annotations": annotations})
    return files


def write_visual_genome(root: Path, n: int = 8) -> Files:
    """Visual Genome: region descriptions, questions, and the list of images; it has no splits."""
    files = files_in(root)
    numbers = range(n)
    for number in numbers:
        folder = "VG_100K_2" if number % 3 == 0 else "VG_100K"
        draw(files.images / folder / f"{number + 1}.jpg", [thing_of(number)])
    regions = [{"id": number + 1, "regions": _vg_regions(number)} for number in numbers]
    asked = [{"id": number + 1, "qas": _vg_questions(number)} for number in numbers]
    facts = [{"image_id": number + 1, "width": SIDE, "height": SIDE, "url": "", "coco_id": None} for number in numbers]
    write_json(files.annotations / "region_descriptions.json", regions)
    write_json(files.annotations / "question_answers.json", asked)
    write_json(files.annotations / "image_data.json", facts)
    return files


def _vg_regions(number: int) -> list[dict[str, Any]]:
    _, _, (x1, y1, x2, y2) = thing_of(number)
    place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "image_id": number + 1}
    return [
        {**place, "region_id": number * 2 + at, "phrase": text}
        for at, text in enumerate((words_of(number), f"{colour_of(number)} thing"))
    ]


def _vg_questions(number: int) -> list[dict[str, Any]]:
    own = {"image_id": number + 1, "qa_id": number, "a_objects": [], "q_objects": []}
    return [{**own, "question": "What color is it?", "answer": f"{colour_of(number).capitalize()}."}]


def write_conceptual_captions(root: Path, n: int = 8) -> Files:
    """Conceptual Captions as published, caption and address by row; images as img2dataset stores them."""
    files = files_in(root)
    names = {"train": "Train_GCC-training.tsv", "val": "Validation_GCC-1.1.0-Validation.tsv"}
    for split, numbers in split_numbers(tuple(names), n).items():
        rows = [(f"a {words_of(number)} .", f"https://example.org/{number}.jpg") for number in numbers]
        with (files.annotations / names[split]).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, lineterminator="\n").writerows(rows)
        for row, number in enumerate(numbers):
            draw(files.images / split / f"00000/{row:09d}.jpg", [thing_of(number)])
    return files


def write_conceptual_captions_vilt(root: Path, n: int = 8) -> Files:
    """Conceptual Captions as ViLT lists them: [path, caption] in train_annot.json and val_annot.json."""
    files = files_in(root)
    for split, numbers in split_numbers(("train", "val"), n).items():
        rows = _listed(files, f"{split}_image", numbers)
        write_json(files.annotations / f"{split}_annot.json", rows)
    return files


def write_sbu(root: Path, n: int = 8) -> Files:
    """SBU as ViLT lists it: [path, caption] in annot.json."""
    files = files_in(root)
    write_json(files.annotations / "annot.json", _listed(files, "dataset", range(n)))
    return files


def _listed(files: Files, folder: str, numbers: Iterable[int]) -> list[list[str]]:
    rows = []
    for number in numbers:
        draw(files.images / folder / f"{number:08d}.jpg", [thing_of(number)])
        rows.append([f"{folder}/{number:08d}.jpg", f"a {words_of(number)}"])
    return rows


WRITERS: dict[str, Callable[[Path, int], Files]] = {  # by the name of the data set in `trainers.data.DATASETS`
    "coco_captions": write_coco_captions,
    "visual_genome": write_visual_genome,
    "visual_genome_qa": write_visual_genome,
    "conceptual_captions": write_conceptual_captions,
    "sbu": write_sbu,
    "vqav2": write_vqa,
    "gqa": write_gqa,
    "nlvr2": write_nlvr2,
    "snli_ve": write_snli_ve,
    "vcr": write_vcr,
    "refcoco": lambda root, n: write_refcoco(root, n, "refcoco"),
    "refcoco+": lambda root, n: write_refcoco(root, n, "refcoco+"),
    "refcocog": lambda root, n: write_refcoco(root, n, "refcocog"),
    "coco": lambda root, n: write_karpathy(root, n, "coco"),
    "flickr30k": lambda root, n: write_karpathy(root, n, "flickr30k"),
}
