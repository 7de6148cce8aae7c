"""The notebooks run, what they leave is what they say, and the outputs that are kept in them are whole.

That of Ray Data runs in test_examples.py, where the tests with a cluster are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

from storage import open_store
from tests.notebooks import FOLDER, run_cells

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
PICTURES = {"one_image": 1, "folder_to_picture": 1, "train_vqa": 2, "butd_tsv": 1}
LARGEST = 300_000  # bytes of a notebook with its pictures


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all of them run, so that scenes are drawn once."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[Path]:
    monkeypatch.chdir(work)
    plt.switch_backend("agg")
    yield work / "output"
    plt.close("all")


@pytest.mark.slow
def test_a_folder_becomes_two_stores_and_a_picture(here: Path) -> None:
    names = run_cells("folder_to_picture")
    assert set(names["regions"]) == set(names["grid"]) == {"astronaut", "chelsea", "coffee", "rocket"}
    assert len(plt.gcf().axes) == 2 and len(plt.gcf().axes[0].patches) == 6
    assert names["heat"].shape == names["grid"]["chelsea"].features.shape[:2]
    assert (here / "folder/share/README.md").exists() and (here / "folder/coco/instances.json").exists()


@pytest.mark.slow
def test_a_store_is_read_by_torch_and_by_transformers(here: Path) -> None:
    names = run_cells("read_a_store")
    assert names["found"].pooler_output.shape == (2, 32)
    assert names["scores"].shape == (2, 3129)
    assert names["padded"].values.shape == (2, 36, names["store"].spec.layout.dim)


@pytest.mark.slow
def test_scenes_train_a_model_whose_loss_falls(here: Path) -> None:
    names = run_cells("train_vqa")
    losses = [line["loss"] for line in names["steps"]]
    assert len(losses) == 8 and np.mean(losses[-2:]) < losses[0]
    assert len(names["answers"]) == len(names["questions"]) == 60
    assert open_store(here / "vqa/grid").spec.view == "grid"


@pytest.mark.slow
def test_a_tsv_becomes_a_store_that_is_trained_on_and_comes_back(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = run_cells("butd_tsv")
    assert len(names["store"]) == 34
    assert [row.key for row in names["store"].errors()] == ["300104"]
    assert "\nTrue\n" in capsys.readouterr().out
    assert json.loads((here / "butd/run/config.json").read_text())["recipe"] == "vl_bert_vqa"


@pytest.mark.slow
def test_a_kernel_runs_a_notebook_as_a_reader_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("nbclient")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a kernel's own shows pictures
    notebook = nbformat.read(FOLDER / "one_image.ipynb", 4)
    client.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert outputs[-1]["data"]["text/plain"].startswith("((")  # shapes of all views


@pytest.mark.parametrize("name", NAMES)
def test_kept_outputs_are_whole_small_and_of_no_machine(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it from the top"
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [output for output in outputs if output.output_type == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == PICTURES.get(name, 0)
    text = path.read_text()
    assert len(text) < LARGEST
    assert not [place for place in ("/home/", "/tmp/", "/work/", "/root/", "site-packages") if place in text]


def test_every_notebook_says_that_weights_are_random_and_is_on_the_page() -> None:
    assert len(NAMES) == 6
    page = (ROOT / "docs" / "examples.md").read_text()
    for name in NAMES:
        words = " ".join(cell.source for cell in nbformat.read(FOLDER / f"{name}.ipynb", 4).cells)
        assert "**random" in words, name
        assert f"../examples/notebooks/{name}.ipynb" in page
