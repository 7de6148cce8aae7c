"""A cell from its config to its row: run once, gone on with, and told of where it fails."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from extractors.configs import SHIPPED
from pipeline.config import EngineConfig
from storage import TriptychError, open_store
from tests.compare_data import compare_data
from trainers import loop
from trainers.comparison.examples import Look, Picture, shown
from trainers.comparison.result import CellResult, saved
from trainers.config import TrainConfig
from trainers.data import load
from workflows.comparing import measuring, running
from workflows.comparing.cells import Cell, Common, cells_of, of_recipes
from workflows.comparing.data import Data
from workflows.comparing.features import Features, features_of
from workflows.comparing.looking import LOOKED, with_looks
from workflows.comparing.named import named
from workflows.comparing.running import Setting, extract_all, run_cell, told_often
from workflows.recipes import Recipe, building
from workflows.recipes.beginning import begin_centred
from workflows.recipes.building import Parts
from workflows.runs import built
from workflows.train import Train

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = compare_data(tmp_path_factory.mktemp("data"))
    Data(str(root)).write_words(root / "vocab.txt")
    return root


def setting(data: Path, out: Path) -> Setting:
    return Setting(str(out), str(data / "images"), str(data / "annotations"), str(data / "vocab.txt"))


def cell(name: str = "vilt_vqa", visual: str = "pixels", seed: int = 0) -> Cell:
    common = Common(Train(tiny=True, steps=STEPS, device="cpu"), (seed,))
    [row] = of_recipes([name], [visual]).rows
    [found] = cells_of(row, common, lambda names: "data")
    return found


@pytest.mark.parametrize("name", ["vl_bert_vqa", "grid_vlp_vqa", "vilt_vqa", "meter_vqa"])
def test_answers_of_what_starts_from_nothing_begin_rare(name: str, data: Path, tmp_path: Path) -> None:
    twin = setting(data, tmp_path).run_of(cell(name))
    places = replace(twin.places, answers=str(tmp_path / "answers.json"))
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "no", "red", "2"]))

    def biases(recipe: Recipe) -> torch.Tensor:
        head = Parts(replace(twin, recipe=recipe, places=places)).model().heads["vqa"]  # type: ignore[index]
        return list(head.modules())[-1].bias

    torch.testing.assert_close(biases(twin.recipe).sigmoid(), torch.full((4,), 1 / 5))
    assert not biases(replace(twin.recipe, starts="BERT")).any(), "the official start"


def test_a_split_is_read_from_its_files_once(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A vocabulary of answers wants what is trained on and what is evaluated on."""
    read = list[tuple[str, str]]()

    def counted(name: str, split: str, root: Path) -> Any:
        read.append((name, split))
        return load(name, split, root)

    monkeypatch.setattr(building, "load", counted)
    setting(data, tmp_path).run_of(cell()).build()
    assert sorted(read) == [("vqav2", "train"), ("vqav2", "val")]


@pytest.mark.parametrize(("name", "layer"), [("vl_bert_vqa", "appearance"), ("grid_vlp_vqa", "cell")])
def test_what_starts_from_nothing_sees_without_what_all_images_share(
    name: str, layer: str, data: Path, tmp_path: Path
) -> None:
    asked, where = cell(name), setting(data, tmp_path)
    assert not extract_all([asked], where, EngineConfig(str(tmp_path)))
    twin = where.run_of(asked)

    @torch.no_grad()
    def shared(recipe: Recipe) -> float:
        """What the layer gives to all alike, beside all that it gives."""
        model, task, _ = built(replace(twin, recipe=recipe), None)
        given = list[torch.Tensor]()
        model.get_submodule(layer).register_forward_hook(lambda _, __, out: given.append(out))
        task.losses(model.eval(), task.collate(range(len(task)), 0))
        return float(given[0].mean(0).square().mean() / given[0].square().mean())

    assert shared(twin.recipe) < 0.02
    model, task, _ = built(twin, None)
    model.get_submodule(layer).bias.data.fill_(0.5)
    drawn = torch.get_rng_state()
    begin_centred(model, task)
    assert (model.get_submodule(layer).bias == 0.5).all(), "that of a start"
    assert torch.equal(torch.get_rng_state(), drawn)
    assert shared(replace(twin.recipe, starts="BERT")) > 0.2, "the official start"


