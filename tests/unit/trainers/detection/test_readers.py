"""Boxes in their official files, and what of them is used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainers.data.files import DataError
from trainers.detection.data import held_out, label
from trainers.detection.images import FolderImages
from trainers.detection.readers import Described, Thing, read_things
from trainers.detection.vocabulary import Names, Vocabulary

OBJECTS = [
    {
        "image_id": 1,
        "objects": [
            {"object_id": 10, "x": 4, "y": 5, "w": 10, "h": 20, "names": ["Tall  Tree"], "synsets": ["tree.n.01"]},
            {"object_id": 11, "x": 0, "y": 0, "w": 3, "h": 3, "names": ["sky"], "synsets": []},
        ],
    }
]
ATTRIBUTES = [
    {
        "image_id": 1,
        "attributes": [
            {"object_id": 10, "names": ["tall tree"], "attributes": ["Green", "big"]},
            {"object_id": 11, "names": ["sky"]},
        ],
    }
]
COCO = {
    "images": [{"id": 7, "file_name": "000000000007.jpg"}, {"id": 8, "file_name": "000000000008.jpg"}],
    "annotations": [
        {"image_id": 7, "category_id": 3, "bbox": [1.5, 2, 3, 4], "iscrowd": 0},
        {"image_id": 7, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ],
    "categories": [{"id": 3, "name": "car"}],
}
VOC = """<annotation><filename>one.jpg</filename><object><name>WBC</name><bndbox>
<xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>12</ymax></bndbox></object></annotation>"""


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def pictures(folder: Path, *names: str) -> FolderImages:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / name)
    return FolderImages(folder, 16, 32)


def test_visual_genome_has_corner_and_size_and_attributes_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "objects.json", OBJECTS)
    write(tmp_path / "attributes.json", ATTRIBUTES)
    [image] = read_things(tmp_path)
    assert image.key == "1"
    assert image.things[0] == Thing((4, 5, 14, 25), ("tall tree",), ("green", "big"))
    assert image.things[1].attributes == ()


def test_without_attributes_there_are_boxes_all_the_same(tmp_path: Path) -> None:
    write(tmp_path / "objects.json", OBJECTS)
    assert [thing.attributes for thing in read_things(tmp_path)[0].things] == [(), ()]


def test_coco_s_crowds_are_no_objects_and_images_without_any_are_there(tmp_path: Path) -> None:
    found = read_things(write(tmp_path / "instances.json", COCO))
    assert found == [Described("7", (Thing((1.5, 2, 4.5, 6), ("car",)),)), Described("8", ())]


def test_voc_counts_pixels_from_one_and_both_ends(tmp_path: Path) -> None:
    write(tmp_path / "Annotations" / "one.xml", VOC)
    assert read_things(tmp_path) == [Described("one", (Thing((0, 1, 10, 12), ("wbc",)),))]


def test_lines_of_text_may_be_difficult(tmp_path: Path) -> None:
    write(tmp_path / "2007_000027.txt", "chair 1 2 30.5 40\nTable 0 0 9 9 difficult\n\n")
    chair, table = Thing((1, 2, 30.5, 40), ("chair",)), Thing((0, 0, 9, 9), ("table",))
    assert read_things(tmp_path) == [Described("2007_000027", (chair, table))]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("objects.json", [{"image_id": 1, "objects": [{"object_id": 1, "x": 0}]}], "entry 0 has no 'y'"),
        ("objects.json", {"1": []}, "holds a dict"),
        ("a.xml", "<annotation><filename>a.jpg</filename><object/></annotation>", "has no 'bndbox'"),
        ("a.xml", "<annotation>", "it is no XML"),
        ("a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "document type"),
        ("a.txt", "cat 0.9 0 0 9 9", "entry 0 is of another format .*wanted a line an object"),
        ("nothing.md", "", "has no boxes to train on; wanted a folder with Visual Genome's objects.json"),
    ],
)
def test_what_is_of_another_format_is_named(name: str, content: object, said: str, tmp_path: Path) -> None:
    write(tmp_path / name, content)
    with pytest.raises(DataError, match=said):
        read_things(tmp_path)


def test_a_category_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "instances.json", COCO | {"categories": []})
    with pytest.raises(DataError, match="entry 0 has no 3"):
        read_things(path)


def test_a_list_has_synonyms_and_its_lines_are_the_ids(tmp_path: Path) -> None:
    names = Names.read(write(tmp_path / "list.txt", "gray,grey\nmulti colored\n"))
    assert names.names == ["gray", "multi colored"]
    assert names.ids == {"gray": 0, "grey": 0, "multi colored": 1}
    with pytest.raises(DataError, match="it is empty"):
        Names.read(write(tmp_path / "none.txt", "\n"))


def test_the_most_frequent_names_in_the_order_of_the_alphabet() -> None:
    assert Names.most_frequent(["b", "c", "a", "c", "b", "d", "a"], 3).names == ["a", "b", "c"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    images = pictures(tmp_path, "val/COCO_val_000000000001.jpg", "2.jpg")
    things = (Thing((0, 0, 5, 5), ("grey cat", "cat"), ("red", "red", "wet")), Thing((0, 0, 5, 0), ("cat",)))
    described = [
        Described("1", (*things, Thing((0, 0, 5, 5), ("dog",)))),
        Described("2", (Thing((0, 0, 5, 5), ("dog",)),)),
        Described("3", things),
    ]
    found = label(described, Vocabulary(Names.of(["ant", "cat"]), Names.of(["red"])), images)
    [image] = found.images
    assert (image.key, image.classes.tolist(), image.attributes) == ("1", [1], ((0,),))
    np.testing.assert_array_equal(image.boxes, [[0, 0, 5, 5]])
    assert str(found) == (
        "1 images with 1 boxes (1 images are missing; 1 boxes are empty; 2 boxes are of other classes; "
        "1 images have no box left)"
    )


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    images = pictures(tmp_path, "1.jpg")
    cat = Described("1", (Thing((0, 0, 5, 5), ("cat",)),))
    with pytest.raises(DataError, match="no image with boxes is left of 1: .*1 boxes are of other classes"):
        label([cat], Vocabulary(Names.of(["dog"]), Names.of([])), images)
    with pytest.raises(DataError, match="holds no image"):
        FolderImages(tmp_path / "absent", 16, 32)


def test_held_out_images_are_others_and_the_same_for_a_seed() -> None:
    described = [Described(str(number), ()) for number in range(20)]
    first, second = held_out(described, 0.1, seed=3)
    assert len(second) == 2 and sorted(map(str, (*first, *second))) == sorted(map(str, described))
    assert held_out(described, 0.1, seed=3) == (first, second) != held_out(described, 0.1, seed=4)
    assert len(held_out(described[:2], 0.1, seed=0)[1]) == 1


def test_images_are_resized_as_extraction_does_and_decoded_once(tmp_path: Path) -> None:
    images = pictures(tmp_path, "1.jpg").called(["1"])
    pixels, size = images.read("1")
    assert (pixels.shape, size) == ((3, 16, 21), (30, 40))
    (tmp_path / "1.jpg").unlink()
    assert images.read("1")[0] is pixels
