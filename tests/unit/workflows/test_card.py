"""Dataset cards: the hub's own parser reads them, and they say what is true of the store and nothing else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard

from storage import FeatureStore, Spec, StoreWriter, open_store
from storage.interop.parquet import write_parquet
from tests.unit.storage.samples import REGIONS, VIEWS, make_store, with_layout, write_unit
from workflows.card import card, described, size_category
from workflows.cli import main

TRAINED = {"name": "butd-r101", "weights": {"origin": "checkpoint", "sha256": "ab" * 32}}
RUN = {
    "complete": True,
    "source": "/home/somebody/secret project/photos",
    "images": 4,
    "source_images": 5,
    "images_this_run": 4,
    "images_per_second": 2.5,
    "engine": "local",
    "finished_at": "2026-01-02T03:04:05+00:00",
    "hardware": "x86_64 Linux, 3 threads",
    "version": "9.8.7",
}


def made(path: Path, spec: Spec = REGIONS, run: Mapping[str, Any] | None = RUN) -> FeatureStore:
    writer = StoreWriter(path, spec, {"classes": [f"thing|{number}" for number in range(1600)]})
    write_unit(writer, ["a", "b", "c", "d"], failed=["b"])
    if run is not None:
        writer.write_run(dict(run))
    return open_store(path)


def trained(**more: Any) -> Spec:
    return replace(REGIONS, model={**TRAINED, **more})


def test_the_hubs_parser_reads_what_the_card_says(tmp_path: Path) -> None:
    found = DatasetCard(card(made(tmp_path / "store", trained()), "cc-by-4.0", has_parquet=True))
    assert found.data.to_dict() == {
        "license": "cc-by-4.0",
        "pretty_name": "Regions: butd-r101",
        "task_categories": ["image-feature-extraction"],
        "tags": ["triptych", "regions", "butd-r101"],
        "size_categories": ["n<1K"],
        "configs": [
            {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]},
        ],
    }
    for line in (
        "| images | 3 |",
        "| images that failed | 1 |",
        "| truncated | 1 |",
        f"| model.weights.sha256 | {'ab' * 32} |",
        "| layout.dim | 8 |",
        "| images | 4 of the 5 in `photos` |",
        "| last run | 4 images, 2.50 a second, local engine, 2026-01-02T03:04:05+00:00 |",
        "| hardware | x86_64 Linux, 3 threads |",
        "| Triptych | 9.8.7 |",
        "| `class_ids` | list of labels, 1600 names |",
        "| `features` | list of lists of 8 float16 |",
        "Licence: `cc-by-4.0`.",
    ):
        assert f"\n{line}\n" in found.text, line
    assert "1600 classes: thing\\|0, thing\\|1" in found.text and "thing\\|10" not in found.text
    assert "secret project" not in found.content


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    bare = with_layout(REGIONS, without=("class_ids", "class_scores", "attribute_ids", "attribute_scores"))
    store = open_store(make_store(tmp_path / "store", [["a"]], bare))
    found = DatasetCard(card(store, None, has_parquet=False))
    assert found.data.license == "unknown" and "No licence was given" in found.text
    assert found.data.to_dict().keys().isdisjoint({"configs"}) and found.data.tags == ["triptych", "regions"]
    assert "NOT COMPLETE" in found.text
    lacking = "attribute_ids, attribute_scores, class_ids, class_scores"
    assert f"\n| layout.without | {lacking} |\n" in found.text
    for absent in ("failed\n", "classes", "last run", "hardware", "class_ids |", "datasets", "RANDOM", "NARROWED"):
        assert absent not in found.text, absent


@pytest.mark.parametrize(("origin", "loud"), [("random:0", True), ("checkpoint", False)])
def test_random_weights_are_said_loudly(origin: str, loud: bool, tmp_path: Path) -> None:
    model = {"weights": {"origin": origin, "sha256": "00"}, "width_divisor": 4 if loud else 1}
    found = DatasetCard(card(made(tmp_path / "store", trained(**model)), None, has_parquet=False))
    assert ("> **RANDOM WEIGHTS.**" in found.text) == ("random-weights" in found.data.tags) == loud
    assert ("divided by 4" in found.text) == loud
    assert "NOT COMPLETE" not in found.text


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_has_a_card_that_tells_its_shape(view: str, tmp_path: Path) -> None:
    found = DatasetCard(card(made(tmp_path / "store", VIEWS[view]), None, has_parquet=view == "pixels"))
    assert view in found.data.tags
    shape = {"regions": "(boxes, 8)", "grid": "(H, W, 8)", "patches": "(H, W, 8)", "pixels": "(H, W, 3)"}[view]
    assert shape in found.text.partition("## How to read it")[2]
    assert ("| `image` | PNG image |" in found.text) == (view == "pixels")
    assert (found.data.task_categories is None) == (view == "pixels")


def test_size_categories_are_the_hubs() -> None:
    asked = (0, 999, 1000, 123_287, 10**6, 10**12 - 1, 10**12)
    wanted = ["n<1K", "n<1K", "1K<n<10K", "100K<n<1M", "1M<n<10M", "100B<n<1T", "n>1T"]
    assert [size_category(count) for count in asked] == wanted


def test_a_feature_in_words() -> None:
    row = {"_type": "Sequence", "length": 8, "feature": {"_type": "Value", "dtype": "float32"}}
    for _ in range(2):
        row = {"_type": "Sequence", "length": -1, "feature": row}
    assert described(row) == "list of lists of lists of 8 float32"


def test_the_command_writes_a_card_that_leads_datasets_to_the_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    store, out = made(tmp_path / "store", trained()), tmp_path / "share" / "README.md"
    write_parquet(store, out.parent)
    assert main(["card", str(tmp_path / "store"), "--out", str(out), "--licence", "mit"]) == 0
    assert capsys.readouterr().out == f"{out}: 3 records\n"
    assert DatasetCard.load(out).data.license == "mit"
    found = datasets.load_dataset(str(out.parent), cache_dir=str(tmp_path / "cache"))
    assert found["train"]["key"] == ["a", "c", "d"]
    assert main(["card", str(tmp_path / "store"), "--out", str(out)]) == 2
    assert "exists; choose a new name" in capsys.readouterr().err
    assert main(["card", str(tmp_path / "store"), "--out", str(tmp_path / "new" / "folder" / "README.md")]) == 0
    assert (tmp_path / "new" / "folder" / "README.md").is_file()
    capsys.readouterr()
    assert main(["card", str(tmp_path / "store")]) == 0
    assert capsys.readouterr().out == card(store, None, has_parquet=False)


def test_a_card_is_not_put_beside_another_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "store")
    other = open_store(make_store(tmp_path / "other", [["a"]], VIEWS["grid"]))
    write_parquet(other, tmp_path / "share")
    card_of = ["card", str(tmp_path / "store"), "--out", str(tmp_path / "share" / "README.md")]
    assert main(card_of) == 2
    assert "is no export of" in capsys.readouterr().err
    write_unit(StoreWriter(tmp_path / "other", VIEWS["grid"]), ["b"])
    assert main([*card_of[:1], str(tmp_path / "other"), *card_of[2:]]) == 2
    assert "has 1 of 2 records; run the export once more" in capsys.readouterr().err
    assert not (tmp_path / "share" / "README.md").exists()
    assert main([*card_of, "--licence", "Do what you like"]) == 2
    assert "take one such as cc-by-4.0" in capsys.readouterr().err
