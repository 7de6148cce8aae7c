"""`triptych compare` as a user types it, at its smallest size: from pictures to the page."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from storage import TriptychError
from tests.compare_data import compare_data
from tests.helpers import json_lines
from workflows.cli import main
from workflows.comparing.features import Features, extract

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPES = ("grid_vlp_vqa", "vilt_vqa")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compare_data(tmp_path_factory.mktemp("data"))


def compare(data: Path, out: Path, *more: str) -> int:
    return main(["compare", "--data", str(data), "--out", str(out), "--tiny", "--steps", "3", "--device", "cpu", *more])


@pytest.mark.slow
def test_two_models_two_inputs_and_two_seeds_become_a_page(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(data, tmp_path, "--recipes", *RECIPES, "--seeds", "0", "1") == 0
    told = capsys.readouterr().out
    assert "8 of 8  ViLT, pixels, seed 1, vqa: accuracy" in told and f"open {tmp_path / 'report.html'}" in told
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [(each["label"], each["seed"]) for each in rows] == [
        (f"{model}, {seen}", seed)
        for model, seens in (("Grid-VLP", ("cached grid", "pixels")), ("ViLT", ("cached pixels", "pixels")))
        for seen in seens
        for seed in (0, 1)
    ]
    assert all(each["score"] is not None and each["error"] is None and each["tiny"] for each in rows)
    assert [each["cache_visual_ms"] is None for each in rows] == [False, False, True, True] * 2
    markdown = (tmp_path / "results.md").read_text()
    assert len(re.findall(r"^\| (Grid-VLP|ViLT), .* ± ", markdown, re.MULTILINE)) == 4
    page = (tmp_path / "report.html").read_text()
    assert "tiny twins" in page and page.count("<svg") >= 4 and "http" not in page.replace("http-equiv", "")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*") if path.is_file()}
    assert compare(data, tmp_path, "--recipes", *RECIPES, "--seeds", "0", "1") == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*") if path.is_file()}
    assert pq.read_table(tmp_path / "results.parquet").to_pylist() == rows


@pytest.mark.slow
def test_a_failed_cell_is_named_and_the_others_go_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--recipes", *RECIPES, "--visuals", "pixels", "--seeds", "0", "--starts", "vilt_vqa=nothing.ckpt")
    assert compare(data, tmp_path, *args, "--json", "--quiet") == 1
    told = capsys.readouterr()
    assert told.err.startswith("1 of 2 cells") and told.err.count("\n") == 2, "errors are all that --quiet leaves"
    assert "1 of 2 cells failed:\nViLT, pixels, seed 0, vqa: ConfigError: --start nothing.ckpt is no file" in told.err
    *cells, end = json_lines(told.out)
    assert {each["label"]: bool(each["error"]) for each in cells} == {"ViLT, pixels": True, "Grid-VLP, pixels": False}
    assert end["html"] == str(tmp_path / "report.html")
    rows = {each["label"]: each for each in pq.read_table(tmp_path / "results.parquet").to_pylist()}
    assert rows["ViLT, pixels"]["error"] and rows["Grid-VLP, pixels"]["score"] is not None
    assert "nothing.ckpt is no file" in (tmp_path / "report.html").read_text()
    assert "nothing.ckpt is no file" in (tmp_path / "results.md").read_text()


@pytest.mark.slow
def test_features_that_cannot_be_extracted_fail_their_cells_alone(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflows.comparing.running.extract", _all_but_regions)
    args = ("--recipes", "vl_bert_vqa", "vilt_vqa", "--visuals", "store", "--seeds", "0")
    assert compare(data, tmp_path, *args) == 1
    told = capsys.readouterr()
    assert "VL-BERT, cached regions, seed 0, vqa: its regions cannot be extracted: no weights" in told.err
    assert "ViLT, cached pixels, seed 0, vqa: accuracy" in told.out


@pytest.mark.slow
def test_a_named_comparison_comes_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pre-trained on what is there, then fine-tuned, as other processes would do it; flags win over the file."""
    monkeypatch.setattr("workflows.comparing.command.side_by_side", _as_if_side_by_side)
    data = compare_data(tmp_path / "data", ("vqav2", "coco_captions"))
    config = tmp_path / "matrix.yaml"
    settings = {"data": str(data), "out": str(tmp_path / "out"), "name": "fusion", "seeds": [7, 8], "steps": 2}
    settings["processes"] = 3
    config.write_text(yaml.safe_dump({**settings, "tiny": True, "device": "cpu"}))
    assert main(["compare", "--config", str(config), "--seeds", "0"]) == 0
    told = capsys.readouterr().out
    assert "pre-training goes without visual_genome, conceptual_captions, sbu: not at hand" in told
    assert "1 of 6  decoder, seed 0, pretraining: pre-trained" in told
    rows = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert [each["label"] for each in rows] == ["co-attention", "merged attention", "decoder"]
    assert all(each["pretraining_hours"] > 0 and each["before"] for each in rows)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "How should text and image meet?" in page and "This follows METER table 7." in page


