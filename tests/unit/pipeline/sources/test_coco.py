"""COCO-style JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.sources import SourceError
from tests.unit.pipeline.sources.helpers import (
    bytes_by_key,
    coco_json,
    keys_of,
    put,
    source_of,
    text_file,
)

COCO_MINI = Path(__file__).parents[5] / "shared/data/detection/coco_mini"


def test_coco_keys_are_ids_in_file_order(tmp_path):
    put(tmp_path / "images", "val/b.jpg", "c.jpg", "a d.jpg")
    path = coco_json(
        tmp_path / "a.json",
        {"id": 9, "file_name": "val/b.jpg"},
        {"id": "x7", "file_name": "c.jpg"},
        {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/a%20d.jpg?x=1"},
        {"id": 9, "file_name": "val/b.jpg"},
    )
    source = source_of(path, image_root=str(tmp_path / "images"))
    assert [ref.key for ref in source.list().refs] == ["9", "x7", "1"]
    assert source.list().repeated == 1
    assert bytes_by_key(source) == {"9": b"val/b.jpg", "x7": b"c.jpg", "1": b"a d.jpg"}


def test_coco_exclude(tmp_path):
    put(tmp_path, "b.jpg")
    path = coco_json(tmp_path / "a.json", {"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"})
    listing = source_of(path, exclude="A.*").list()
    assert ([ref.key for ref in listing.refs], listing.passed_over) == (["2"], 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged or of another kind"),
        (b"\xff\xfe", "damaged or of another kind"),
        ("[" * 100_000, "damaged or of another kind"),
        ("[]", 'no list "images"'),
        ('{"annotations": []}', 'no list "images"'),
        ('{"images": {}}', 'no list "images"'),
        ('{"images": []}', "holds no images"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, 3]}', r'images\[1\] has the "id" None'),
        ('{"images": [{"id": true, "file_name": "a.jpg"}]}', '"id" True'),
        ('{"images": [{"id": 1.5, "file_name": "a.jpg"}]}', '"id" 1.5'),
        ('{"images": [{"id": 1}]}', 'neither "file_name" nor "coco_url"'),
        ('{"images": [{"id": 1, "file_name": 7}]}', 'neither "file_name"'),
        ('{"images": [{"id": 1, "file_name": "\\ud800"}]}', "cannot be a file name"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": "1", "file_name": "b.jpg"}]}', "same key '1'.*ids"),
        ('{"images": [{"id": 1, "file_name": "nul\\u0000.jpg"}]}', "none of them is in .*--image-root"),
    ],
)
def test_coco_files_that_stop_the_plan(tmp_path, text, message):
    put(tmp_path, "a.jpg")
    with pytest.raises(SourceError, match=message) as caught:
        source_of(text_file(tmp_path / "bad.json", text)).list()
    assert "\n" not in str(caught.value)


def test_coco_with_some_images_there_is_no_plan_error(tmp_path):
    put(tmp_path, "b.jpg")
    path = coco_json(tmp_path / "a.json", {"id": 1, "file_name": "gone.jpg"}, {"id": 2, "file_name": "b.jpg"})
    assert keys_of(path) == ["1", "2"]


@pytest.mark.skipif(not COCO_MINI.exists(), reason="the real COCO sample is not beside this checkout (../shared)")
def test_real_coco_annotations():
    annotations = COCO_MINI / "annotations/instances_val2017.json"
    source = source_of(annotations, image_root=str(COCO_MINI / "val2017"))
    entries = json.loads(annotations.read_bytes())["images"]
    listing = source.list()
    assert [ref.key for ref in listing.refs] == [str(entry["id"]) for entry in entries]
    assert all(source.read(ref.uri)[:3] == b"\xff\xd8\xff" for ref in listing.refs)
    with pytest.raises(SourceError, match="--image-root"):
        source_of(annotations).list()
