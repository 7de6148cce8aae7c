"""What a model of pixels takes over from a start that has learnt from another network's features."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from extractors.configs import SHIPPED
from extractors.resnet import ResNetConfig
from extractors.weights import randomise
from pipeline.config import EngineConfig
from tests.compare_data import compare_data
from trainers.batch import Batch, Regions, Text
from trainers.images import fast_rcnn_regions
from trainers.models.checkpoints import LoadReport
from trainers.models.layers import LayerConfig
from trainers.models.vl_bert import WAVES, VLBert, VLBertConfig, lay_out
from workflows.comparing.cells import Cell, Common, cells_of, of_recipes
from workflows.comparing.data import Data
from workflows.comparing.running import Setting, extract_all
from workflows.recipes.beginning import begin_translated
from workflows.recipes.building import Parts
from workflows.runs import built
from workflows.train import Train

pytestmark = pytest.mark.usefixtures("one_thread")
BODY = ResNetConfig(50).narrowed(32)
WIDE = BODY.out_channels(5)
OTHER = 9  # numbers of a feature of the start's network


def photos_of(count: int) -> Regions:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(count)]
    low = rng.uniform(0, 20, (count, 6, 2))
    boxes = np.concatenate([low, low + rng.uniform(10, 27, low.shape)], axis=-1).astype(np.float32)
    return fast_rcnn_regions(images, list(boxes), 48, 64)


def test_features_that_tell_the_same_are_made_the_same_of() -> None:
    torch.manual_seed(0)
    model = VLBert(VLBertConfig(LayerConfig(12, 3, 24), 1, 40, feature_dim=WIDE, body=BODY, heads=("vqa",))).eval()
    assert model.network is not None
    randomise(model.network, 1)
    seen, hidden = photos_of(24), torch.randn(WIDE, OTHER)
    layout = lay_out(Batch(Text(torch.zeros(24, 1, dtype=torch.int64)), seen))
    with torch.no_grad():
        own = model.seen_of(seen, layout)
        theirs = own[:, 8 * WAVES :] @ hidden / own.std() + 1
    start = torch.nn.Linear(8 * WAVES + OTHER, 12)
    whole = theirs.view(24, 7, OTHER)
    cached = Regions(seen.boxes, seen.image_sizes, None, whole[:, 1:], whole[:, 0])
    model.appearance.weight.data[:, : 8 * WAVES] = start.weight[:, : 8 * WAVES]
    other = {f"appearance.{name}": each.detach() for name, each in start.named_parameters()}
    assert begin_translated(model, [(seen, cached)], other, torch.device("cpu")) > 0.98
    with torch.no_grad():
        wanted = start(torch.cat([own[:, : 8 * WAVES], theirs], dim=1))
        error = (model.appearance(own) - wanted).square().mean() / wanted.var(0).mean()
    assert error < 0.02
    assert torch.equal(model.appearance.weight[:, : 8 * WAVES], start.weight[:, : 8 * WAVES]), "places stay"


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Setting, list[Cell]]:
    """VL-BERT's twin by the network that comes along, on a cache and end to end; and where they run."""
    root = compare_data(tmp_path_factory.mktemp("data"), images=8)
    Data(str(root)).write_words(root / "vocab.txt")
    where = Setting(str(root), str(root / "images"), str(root / "annotations"), str(root / "vocab.txt"))
    common = Common(Train(tiny=True, steps=2, device="cpu"), (0,), networks={"vl_bert_vqa": SHIPPED})
    rows = of_recipes(["vl_bert_vqa"], ["store", "pixels"]).rows
    cells = [cell for row in rows for cell in cells_of(row, common, lambda names: "data")]
    assert not extract_all(cells, where, EngineConfig(str(root)))
    return where, cells


def test_a_run_end_to_end_begins_near_the_run_on_the_cache(
    lines: tuple[Setting, list[Cell]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where, cells = lines
    cached, pixels = (where.run_of(cell) for cell in cells)
    start, _, _ = built(cached, None)
    assert isinstance(start, VLBert)
    torch.nn.init.normal_(start.appearance.bias)
    save_file(start.state_dict(), tmp_path / "start.safetensors")
    model, _, _ = built(pixels, str(tmp_path / "start.safetensors"), SHIPPED)
    told = capsys.readouterr().out
    met = re.search(r"appearance is fitted to the start's, on 8 images of the store: (\d+)% of it is met", told)
    assert met and int(met[1]) > 50, told
    assert isinstance(model, VLBert) and not torch.equal(model.appearance.bias, start.appearance.bias)

    model.appearance.weight.data.fill_(0.5)
    report = LoadReport("start", 0, other={name: each for name, each in start.state_dict().items() if "appear" in name})
    Parts(replace(pixels, recipe=replace(pixels.recipe, task="vcr-answer"))).translate(model, report)
    assert (model.appearance.weight == 0.5).all(), "VCR's boxes are not the store's"

    other = VLBert(replace(start.config, feature_dim=start.config.feature_dim + 1))
    save_file(other.state_dict(), tmp_path / "other.safetensors")
    built(pixels, str(tmp_path / "other.safetensors"), SHIPPED)
    assert "fitted" not in capsys.readouterr().out, "the store has no features that it has learnt from"
