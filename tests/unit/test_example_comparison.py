"""The script of the example: smaller pictures, its own settings of every run, and an end in time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from benchmarks.example_comparison import RETRIEVED, STARTS, TRAINING, in_time, reduced, starts, trained
from benchmarks.pretrain_example import LEARNING, STAGES, looks_of, written
from trainers.checkpoint import Checkpoints
from trainers.config import TrainConfig
from trainers.data.files import write_json, write_json_lines
from trainers.optim import Optimisers
from trainers.scenes.asking import questions
from trainers.scenes.scene import make_scene
from workflows.comparing.cells import Cell, Common, cells_of, in_order
from workflows.comparing.named import named
from workflows.comparing.running import Setting
from workflows.recipes import sources
from workflows.train import Train


@pytest.fixture(autouse=True)
def _decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The script has a process of its own, in which it keeps decoded pictures; the tests after these have not."""
    monkeypatch.setattr(sources, "decode", sources.decode)


def test_a_picture_is_made_smaller_under_all_its_names(tmp_path: Path) -> None:
    first, second = tmp_path / "images/coco/a.jpg", tmp_path / "images/nlvr2/b.png"
    for folder in (first.parent, second.parent, tmp_path / "images/vcr", tmp_path / "annotations/vcr"):
        folder.mkdir(parents=True)
    (tmp_path / "annotations/vqav2").mkdir()
    images = [{"imgid": each, "split": "val" if each % 2 else "train"} for each in range(2 * RETRIEVED + 6)]
    write_json(tmp_path / "annotations/flickr30k/dataset_flickr30k.json", {"images": images})
    Image.new("RGB", (480, 640), "red").save(first)
    os.link(first, second)
    reduced(tmp_path, 1)
    for path in (first, second):
        with Image.open(path) as image:
            assert image.size == (224, 288) and image.getpixel((9, 9)) == (254, 0, 0)
    assert sorted(each.name for each in (tmp_path / "annotations").iterdir()) == ["flickr30k", "vqav2"]
    left = json.loads((tmp_path / "annotations/flickr30k/dataset_flickr30k.json").read_text())["images"]
    assert len(left) == 2 * RETRIEVED + 3 and [each for each in images if each not in left] == images[-5::2]


def planned_cells() -> list[Cell]:
    common = Common(Train(tiny=True, device="cpu"), (0, 1), starts=dict(each.split("=") for each in starts()))
    return [cell for row in named("visual_inputs").rows for cell in cells_of(row, common, "+".join)]


def test_all_models_begin_with_as_many_questions_of_other_scenes() -> None:
    cells = [cell for cell in planned_cells() if cell.recipe.visual == "store"]
    assert LEARNING.keys() == {cell.label for cell in cells}
    known = {each.partition("=")[0] for each in starts()}
    begun = {stage.task for stage in STAGES if stage.kept}
    assert known == {cell.name for cell in cells if cell.recipe.task in begun}
    facts = [json.loads(each.read_bytes()) for each in STARTS.glob("*.json")]
    assert {(each["stage"], each["examples"]) for each in facts} == {
        (stage.called, stage.examples) for stage in STAGES if stage.kept
    } and len(facts) == len(known)


def test_models_begin_with_questions_of_what_things_look_like(tmp_path: Path) -> None:
    texts = {asked.family: asked.text for number in range(20) for asked in questions(make_scene(0, number, (1, 2)))}
    folder = tmp_path / "scenes/annotations/vqav2"
    for split in ("train2014", "val2014"):
        asked = [{"question_id": at, "question": text} for at, text in enumerate(texts.values())]
        write_json(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", {"data_type": "a", "questions": asked})
        given = [{"question_id": each["question_id"]} for each in asked]
        write_json(folder / f"v2_mscoco_{split}_annotations.json", {"annotations": given})
    (tmp_path / "scenes/images").mkdir()
    said = ["There is a red thing in the left image.", "There are more cars in the left image than in the other one."]
    for split in ("train", "dev"):
        write_json_lines(tmp_path / f"scenes/annotations/nlvr2/{split}.json", [{"sentence": each} for each in said])
    looks = looks_of(tmp_path / "scenes")
    assert looks == looks_of(tmp_path / "scenes") and (looks / "images").is_dir()
    asked = json.loads((folder / "v2_OpenEnded_mscoco_val2014_questions.json").read_text())["questions"]
    assert len(asked) == len(texts), "the scenes themselves are left as they are"
    left = json.loads((looks / "annotations/vqav2/v2_OpenEnded_mscoco_val2014_questions.json").read_text())
    rows = (looks / "annotations/nlvr2/dev.json").read_text().splitlines()
    assert [json.loads(each)["sentence"] for each in rows] == said[:1]
    families = [list(texts)[each["question_id"]] for each in left["questions"]]
    assert sorted(families) == ["color", "kind", "pattern"] and left["data_type"] == "a"
    answers = json.loads((looks / "annotations/vqav2/v2_mscoco_train2014_annotations.json").read_text())["annotations"]
    assert [list(texts)[each["question_id"]] for each in answers] == families


def test_what_models_begin_with_is_written_without_its_answers(tmp_path: Path) -> None:
    model = nn.ModuleDict(
        {"word": nn.Embedding(4, 3), "heads": nn.ModuleDict({"vqa": nn.Linear(3, 5), "nlvr2": nn.Linear(3, 2)})}
    )
    config = TrainConfig(out=str(tmp_path / "run"), steps=1)
    Checkpoints(tmp_path / "run").save(7, model, Optimisers(model, config), config, {})
    written(tmp_path / "run", tmp_path / "starts/a.safetensors", "heads.nlvr2.")
    found = load_file(tmp_path / "starts/a.safetensors")
    assert found.keys() == {"word.weight", "heads.nlvr2.weight", "heads.nlvr2.bias"}, "two answers have one order"
    assert torch.equal(found["word.weight"], model["word"].weight.half())


def test_every_line_of_the_script_is_trained_as_it_says(tmp_path: Path) -> None:
    cells = trained(planned_cells(), 0.5)
    assert {each.label for each in cells} == TRAINING.keys() and len(cells) == 6 * len(TRAINING)
    for cell in cells:
        asked, train = TRAINING[cell.label][cell.recipe.task], cell.recipe.train
        assert (train.steps, train.batch_size, train.lr) == (asked.steps // 2, asked.batch_size // 2, asked.lr)
        assert (cell.start is not None) == (f"{cell.name}=" in "".join(starts()))
    befores, own = in_order(cells)
    assert len(befores) + len(own) == len({each.id for each in (*befores, *own)}) == len(cells)
    for cell in cells:
        lineage = [(each.recipe.visual, each.recipe.task) for each in reversed(cell.lineage)]
        first = [("store", "nlvr2")] if cell.recipe.task == "retrieval" else []
        wanted = [*first, ("store", cell.recipe.task), (cell.recipe.visual, cell.recipe.task)]
        assert lineage == list(dict.fromkeys(wanted))
        assert {(each.model, each.recipe.train.seed) for each in cell.lineage} == {(cell.model, cell.recipe.train.seed)}
        assert getattr(cell.recipe.model, "pool", 1) == 1, "what is cached is not pooled"
    setting = Setting(str(tmp_path), "", "")
    assert in_time(cells[0], setting, deadline=0.0).error == "not begun: its time was over"
