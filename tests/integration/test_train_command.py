"""`triptych train` and `triptych evaluate`: every recipe's tiny twin on tiny data in the official files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from storage import (
    FeatureLayout,
    GridRecord,
    PatchRecord,
    PixelRecord,
    Record,
    RegionRecord,
    Spec,
    StoreWriter,
    open_store,
)
from tests import official_files
from tests.official_files import Files
from workflows.cli import main
from workflows.recipes import RECIPES, recipe_of
from workflows.recipes.sources import group_of

DIM, CLASSES, STEPS = 12, 5, 4
_WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a the is what color shape it in picture there one thing left image shows not and i "
    "see which ? . red green blue yellow circle square heavy yes no cup casey riley"
)
WORDS = _WORDS.split()
CHANCE = np.random.default_rng(0)
PROJECTION = CHANCE.normal(size=(3, DIM))
Cut = tuple[int, int, int, int]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models run on one thread: more of them only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join([*WORDS, *(f"[unused{number}]" for number in range(1, 40))]), encoding="utf-8")
    return path


# stores made of colours, which no network has to find


def feature(image: np.ndarray, box: Cut) -> np.ndarray:
    """The mean colour of a part, in DIM numbers."""
    left, top, right, bottom = box
    colour = image[top : bottom + 1, left : right + 1].reshape(-1, 3).mean(0) / 128 - 1
    found: np.ndarray = (colour @ PROJECTION).astype(np.float16)
    return found


def regions(key: str, image: np.ndarray) -> RegionRecord:
    """A box around what is not grey in the left half, one in the right half, and a corner."""
    boxes = []
    for start in (0, 32):
        y, x = np.nonzero(np.abs(image[:, start : start + 32].astype(int) - 128).max(-1) > 40)
        boxes.append((start + x.min(), y.min(), start + x.max(), y.max()) if len(x) else (start, 0, start + 31, 63))
    boxes.append((0, 0, 5, 5))
    probs = np.full((3, CLASSES + 1), 0.02, np.float16)
    probs[:, 0] = 0.9
    return RegionRecord(
        key,
        image.shape[:2],
        np.array(boxes, np.float32),
        np.stack([feature(image, box) for box in boxes]),
        class_ids=np.zeros(3, np.int32),
        class_scores=np.full(3, 0.9, np.float32),
        class_probs=probs,
    )


def grid(key: str, image: np.ndarray) -> GridRecord:
    cells = [[feature(image, (x, y, x + 31, y + 31)) for x in (0, 32)] for y in (0, 32)]
    return GridRecord(key, image.shape[:2], np.array(cells))


def patches(key: str, image: np.ndarray) -> PatchRecord:
    return PatchRecord(key, image.shape[:2], grid(key, image).features, feature(image, (0, 0, 63, 63)))


def pixels(key: str, image: np.ndarray) -> PixelRecord:
    return PixelRecord(key, image.shape[:2], image)


VIEWS: dict[str, tuple[FeatureLayout, Callable[[str, np.ndarray], Record]]] = {
    "regions": (
        FeatureLayout(DIM, class_probs=CLASSES + 1, without=("whole_image", "attribute_ids", "attribute_scores")),
        regions,
    ),
    "grid": (FeatureLayout(DIM), grid),
    "patches": (FeatureLayout(DIM), patches),
    "pixels": (FeatureLayout(3, "bytes"), pixels),
}


def make_store(view: str, images: Path, out: Path) -> Path:
    """Features of all images below a folder, by their paths without extension as `extract` has it."""
    layout, record = VIEWS[view]
    paths = sorted(path for path in images.rglob("*") if path.suffix in (".jpg", ".png"))
    keys = [path.relative_to(images).with_suffix("").as_posix() for path in paths]
    with StoreWriter(out, Spec(view, layout)).unit(keys) as unit:
        for key, path in zip(keys, paths, strict=True):
            unit.append(record(key, np.asarray(Image.open(path).convert("RGB"))))
        unit.commit()
    return out


# data


def image_folder(root: Path, n: int) -> Files:
    files = official_files.files_in(root)
    for split in ("train", "test"):
        for number in range(n):
            name = f"{split}/{official_files.colour_of(number)}/{number}.png"
            official_files.draw(files.annotations / name, [official_files.thing_of(number)])
    return Files(files.annotations, files.annotations)


def glue(root: Path, n: int) -> Files:
    files, labels = official_files.files_in(root), ("contradiction", "neutral", "entailment")
    for split in ("train", "dev_matched"):
        rows = [f"{labels[i % 3]}\tit is red\tit is {('blue', 'heavy', 'red')[i % 3]}" for i in range(n)]
        text = "\n".join(["gold_label\tsentence1\tsentence2", *rows])
        (files.annotations / f"{split}.tsv").write_text(text + "\n", encoding="utf-8")
    return files


OTHERS = {"image-folder": image_folder, "glue-mnli": glue}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    """A data set's files, written once; images of all in folders by group."""
    root, found = tmp_path_factory.mktemp("data"), dict[str, Files]()

    def files(name: str) -> Files:
        if name not in found:
            write: Any = OTHERS.get(name) or official_files.WRITERS[name]
            found[name] = write(root / name, 8)
        return found[name]

    return files


