"""Boxes with names in their official files: Visual Genome, COCO, Pascal VOC, and Cartucho/mAP's lines of text.

What the files mean by a box: Visual Genome and COCO have its corner, width and height; Pascal VOC the first and the
last pixel, counted from 1 (its development kit), so that what begins and ends in one pixel is one wide. Difficult
objects are objects, as in detectron2. Keys of images are ids, or names without extension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from trainers.data.files import DataError, each, items, listed, number, read_json, readable, text, value
from trainers.detection.vocabulary import normal

OBJECTS = (
    'objects.json: [{"image_id": 1, "objects": [{"object_id": 2, "x": 0, "y": 0, "w": 9, "h": 9, "names": ["a"]}]}]'
)
ATTRIBUTES = 'attributes.json: [{"image_id": 1, "attributes": [{"object_id": 2, "attributes": ["red"]}]}]'
INSTANCES = 'COCO\'s instances: {"images": [{"id": 1}], "annotations": [...], "categories": [...]}'
LINES = "a line an object: class left top right bottom [difficult]"
VOC = "Pascal VOC's XML: <annotation><object><name>, <bndbox><xmin>, <ymin>, <xmax>, <ymax>"
UNDERSTOOD = (
    "a folder with Visual Genome's objects.json (and attributes.json), a COCO file of instances (.json), "
    "a folder of Pascal VOC's XML files, or one of .txt files with a line an object"
)

Box = tuple[float, float, float, float]  # x1 y1 x2 y2 in pixels of the image


@dataclass(frozen=True)
class Thing:
    """One object: its box, what it may be called, and what is said of it."""

    box: Box
    names: tuple[str, ...]
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Described:
    """One image, by its key, and what is in it."""

    key: str
    things: tuple[Thing, ...]


def read_things(data: str | Path) -> list[Described]:
    """The images and things of a data set, of whatever kind it is.

    Raises:
        DataError: there is none, or its files are of another format.
    """
    path = Path(data)
    if path.suffix == ".json" and path.is_file():
        return read_coco(path)
    if (path / "objects.json").is_file():
        return read_visual_genome(path)
    for ending, read in {"xml": read_voc, "txt": read_lines}.items():
        if path.is_dir() and (files := sorted(path.rglob(f"*.{ending}"))):
            return [read(file) for file in files]
    raise DataError(f"{path} has no boxes to train on; wanted {UNDERSTOOD}.")


def read_visual_genome(folder: Path) -> list[Described]:
    """Visual Genome's objects, and their attributes where `attributes.json` lies beside them."""
    path, said = folder / "objects.json", folder / "attributes.json"
    known = _attributes(said) if said.is_file() else {}

    def described(row: Any) -> Described:
        things = [_vg_thing(thing, known) for thing in items(row, "objects")]
        return Described(str(number(row, "image_id")), tuple(things))

    return list(each(path, listed(path, read_json(path, OBJECTS), OBJECTS), described, OBJECTS))


def _vg_thing(row: Any, known: dict[int, tuple[str, ...]]) -> Thing:
    x, y, wide, high = (float(value(row, name)) for name in ("x", "y", "w", "h"))
    names = tuple(normal(name) for name in items(row, "names"))
    return Thing((x, y, x + wide, y + high), names, known.get(number(row, "object_id"), ()))


def _attributes(path: Path) -> dict[int, tuple[str, ...]]:
    """What is said of each object, by its id; of many nothing is, and then there is no list."""

    def said(row: Any) -> list[tuple[int, tuple[str, ...]]]:
        rows = [thing for thing in items(row, "attributes") if thing.get("attributes")]
        return [(number(one, "object_id"), tuple(map(normal, items(one, "attributes")))) for one in rows]

    rows = listed(path, read_json(path, ATTRIBUTES), ATTRIBUTES)
    return {thing: words for pairs in each(path, rows, said, ATTRIBUTES) for thing, words in pairs}


def read_coco(path: Path) -> list[Described]:
    """COCO's instances without crowds, of every image of the file."""
    content = read_json(path, INSTANCES)
    with readable(path, INSTANCES):
        images, rows, categories = (items(content, name) for name in ("images", "annotations", "categories"))
    names = dict(each(path, categories, lambda row: (number(row, "id"), normal(text(row, "name"))), INSTANCES))
    things: dict[str, list[Thing]] = {key: [] for key in each(path, images, _coco_key, INSTANCES)}

    def add(row: Any) -> None:
        if not row.get("iscrowd"):
            x, y, wide, high = map(float, items(row, "bbox"))
            thing = Thing((x, y, x + wide, y + high), (names[number(row, "category_id")],))
            things[str(number(row, "image_id"))].append(thing)

    for _ in each(path, rows, add, INSTANCES):
        pass
    return [Described(key, tuple(found)) for key, found in things.items()]


def _coco_key(row: Any) -> str:
    return str(number(row, "id"))


def read_voc(path: Path) -> Described:
    """One XML file of Pascal VOC; the key is the image's name without extension."""
    with readable(path, VOC):
        root = _parsed(path)
        found = [Thing(_voc_box(thing), (normal(_voc_text(thing, "name")),)) for thing in root.iter("object")]
        return Described(Path(_voc_text(root, "filename")).stem, tuple(found))


def _parsed(path: Path) -> ElementTree.Element:
    data = path.read_bytes()
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:  # entities may unfold without end
        raise ValueError("it defines a document type, which VOC's files do not")
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"it is no XML: {error}") from error


def _voc_text(element: ElementTree.Element, name: str) -> str:
    found = element.findtext(name)
    if not found:
        raise KeyError(name)
    return found.strip()


def _voc_box(thing: ElementTree.Element) -> Box:
    box = thing.find("bndbox")
    if box is None:
        raise KeyError("bndbox")
    x1, y1, x2, y2 = (float(_voc_text(box, name)) for name in ("xmin", "ymin", "xmax", "ymax"))
    return x1 - 1, y1 - 1, x2, y2


def read_lines(path: Path) -> Described:
    """One file of Cartucho/mAP's ground truth, named as its image."""
    with readable(path, LINES):
        lines = path.read_text(encoding="utf-8").splitlines()
    return Described(path.stem, tuple(each(path, filter(str.strip, lines), _line, LINES)))


def _line(line: str) -> Thing:
    name, *numbers = line.removesuffix("difficult").split()
    x1, y1, x2, y2 = map(float, numbers)
    return Thing((x1, y1, x2, y2), (normal(name),))


def all_names(described: Sequence[Described]) -> Iterator[str]:
    """What each thing is called first."""
    return (thing.names[0] for image in described for thing in image.things if thing.names)


def all_attributes(described: Sequence[Described]) -> Iterator[str]:
    return (said for image in described for thing in image.things for said in thing.attributes)
