"""`triptych explain`: pictures of tiny runs of every model, over the right part of the image, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from storage.frames import cached_frame
from tests.helpers import json_lines
from tests.recipe_data import Data
from trainers.text import load_tokenizer
from workflows.cli import main
from workflows.looking import places_of

pytestmark = pytest.mark.usefixtures("one_thread")
ASKED = {  # recipe: where its images come from, an image and a word, the shape of the maps, and the head
    "vl_bert_vqa": ("store", "9", "color", (3,), "vqa"),
    "grid_vlp_vqa": ("store", "9", "color", (2, 2), "vqa"),
    "pixel_bert_vqa": ("pixels", "9", "color", (1, 1), "vqa"),
    "vilt_vqa": ("pixels", "9", "color", (2, 2), "vqa"),
    "meter_vqa": ("pixels", "9", "color", (9, 9), "vqa"),
    "vl_bert_refcoco": ("store", "9", "red", (3,), "refcoco"),
    "meter_pretrain": ("store", "coco/1", "circle", (2, 2), "mlm"),
}
QUICK = "vilt_vqa"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("data"))


def trained(name: str, data: Data, root: Path) -> Path:
    """A tiny run of two steps."""
    assert main(["train", *data.arguments(name, root, ASKED[name][0]), "--tiny", "--steps", "2"]) == 0
    return root / "run"


def explained(run: Path, out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[dict[str, Any], str]:
    """The numbers that the command wrote, and what it said."""
    capsys.readouterr()
    assert main(["explain", str(run), "--out", str(out), *more]) == 0
    said = capsys.readouterr().out
    return json.loads(next(out.glob("*.json")).read_text()), said


@pytest.mark.parametrize("name", [QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in ASKED if n != QUICK)])
def test_every_model_shows_what_it_looks_at(
    name: str, data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, image, word, shape, head = ASKED[name]
    run, out = trained(name, data, tmp_path), tmp_path / "pictures"
    found, said = explained(run, out, capsys, "--image", image, "--word", word)
    assert (found["image"], found["word"], found["asked"]["head"]) == (image, word, head) and word in found["text"]
    maps = [np.array(found[kind]) for kind in ("attention", "gradcam")]
    assert [each.shape for each in maps] == [shape, shape]
    assert all(np.isfinite(each).all() and (each >= 0).all() for each in maps)
    assert 0 < maps[0].sum() < 1 and maps[1].any()
    pictures = sorted(out.glob("*.png"))
    stem = f"{image.replace('/', '_')}-{word}"
    assert [path.name for path in pictures] == [f"{stem}-attention.png", f"{stem}-gradcam.png"]
    for path in pictures:
        assert str(path) in said
        with Image.open(path) as picture:
            assert picture.size == (64, 64) and picture.mode == "RGB"
    place = found.get("boxes", found.get("frame"))
    assert np.array(place).shape == (*shape, 4) if len(shape) == 1 else place == [0, 0, 64, 64]
    assert found["asked"]["chosen"] in said


def test_a_question_of_one_s_own_is_read_and_what_is_wrong_is_one_line(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = trained(QUICK, data, tmp_path), tmp_path / "pictures"
    found, _ = explained(run, out, capsys, "--image", "9", "--question", "Is the circle blue?", "--word", "BLUE")
    assert found["text"] == "Is the circle blue?" and (out / "9-BLUE-gradcam.png").is_file()
    long = "what color is it " * 12
    usual = {"--image": "9", "--word": "color", "--out": str(out)}
    wrong = {
        "'green' is no word of 'What color is it?'; choose one of What, color, is, it.": {"--word": "green"},
        "vqav2 val has no image 'no one'": {"--image": "no one", "--question": "What color is it?"},
        "vqav2 val has no image 'nobody'; it has 8: 9, 10, 11, 12, 13, 14, 15, 16.": {"--image": "nobody"},
        "the model reads 40 tokens of a text, 'heavy' stands behind them": {
            "--question": f"{long} heavy?", "--word": "heavy"
        },
        "holds no run of `triptych train`": {"run": str(out)},
    }  # fmt: skip
    for message, change in wrong.items():
        of = change.pop("run", str(run))
        capsys.readouterr()
        assert main(["explain", of, *(part for pair in (usual | change).items() for part in pair)]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said


@pytest.mark.slow
def test_a_run_from_a_store_is_told_where_the_images_lie(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = data.arguments("grid_vlp_vqa", tmp_path, "store")
    at = args.index("--images")
    images, run = args[at + 1], str(tmp_path / "run")
    assert main(["train", *args[:at], *args[at + 2 :], "--tiny", "--steps", "1"]) == 0
    capsys.readouterr()
    asked = ["explain", run, "--image", "9", "--word", "color", "--out", str(tmp_path / "pictures")]
    assert main(asked) == 2
    assert "name their folder with --images" in capsys.readouterr().err
    assert main([*asked, "--images", images, "--json"]) == 0
    [facts] = json_lines(capsys.readouterr().out)
    assert facts["word"] == "color" and len(facts["files"]) == 3
    assert len(list((tmp_path / "pictures").iterdir())) == 3


def test_a_run_that_is_not_about_one_image_is_refused(
    data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = data.arguments("vilt_nlvr2", tmp_path, "pixels")
    assert main(["train", *args, "--tiny", "--steps", "1"]) == 0
    capsys.readouterr()
    assert main(["explain", str(tmp_path / "run"), "--image", "9", "--word", "is", "--out", str(tmp_path)]) == 2
    assert "a run of nlvr2 does not answer about one image and one text" in capsys.readouterr().err


# where cells and words lie


def test_stored_cells_lie_where_their_store_says() -> None:
    grid = {"shorter": 600, "longer": 1000}
    assert cached_frame(grid, {}, (480, 640), (19, 25)) == pytest.approx((0, 0, 640, 486.4))
    assert cached_frame(grid, {"stride": 16}, (480, 640), (38, 50)) == pytest.approx((0, 0, 640, 486.4))
    crop = {"aspect": "centre crop, margins rounded even", "size": 224, "resized": 256}
    assert cached_frame(crop, {}, (400, 600), (7, 7)) == pytest.approx((125, 25, 475, 375))
    for whole in ({"aspect": "squashed", "size": 224, "resized": 224}, {}):
        assert cached_frame(whole, {}, (400, 600), (7, 7)) == (0, 0, 600, 400)


def test_a_word_is_all_of_its_tokens(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "square", "##s", "circle"]))
    tokenizer = load_tokenizer(str(path))
    text = "A red square, squares?"
    assert places_of(tokenizer, text, "Squares") == [4, 5]
    assert places_of(tokenizer, text, "square") == [2]
    assert places_of(tokenizer, "a circle a", "a") == [0]
