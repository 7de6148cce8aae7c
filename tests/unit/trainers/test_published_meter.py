"""METER's checkpoints in the official format, made here: other image sizes, other tasks, what is left out and told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from extractors.configs import PatchConfig
from extractors.weights import WeightsError
from tests.official_checkpoints import meter_checkpoint, meter_state
from tests.unit.extractors.towers import save_tower
from tests.unit.trainers.meters import end_to_end, meter, pixels, text, tower
from trainers.batch import Batch
from trainers.models.checkpoints import save
from trainers.models.layers import resize_positions, resize_square
from trainers.models.meter import Meter, MeterConfig
from trainers.models.published_meter import load_meter, start_meter

PRETRAINED = ("mlm", "itm")
POSITIONS = "image.tower.model.pos_embed"


def sized(size: int | None, name: str = "clip", heads: tuple[str, ...] = PRETRAINED) -> MeterConfig:
    return replace(end_to_end(name), image=tower(name, size), heads=heads)


@pytest.mark.parametrize("name", ["clip", "swin"])
def test_a_checkpoint_of_the_same_size_loses_nothing(name: str, tmp_path: Path) -> None:
    model = meter(sized(None, name))
    other = Meter(model.config).eval()
    report = load_meter(other, meter_checkpoint(tmp_path / "a.ckpt", model))
    assert not report.missing and not report.changed and report.loaded == len(model.state_dict())
    assert {each.split(".")[0] for each in report.unexpected} == {"text_transformer", "vit_model"}
    batch = Batch(text(), pixels(size=64 if name == "swin" else 32))
    assert torch.equal(other(batch).image, model(batch).image)
    save(other, tmp_path / "ours.safetensors")
    again = Meter(model.config).eval()
    assert not load_meter(again, tmp_path / "ours.safetensors").unexpected
    assert torch.equal(again(batch).text, model(batch).text)


def test_clips_positions_are_resized_to_the_image(tmp_path: Path) -> None:
    model, other = meter(sized(None)), Meter(sized(48)).eval()
    report = load_meter(other, meter_checkpoint(tmp_path / "a.ckpt", model))
    assert report.changed == (f"{POSITIONS} interpolated from 4 x 4 to 6 x 6",)
    wanted = resize_positions(model.state_dict()[POSITIONS][0], 6)
    assert torch.equal(other.state_dict()[POSITIONS][0], wanted)
    assert other(Batch(text(), pixels(size=48))).image.shape == (3, 37, 12)


def test_swins_tables_are_resized_and_its_masks_made_anew(tmp_path: Path) -> None:
    model, other = meter(sized(None, "swin")), Meter(sized(96, "swin")).eval()
    stored = meter_state(model) | {
        "vit_model.layers.0.blocks.0.attn.relative_position_index": torch.zeros(4, 4).long(),
        "vit_model.layers.1.blocks.1.attn_mask": torch.zeros(16, 4, 4),
    }
    torch.save({"state_dict": stored}, tmp_path / "a.ckpt")
    report = load_meter(other, tmp_path / "a.ckpt")
    name = "image.tower.model.layers.0.blocks.0.attn.relative_position_bias_table"
    assert f"{name} interpolated from 3 x 3 to 5 x 5" in report.changed and len(report.changed) == 5
    assert torch.equal(other.state_dict()[name], resize_square(model.state_dict()[name], 5))
    assert other(Batch(text(), pixels(size=96))).image.shape == (3, 9, 12)


def test_a_pretrained_model_starts_every_task(tmp_path: Path) -> None:
    model = meter(sized(None))
    path = meter_checkpoint(tmp_path / "a.ckpt", model)
    pair = Meter(sized(None, heads=("nlvr2",)))
    report = start_meter(pair, path)
    assert report.changed == ("modality.weight row 2 copied from row 1",)
    assert torch.equal(pair.modality.weight[2], model.modality.weight[1])
    assert all(name.startswith("heads.nlvr2.") for name in report.missing)
    ranking = Meter(sized(None, heads=("itm", "rank")))
    assert "heads.rank copied from row 1 of heads.itm" in start_meter(ranking, path).changed
    assert torch.equal(ranking.heads["rank"].weight, model.heads["itm"].weight[1:])  # type: ignore[index]
    back = Meter(sized(None, heads=("vqa",)))
    save(pair, tmp_path / "pair.safetensors")
    told = start_meter(back, tmp_path / "pair.safetensors")
    assert "modality.weight row 2 left out" in told.changed and told.unexpected


def test_what_was_trained_on_cached_patches_starts_one_that_sees_pixels(tmp_path: Path) -> None:
    seeing = Meter(sized(None))
    assert seeing.image is not None
    cached = meter(replace(sized(None), image=None, image_dim=seeing.image.dim))
    tower = {name: each.clone() for name, each in seeing.state_dict().items() if name.startswith("image.")}
    save(cached, tmp_path / "cached.safetensors")
    report = start_meter(seeing, tmp_path / "cached.safetensors")
    assert report.changed == ("the image encoder is the model's own: the file has none",)
    assert not report.missing and not report.unexpected
    found = seeing.state_dict()
    assert all(torch.equal(found[name], each) for name, each in tower.items())
    assert all(torch.equal(found[name], each) for name, each in cached.state_dict().items())
    half = {name: each for name, each in found.items() if not name.startswith("image.tower.model.blocks.0")}
    with pytest.raises(WeightsError, match=r"missing .*image.tower.model.blocks.0"):
        start_meter(seeing, half)


def test_an_encoder_of_transformers_is_refused_in_one_line(tmp_path: Path) -> None:
    path, folder = meter_checkpoint(tmp_path / "meter.ckpt", meter(sized(None))), save_tower("clip", tmp_path)
    model = Meter(replace(end_to_end(), image=PatchConfig(model=f"hf:{folder}", layer=-2), heads=PRETRAINED))
    for load in (load_meter, start_meter):
        with pytest.raises(WeightsError, match="of another library than the model's"):
            load(model, path)
    save(model, tmp_path / "ours.safetensors")
    assert not load_meter(model, tmp_path / "ours.safetensors").missing


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = meter(sized(None))
    path = meter_checkpoint(tmp_path / "a.ckpt", model)
    with pytest.raises(WeightsError, match="heads.vqa"):
        load_meter(Meter(sized(None, heads=("vqa",))), path)
    with pytest.raises(WeightsError, match=r"missing .*fusion.image_layers.2"):
        load_meter(Meter(replace(sized(None), layers=3)), path)
    with pytest.raises(WeightsError, match="unexpected .*cross_modal_image_layers.1"):
        load_meter(Meter(replace(sized(None), layers=1)), path)
