"""`triptych train` and `triptych evaluate`: every recipe's tiny twin on tiny data in the official files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage import open_store
from tests import official_files
from tests.helpers import json_lines
from tests.recipe_data import Data
from trainers.data import load
from workflows.cli import main
from workflows.recipes import RECIPES, recipe_of
from workflows.train import Train

pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """All data sets, each written when it is first asked for."""
    return Data(tmp_path_factory.mktemp("data"))


def arguments(name: str, data: Data, root: Path, visual: str | None = None) -> list[str]:
    """What `triptych train` takes for a recipe's tiny twin."""
    return [*data.arguments(name, root, visual), "--tiny", "--log-every", "1"]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_the_tiny_twin_of_every_recipe_trains(name: str, data: Data, tmp_path: Path) -> None:
    args = arguments(name, data, tmp_path)
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
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments("grid_vlp_vqa", data, tmp_path)
    assert main(["train", *args, "--steps", "300", "--lr", "5e-3", "--log-every", "25"]) == 0
    losses = [line["loss"] for line in lines(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--split", "val", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert scores["accuracy"] > 45  # blind, by the question alone, 37.5: two shapes, four colours
    answers = json.loads((tmp_path / "run" / "submission").read_text())
    assert len(answers) == 16 and answers[0].keys() == {"question_id", "answer"}


@pytest.mark.slow
def test_answers_and_rationales_are_scored_together(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("answer", "rationale"):
        assert main(["train", *arguments(f"vl_bert_vcr_{name}", data, tmp_path / name), "--steps", "2", "--json"]) == 0
        [summary] = json_lines(capsys.readouterr().out)
        assert (summary["step"], summary["recipe"]) == (2, f"vl_bert_vcr_{name}") and summary["scores"]
    answers, rationales = (tmp_path / name / "run" for name in ("answer", "rationale"))
    beside = ["evaluate", str(rationales), "--beside", str(answers), "--json"]
    assert main(beside) == 0, "the answers are those that training ended with"
    scores = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    found = [json.loads((run / "predictions.json").read_text()) for run in (answers, rationales)]
    truth = {each.id: each.truth for each in load("vcr", "val", data.files("vcr").annotations).examples}
    right = np.zeros((len(truth), 2), bool)
    for row, (answer, rationale) in enumerate(zip(*found, strict=True)):
        true = truth[answer["id"]]
        right[row, 0] = int(np.argmax(answer["answer"])) == true["answer"]
        right[row, 1] = int(np.argmax(rationale["rationales"][true["answer"]])) == true["rationale"]
    wanted = [*100 * right.mean(0), 100 * right.all(1).mean()]
    assert scores == pytest.approx(dict(zip(("Q->A", "QA->R", "Q->AR"), wanted, strict=True)))
    head, *rows = (rationales / "submission").read_text().splitlines()
    assert head.startswith("annot_id,answer_0,") and head.count(",") == 20 and len(rows) == len(truth)

    def refused(args: list[str], message: str) -> None:
        assert main(args) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1

    refused(["evaluate", str(answers), "--beside", str(rationales)], "not vcr-answer with vcr-rationale.")
    (answers / "predictions.json").write_text(json.dumps(found[0][1:]))
    refused(beside, f"the answers are of {len(truth) - 1} questions, the rationales of {len(truth)}, and")
    (answers / "predictions.json").unlink()
    refused(beside, f"has no predictions yet; run `triptych evaluate {answers}` first")


def test_the_seed_decides_the_weights_that_a_run_begins_with(data: Data, tmp_path: Path) -> None:
    """Whatever the process drew before: another engine begins with the same model."""

    def weights(seed: int) -> dict[str, torch.Tensor]:
        given = iter(data.arguments("vl_bert_vqa", tmp_path / str(torch.rand(()).item()))[1:])
        flags: dict[str, Any] = {key.removeprefix("--"): value for key, value in zip(given, given, strict=True)}
        model, _, _ = Train("vl_bert_vqa", tiny=True, seed=seed, **flags).described().build()
        return model.state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["word.weight"], other["word.weight"])


def test_a_run_goes_on_where_it_ended(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments("pixel_bert_vqa", data, tmp_path)
    assert main(["train", *args, "--steps", "2"]) == 0
    assert "network starts from random weights" in capsys.readouterr().out
    assert main(["train", *args, "--steps", "2"]) == 2, "a run is never written over"
    assert main(["train", *args, "--steps", "2", "--resume"]) == 0
    assert "starts from" not in capsys.readouterr().out  # but from its checkpoint
    assert [line["step"] for line in lines(tmp_path / "run") if "loss" in line] == [1, 2]


def test_missing_images_stop_a_run_before_its_first_step(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = arguments("grid_vlp_vqa", data, tmp_path)
    empty = tmp_path / "few"
    empty.mkdir()
    for number in range(3):
        official_files.draw(empty / f"train2014/COCO_train2014_{number + 1:012d}.jpg", [])
    store = data.make_store("grid", empty, tmp_path / "small")
    assert main(["train", *[each if each != str(tmp_path / "store") else str(store) for each in args]]) == 2
    said = capsys.readouterr().err
    assert "5 of 8 images of vqav2 train are missing: 4, 5, 6, 7, 8; add them" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["vilt_vqa", "grid_vlp_vqa", "vl_bert_vqa"])
def test_the_cache_is_filled_in_the_first_epoch(name: str, data: Data, tmp_path: Path) -> None:
    args = arguments(name, data, tmp_path, "cache-through")
    args[args.index("--store") + 1] = str(tmp_path / "filled")
    assert main(["train", *args, "--steps", "3"]) == 0
    store = open_store(tmp_path / "filled")
    assert len(store) > 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert store.refresh() is None and len(store) == 2 * data.size.images


def test_the_weights_of_what_fills_the_store_can_be_named(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*arguments("grid_vlp_vqa", data, tmp_path, "cache-through"), "--steps", "2", "--start-network", "random:7"]
    args[args.index("--store") + 1] = str(tmp_path / "filled")
    assert main(["train", *args]) == 0
    assert open_store(tmp_path / "filled").spec.model["weights"]["origin"] == "random:7"
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    args = [*arguments("vilt_vqa", data, tmp_path / "other", "cache-through"), "--start-network", "random:7"]
    assert main(["train", *args]) == 2
    assert "what fills this run's store has no network; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "visual"),
    (
        ("grid_vlp_vqa", "pixels"),
        ("vl_bert_vqa", "pixels"),
        ("meter_vqa", "store"),
        ("pixel_bert_vqa", "store"),
    ),
)
@pytest.mark.slow
def test_what_is_seen_is_one_setting(name: str, visual: str, data: Data, tmp_path: Path) -> None:
    args = arguments(name, data, tmp_path, visual)
    assert main(["train", *args, "--steps", "2"]) == 0
    [weights] = (tmp_path / "run").glob("checkpoints/*/model.safetensors")
    assert weights.stat().st_size < 20e6, "a tiny twin's network is tiny, too"
    assert main(["evaluate", str(tmp_path / "run")]) == 0


def test_codes_are_told_from_pixels(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments("meter_pretrain_codes", data, tmp_path, "store")
    assert main(["train", *args]) == 2
    assert "discrete codes are told from pixels; choose --visual pixels" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_list_names_every_recipe_and_its_score(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in RECIPES) and "test-dev 76.05" in said


@pytest.mark.parametrize(
    ("args", "message"),
    (
        (["no_such"], "there is no recipe 'no_such'. `triptych train --list` shows them all"),
        (["vilt_vqa", "--visual", "ears"], "--visual 'ears' is not known; choose one of store, pixels, cache-through"),
        (["vilt_vqa"], "this run reads annotations; name their folder with --annotations"),
    ),
)
def test_what_is_wrong_is_told_in_one_line(
    args: list[str], message: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *args, "--out", str(tmp_path / "run"), "--tokenizer", str(data.vocabulary)]) == 2
    assert message in capsys.readouterr().err


def test_every_recipe_says_what_it_is() -> None:
    for name, make in RECIPES.items():
        recipe = make()
        assert make.__name__ == name and recipe.summary and recipe.expected and recipe.source and recipe.starts
        assert (recipe.train.steps is None) != (recipe.train.epochs is None)
