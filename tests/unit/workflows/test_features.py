"""Stores that cells share, and the data that they are compared on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from extractors import ConfigError, GridConfig, PatchConfig, PixelConfig
from pipeline.config import EngineConfig
from storage import FeatureLayout, Spec, StoreWriter, TriptychError, open_store
from tests.compare_data import compare_data
from trainers.data import load
from trainers.text import load_tokenizer
from workflows.comparing.data import Data
from workflows.comparing.features import Features, cost_of, extract, features_of
from workflows.recipes import recipe_of, sources
from workflows.recipes.sources import Places, find_images

GRID = GridConfig(model="r50", weights="random:0", width_divisor=16, shorter=32, longer=64)


class Silent:
    """Progress of a job that nobody looks at."""

    def started(self, start: Any) -> None: ...
    def advanced(self, images: int, failed: int) -> None: ...
    def reported(self, total: Any) -> None: ...
    def stopped(self) -> None: ...


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((40, 60, 3), 9 * number, np.uint8)).save(folder / f"{number}.png")
    return folder


def test_what_fills_the_store_of_each_recipe() -> None:
    def config(name: str, visual: str = "store") -> Any:
        found = features_of(replace(recipe_of(name), visual=visual))
        return found and found.config

    assert config("grid_vlp_vqa") == GridConfig(model="x152") and config("pixel_bert_vqa") == GridConfig(model="r50")
    assert isinstance(config("meter_vqa"), PatchConfig) and config("meter_vqa").size == 576
    assert config("vilt_vqa") == PixelConfig(rule="vilt")
    assert config("vl_bert_vqa", "pixels") == config("vl_bert_vqa")  # its boxes are cached all the same
    assert config("grid_vlp_vqa", "pixels") is None and config("vl_bert_vcr_answer", "pixels") is None
    with pytest.raises(ConfigError, match="choose --visuals pixels"):
        config("vl_bert_vcr_answer")


def test_stores_are_shared_by_equal_settings_on_any_device() -> None:
    assert Features(GRID, ("coco",)).name == Features(replace(GRID, device="cpu"), ("gqa",)).name
    assert Features(GRID, ("coco",)).name != Features(replace(GRID, shorter=31), ("coco",)).name
    assert Features(GRID, ("coco",)).name.startswith("grid-")


def test_groups_whose_images_are_the_same_folder_share_one_store(tmp_path: Path) -> None:
    images = tmp_path / "images"
    pictures(images / "coco", 3)
    (images / "gqa").symlink_to("coco")
    pictures(images / "nlvr2", 2)
    features, out = Features(GRID, ("gqa", "coco", "nlvr2")), str(tmp_path / "out")
    for _ in range(2):  # the second time nothing is left to do
        extract(features, images, "cpu", EngineConfig(out), Silent())
    assert [len(open_store(folder)) for folder in features.folders(out)] == [3, 2]
    assert len(open_store(features.folder(out) / "gqa")) == len(open_store(features.folder(out) / "coco")) == 3
    cost = cost_of(features.folders(out))
    assert cost.images == 5 and cost.ms > 0 and len(cost.specs) == 1
    assert cost.hours == pytest.approx(5 * cost.ms / 3.6e6)
    shards = list(features.folder(out).glob("*/shards/*"))
    assert cost.bytes == sum(
        each.stat().st_size for each in shards if not each.is_relative_to(features.folder(out) / "gqa")
    )


def test_one_folder_of_images_serves_all_groups(tmp_path: Path) -> None:
    images, out = pictures(tmp_path / "images", 2), str(tmp_path / "out")
    features = Features(GRID, ("coco",))
    extract(features, images, "cpu", EngineConfig(out), Silent())
    assert [len(open_store(folder)) for folder in features.folders(out)] == [2]


def test_a_store_that_kept_no_time_has_no_cost(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "s", Spec("grid", FeatureLayout(4)))
    with pytest.raises(TriptychError, match="does not tell how fast it was filled; delete it and run again"):
        cost_of([tmp_path / "s"])


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(str(compare_data(tmp_path / "data", ("vqav2", "nlvr2"))))


def test_the_digest_follows_annotations_and_images(data: Data) -> None:
    first = data.digest(("vqav2", "nlvr2"))
    assert first == data.digest(("nlvr2", "vqav2")) != data.digest(("vqav2",))
    path = next(data.annotations.glob("vqav2/*val2014_annotations.json"))
    path.write_bytes(path.read_bytes() + b" ")
    second = data.digest(("vqav2", "nlvr2"))
    assert second != first
    picture = next(each for each in (data.images / "coco").rglob("*.*") if each.suffix in (".jpg", ".png"))
    (picture.parent / f"more{picture.suffix}").write_bytes(picture.read_bytes())
    assert data.digest(("vqav2", "nlvr2")) != second


def test_the_words_of_all_texts_make_a_vocabulary(data: Data, tmp_path: Path) -> None:
    data.write_words(tmp_path / "words" / "vocab.txt")
    tokenizer = load_tokenizer(str(tmp_path / "words" / "vocab.txt"))
    for name in ("vqav2", "nlvr2"):
        for example in load(name, "train", data.annotations).examples:
            ids = tokenizer(example.texts[0])
            assert len(ids) > 3 and tokenizer.vocabulary["[UNK]"] not in ids
    assert tokenizer.vocabulary["[UNK]"] in tokenizer("zebra")


def test_what_is_there_and_what_is_not(data: Data, tmp_path: Path) -> None:
    assert data.has("vqav2") and data.has("nlvr2") and not data.has("gqa")
    with pytest.raises(ConfigError, match="has no folder images; name one with images and annotations"):
        Data(str(tmp_path))


def test_images_lie_in_the_folder_of_their_group_or_in_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("coco/1.jpg", "vcr/vcr1images/movie/1.jpg", "alone/1.jpg"):
        pictures((tmp_path / name).parent, 1)
    assert find_images(Places(images=str(tmp_path)), "coco").keys == ["0"]
    assert find_images(Places(images=str(tmp_path)), "vcr").keys == ["movie/0"]
    assert find_images(Places(images=str(tmp_path / "vcr" / "vcr1images")), "vcr").keys == ["movie/0"]
    assert find_images(Places(images=str(tmp_path / "alone")), "coco").keys == ["0"]
    monkeypatch.setattr(sources, "SourceImages", str)
    assert find_images(Places(images="s3://bucket/images"), "coco") == "s3://bucket/images"  # type: ignore[comparison-overlap]