def losses(folder: Path) -> list[float]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [line["loss"] for line in map(json.loads, lines) if "loss" in line]


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CellResult, Path]:
    """A cell that was run without any trouble, and the comparison's folder."""
    out = tmp_path_factory.mktemp("done")
    return run_cell(cell(), setting(data, out)), out


def test_a_cell_is_scored_and_measured(done: tuple[CellResult, Path]) -> None:
    row, out = done
    assert row.error is None
    assert (row.model, row.view, row.steps, row.metric) == ("ViLT", "pixels", STEPS, "accuracy")
    assert row.score is not None and 0 <= row.score <= 100
    assert row.blind == pytest.approx(37.5)  # by the question alone: two shapes, four colours
    assert (
        row.score
        == json.loads((out / "cells" / row.cell / "run" / "metrics.jsonl").read_text().splitlines()[-1])["scores"][
            "accuracy"
        ]
    )
    assert row.cache_visual_ms is None and (row.pixels_visual_ms or 0) > 0
    assert (row.extraction_hours, row.feature_bytes, row.specs) == (0.0, 0, ())
    assert 100_000 < (row.parameters or 0) < 2_000_000 and (row.peak_bytes or 0) > 0
    told = map(json.loads, (out / "cells" / row.cell / "run" / "metrics.jsonl").read_text().splitlines())
    seconds = sorted(row.batch_size / line["images_per_s"] for line in told if "loss" in line)
    assert row.training_hours == pytest.approx(sum(seconds) / 3600)
    assert seconds[STEPS // 2 - 1] <= (row.step_ms or 0) / 1e3 <= seconds[STEPS // 2]
    assert [each["step"] for each in row.curve if each["score"] is not None] == [2, 4, 6, 8, 10]
    assert len([each for each in row.curve if each["loss"] is not None]) == STEPS


def test_the_page_shows_where_a_line_looks(done: tuple[CellResult, Path], data: Path) -> None:
    _, out = done
    examples = load("vqav2", "val", str(data / "annotations")).examples[:5]
    answer = {"answer": "red"}
    given = [shown("t", each, {"ViLT": answer}, lambda key: Picture("", 1, 1)) for each in examples]
    texts = [each.texts[0] for each in examples]
    found = with_looks(given, examples, [*texts, "unheard of"], {"ViLT": cell()}, setting(data, out))
    assert [bool(each.word) for each in found] == [True] * LOOKED + [False] * 2 and found[LOOKED:] == given[LOOKED:]
    for each in found[:LOOKED]:
        look = each.answers[0].look
        assert isinstance(look, Look) and look.chosen.startswith("the answer '") and look.attention != look.gradcam
        assert each.word in each.text and each.text == given[found.index(each)].text
    endless = replace(examples[0], texts=(" ".join(["a"] * 99 + ["kite"]),))
    [told] = with_looks(given[:1], [endless], [], {"ViLT": cell()}, setting(data, out))
    assert told.answers[0].look == f"{told.word!r} is no word of {endless.texts[0]!r}; choose one of a, kite."
    of_pairs = replace(cell(), recipe=replace(cell().recipe, task="nlvr2"))
    assert with_looks(given, examples, texts, {"ViLT": of_pairs}, setting(data, out)) == given


def test_a_finished_cell_is_never_run_again(
    done: tuple[CellResult, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, out = done
    monkeypatch.setattr(running, "_finished", lambda *_: pytest.fail("it ran again"))
    again = run_cell(cell(), setting(data, out))
    assert (again.cell, again.score, again.label) == (row.cell, row.score, "ViLT, pixels")


def test_a_stopped_cell_goes_on_where_it_was(
    done: tuple[CellResult, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked to stop in its sixth update; its losses are those of one that was let alone."""
    row, out = done
    update = loop._Run._update

    def stopping(self: Any, *given: Any) -> Any:
        if self.done == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, *given)

    mine = setting(data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_update", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell(), mine)
    folder = tmp_path / "cells" / row.cell
    assert saved(folder) is None and 5 <= len(losses(folder)) < STEPS
    again = run_cell(cell(), mine)
    # Not to the last bit: a library sums in another order where memory lies otherwise. tests/unit/trainers/test_loop.py
    # holds a run to it.
    assert losses(folder) == pytest.approx(losses(out / "cells" / row.cell), rel=1e-5)
    assert (again.score, again.error, len(again.curve)) == (row.score, None, len(row.curve))
    assert (again.training_hours or 0) > 0


def test_a_cell_that_was_lost_after_training_is_only_measured(
    done: tuple[CellResult, Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = setting(data, tmp_path)

    def lost(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "latency", lost)
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell(), mine)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_update", lambda *_: pytest.fail("it trained again"))
        assert run_cell(cell(), mine).score == done[0].score


def test_what_starts_from_a_cache_has_all_that_this_cost(data: Path, tmp_path: Path) -> None:
    mine, first = setting(data, tmp_path), cell("grid_vlp_vqa", "store")
    second = replace(cell("grid_vlp_vqa", "store", seed=1), before=first)
    third = replace(cell("grid_vlp_vqa"), before=second)
    assert [each.id for each in third.lineage] == [third.id, second.id, first.id]
    extract_all([first], mine, EngineConfig(str(tmp_path)))
    rows = [run_cell(each, mine) for each in (first, second, third)]
    assert [each.error for each in rows] == [None] * 3 and rows[2].view == "pixels"
    hours = [each.training_hours or 0 for each in rows]
    assert [each.pretraining_hours for each in rows] == [0, hours[0], pytest.approx(hours[0] + hours[1])]
    for name in ("images", "extraction_hours", "feature_bytes", "specs"):
        assert getattr(rows[2], name) == getattr(rows[0], name) != 0


def test_what_goes_wrong_is_one_line_and_is_tried_again(data: Path, tmp_path: Path) -> None:
    mine, lost = setting(data, tmp_path), cell("grid_vlp_vqa", "store")
    row = run_cell(lost, mine)
    assert row.error is not None and "\n" not in row.error and "grid-" in row.error
    assert (row.score, row.model, row.view) == (None, "Grid-VLP", "grid")
    folder = mine.folder(lost)
    assert saved(folder) is None and "Traceback" in (folder / "error.txt").read_text()
    extract_all([lost], mine, EngineConfig(str(tmp_path)))
    again = run_cell(lost, mine)
    assert again.error is None and not (folder / "error.txt").exists()
    features = features_of(lost.recipe)
    assert isinstance(features, Features)
    [store] = map(open_store, features.folders(str(tmp_path)))
    assert again.images == len(store) and again.specs == (store.spec.id,) and (again.feature_bytes or 0) > 1000
    assert (again.extraction_ms or 0) == pytest.approx(1e3 / store.run["images_per_second"])
    assert (again.extraction_hours or 0) == pytest.approx((again.extraction_ms or 0) * len(store) / 3.6e6)
    assert (again.pixels_visual_ms or 0) > (again.cache_visual_ms or 0) > 0
    assert (again.extractor_parameters or 0) > 100_000


def test_cells_of_equal_extractors_share_a_store_and_finished_ones_ask_for_none(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Features] = []
    monkeypatch.setattr(running, "extract", lambda features, *_: asked.append(features))
    mine = setting(data, tmp_path)
    cells = [cell("grid_vlp_vqa", "store", seed) for seed in (0, 1)] + [cell("vl_bert_vqa", "store"), cell()]
    cells.append(cell("grid_vlp_nlvr2", "store"))
    extract_all(cells, mine, EngineConfig(str(tmp_path)))
    assert [(each.view, each.groups) for each in asked] == [("grid", ("coco", "nlvr2")), ("regions", ("coco",))]
    assert features_of(cell("vl_bert_vqa", "pixels").recipe) == features_of(cell("vl_bert_vqa", "store").recipe)
    asked.clear()
    monkeypatch.setattr(running, "saved", lambda folder: "finished")
    extract_all(cells, mine, EngineConfig(str(tmp_path)))
    assert not asked


def test_a_cell_waits_for_what_it_starts_from(data: Path, tmp_path: Path) -> None:
    before = cell(seed=1)
    row = run_cell(replace(cell(), before=before), setting(data, tmp_path))
    assert row.error == "TriptychError: what it starts from (ViLT, pixels, seed 1, vqa) is not finished."


@pytest.mark.parametrize(("label", "first", "then"), [("VL-BERT", SHIPPED, None), ("PixelBERT", None, SHIPPED)])
def test_a_network_that_was_pre_trained_does_not_begin_anew(
    label: str, first: str | None, then: str | None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VL-BERT's is pre-trained from pixels; what PixelBERT is pre-trained on is a cache."""
    begun: list[tuple[str | None, str | None]] = []

    def built(run: Any, start: str | None, network: str | None) -> Any:
        begun.append((start and Path(start).parent.name, network))
        raise TriptychError("that is all.")

    row = next(row for row in named("visual_inputs").rows if row.label == f"{label}, pixels")
    common = Common(Train(tiny=True, steps=STEPS, device="cpu"), (0,), networks={row.name: SHIPPED})
    [found] = cells_of(row, common, lambda names: "data")
    assert found.before is not None
    monkeypatch.setattr(running, "built", built)
    run_cell(found.before, setting(data, tmp_path))
    monkeypatch.setattr(running, "saved", lambda folder: None if folder.name == found.id else "finished")
    run_cell(found, setting(data, tmp_path))
    assert begun == [(None, first), (found.before.id, then)]


@pytest.mark.parametrize(("steps", "every"), [(3, (1, 1, 1)), (100, (1, 20, 20)), (10_000, (100, 2000, 1000))])
def test_curves_have_points_enough_and_not_too_many(steps: int, every: tuple[int, int, int]) -> None:
    found = told_often(TrainConfig(out="", steps=steps), 10)
    assert (found.log_every, found.evaluate_every, found.save_every) == every
    assert told_often(TrainConfig(out="", steps=steps, evaluate_every=steps), 10).evaluate_every == steps


def test_features_that_cannot_be_had_do_not_keep_others_from_being_extracted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def extract(features: Features, *_: Any) -> None:
        asked.append(features.view)
        if features.view == "regions":
            raise TriptychError("no such weights.")

    monkeypatch.setattr(running, "extract", extract)
    cells = [cell("vl_bert_vqa", "store"), cell("grid_vlp_vqa", "store")]
    lost = extract_all(cells, setting(data, tmp_path), EngineConfig(str(tmp_path)))
    features = features_of(cells[0].recipe)
    assert features is not None and asked == ["regions", "grid"]
    assert lost == {features.name: "its regions cannot be extracted: no such weights."}


def test_a_cell_that_fails_gives_its_devices_memory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[torch.device]()
    monkeypatch.setattr(running.machine, "give_back", given.append)
    cells = cells_of(named("visual_inputs").rows[0], Common(Train(tiny=True, device="cpu"), (0,)), "+".join)
    found = run_cell(cells[0], Setting(str(tmp_path), "", str(tmp_path)))
    assert found.error and given == [torch.device("cpu")]