def arguments(
    name: str, written: Callable[[str], Files], vocabulary: Path, root: Path, visual: str | None = None
) -> list[str]:
    """What `triptych train` needs for a recipe's tiny twin."""
    recipe = recipe_of(name)
    names = [each for each in recipe.data if each != "corpus"]
    annotations, images, store = (root / each for each in ("annotations", "images", "store"))
    for folder in (annotations, images, store):
        folder.mkdir(parents=True)
    view = "regions" if name.startswith("vl_bert") else "grid" if name.startswith("grid") else "patches"
    for each in names:
        files, group = written(each), group_of(each)
        own = files.annotations / each
        (annotations / each).symlink_to(own if own.is_dir() else files.annotations)
        if not (images / group).exists():
            # Conceptual Captions' rows are counted anew in each split
            shown = files.images / "train" if each == "conceptual_captions" else files.images
            (images / group).symlink_to(shown)
            make_store(view, shown, store / group)
    alone = len(names) == 1
    place = annotations / names[0] if alone and names[0] in OTHERS else annotations
    image_root = images / group_of(names[0]) if alone else images
    args = ["--annotations", str(place), "--images", str(image_root), "--store", str(store)]
    if "corpus" in recipe.data:
        (root / "text.doc").write_text("a red circle\nit is a blue square .\n" * 9, encoding="utf-8")
        args += ["--corpus", str(root / "text.doc")]
    args += ["--visual", visual] if visual else []
    return [name, *args, "--tokenizer", str(vocabulary), "--out", str(root / "run"), "--tiny", "--log-every", "1"]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_tiny_twin_of_every_recipe_trains(
    name: str, written: Callable[[str], Files], vocabulary: Path, tmp_path: Path
) -> None:
    args = arguments(name, written, vocabulary, tmp_path)
    assert main(["train", *args, "--steps", str(STEPS)]) == 0
    run = tmp_path / "run"
    losses = [line["loss"] for line in lines(run) if "loss" in line]
    assert len(losses) == STEPS and all(np.isfinite(losses))
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"] == name and config["tiny"] and config["expected"]
    assert (run / "checkpoints").is_dir()
    if recipe_of(name).task != "pretraining":
        assert (run / "predictions.json").is_file()


@pytest.mark.slow
def test_a_run_is_evaluated_and_its_answers_written(
    written: Callable[[str], Files], vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments("grid_vlp_vqa", written, vocabulary, tmp_path)
    assert main(["train", *args, "--steps", "300", "--lr", "5e-3", "--log-every", "25"]) == 0
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--split", "val", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert scores["accuracy"] > 45  # blind, by the question alone, 37.5: two shapes, four colours
    answers = json.loads((tmp_path / "run" / "submission").read_text())
    assert len(answers) == 16 and answers[0].keys() == {"question_id", "answer"}


def test_a_run_goes_on_where_it_ended(written: Callable[[str], Files], vocabulary: Path, tmp_path: Path) -> None:
    args = arguments("vilt_vqa", written, vocabulary, tmp_path)
    assert main(["train", *args, "--steps", "2"]) == 0
    assert main(["train", *args, "--steps", "2"]) == 2, "a run is never written over"
    assert main(["train", *args, "--steps", "2", "--resume"]) == 0
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 2]


def test_missing_images_stop_a_run_before_its_first_step(
    written: Callable[[str], Files], vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments("grid_vlp_vqa", written, vocabulary, tmp_path)
    empty = tmp_path / "few"
    empty.mkdir()
    for number in range(3):
        official_files.draw(empty / f"train2014/COCO_train2014_{number + 1:012d}.jpg", [])
    store = make_store("grid", empty, tmp_path / "small")
    assert main(["train", *[each if each != str(tmp_path / "store") else str(store) for each in args]]) == 2
    said = capsys.readouterr().err
    assert "5 of 8 images of vqav2 train are missing: 4, 5, 6, 7, 8; add them" in said
    assert not (tmp_path / "run").exists()


def test_the_cache_is_filled_in_the_first_epoch(
    written: Callable[[str], Files], vocabulary: Path, tmp_path: Path
) -> None:
    args = arguments("vilt_vqa", written, vocabulary, tmp_path, "cache-through")
    args[args.index("--store") + 1] = str(tmp_path / "filled")
    assert main(["train", *args, "--steps", "3"]) == 0
    assert len(open_store(tmp_path / "filled")) > 0


@pytest.mark.parametrize(
    ("name", "visual"),
    (("vl_bert_vqa", "pixels"), ("grid_vlp_vqa", "pixels"), ("meter_vqa", "store")),
)
@pytest.mark.slow
def test_what_is_seen_is_one_setting(
    name: str, visual: str, written: Callable[[str], Files], vocabulary: Path, tmp_path: Path
) -> None:
    args = arguments(name, written, vocabulary, tmp_path, visual)
    assert main(["train", *args, "--steps", "2"]) == 0


def test_the_list_names_every_recipe_and_its_score(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in RECIPES) and "test-dev 76.05" in said


@pytest.mark.parametrize(
    ("args", "message"),
    (
        (["no_such"], "there is no recipe 'no_such'; `triptych train --list` shows them all"),
        (["vilt_vqa", "--visual", "ears"], "--visual 'ears' is not known; choose one of store, pixels, cache-through"),
        (["vilt_vqa"], "this run reads annotations; name their folder with --annotations"),
    ),
)
def test_what_is_wrong_is_told_in_one_line(
    args: list[str], message: str, vocabulary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *args, "--out", str(tmp_path / "run"), "--tokenizer", str(vocabulary)]) == 2
    assert message in capsys.readouterr().err


def test_every_recipe_says_what_it_is() -> None:
    for name, make in RECIPES.items():
        recipe = make()
        assert make.__name__ == name and recipe.summary and recipe.expected and recipe.source and recipe.starts
        assert (recipe.train.steps is None) != (recipe.train.epochs is None)