def test_the_papers_analyses_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--list"]) == 0
    assert "encoder_depth            Grid-VLP table 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name them with --data and --out"),
        (["--data", "nowhere", "--out", "OUT"], "nowhere has no folder images"),
        (["--data", "DATA", "--out", "OUT", "--recipes", "vilt"], "there is no recipe 'vilt'"),
        (["--data", "DATA", "--out", "OUT", "--name", "depth"], "there is no comparison 'depth'"),
        (["--data", "DATA", "--out", "OUT", "--visuals", "boxes"], "--visuals boxes is not known"),
        (["--data", "DATA", "--out", "OUT", "--recipes", "grid_vlp_gqa"], "no line of the comparison has its data"),
        (["--data", "DATA", "--out", "OUT", "--processes", "0"], "--processes 0 does not do; take 1 or more"),
        (["--data", "DATA", "--out", "OUT", "--processes", "2", "--engine", "ray"], "with --engine ray none"),
        (["--data", "DATA", "--out", "OUT", "--starts", "vilt_vqa"], "write RECIPE=WEIGHTS"),
        (["--data", "DATA", "--out", "OUT", "--tiny", "--seeds", "-1"], "--seed -1 must be 0 or more"),
        (["--data", "DATA", "--out", "OUT", "--name", "fusion", "--visuals", "store"], "has its own lines; leave out"),
        (["--data", "DATA", "--out", "DATA"], "holds 'annotations' and no comparison"),
        (["--data", "DATA", "--out", "OUT", "--tiny", "--networks", "vl_bert_vqa=x.pth"], "leave out --networks"),
    ],
)
def test_a_wrong_comparison_is_one_line(
    args: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"DATA": str(data), "OUT": str(tmp_path)}
    assert main(["compare", *(places.get(each, each) for each in args)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_cells_spread_over_ray_give_the_same_scores(data: Path, tmp_path: Path) -> None:
    args = ("--recipes", "vilt_vqa", "--visuals", "store", "--seeds", "0", "1")
    assert compare(data, tmp_path / "ray", *args, "--engine", "ray") == 0
    assert compare(data, tmp_path / "here", *args) == 0
    spread, here = (pq.read_table(tmp_path / each / "results.parquet").to_pylist() for each in ("ray", "here"))
    assert [(each["cell"], each["score"]) for each in spread] == [(each["cell"], each["score"]) for each in here]
    assert [each["specs"] for each in spread] == [each["specs"] for each in here] and spread[0]["extraction_ms"] > 0


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_task_whose_process_dies_is_tried_again_and_then_told_of() -> None:
    from pipeline.spread import spread

    found = dict(spread(_dies_of_odd_ones, [0, 1, 2], "cpu", None))
    assert (found[0], found[2]) == (0, 4) and isinstance(found[1], str)


def _dies_of_odd_ones(number: int) -> int:
    import os

    if number % 2:
        os._exit(1)
    return 2 * number


def _as_if_side_by_side(run: Any, items: Any, processes: int, after: Any) -> Any:
    """The last ones first, as far as they need not wait; what processes are given goes there and back."""
    assert (processes, after) == (3, {3: 0, 4: 1, 5: 2})
    run, items = pickle.loads(pickle.dumps((run, items)))
    return ((number, run(items[number])) for number in (2, 5, 1, 4, 0, 3))


def _all_but_regions(features: Features, *given: Any) -> None:
    if features.view == "regions":
        raise TriptychError("no weights")
    extract(features, *given)
