"""Tiny twins keep what recipes differ in: sizes of images, kinds of towers, boxes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from extractors import ConfigError, GridConfig, PixelConfig, RegionConfig
from extractors.configs import SHIPPED, SHIPPED_SIZE
from trainers.models.image_towers import IMAGE_TOWERS
from trainers.tasks.families import build_model
from workflows.comparing.named import named
from workflows.config_file import with_config_file
from workflows.recipes import recipe_of
from workflows.recipes.starting import start_network
from workflows.recipes.tiny import tiny


def test_images_of_convolutional_networks_shrink_alike() -> None:
    recipe = recipe_of("grid_vlp_vqa")
    sizes = [(448, 448), (448, 746), (600, 1000)]
    small = [tiny(replace(recipe, extractor=GridConfig(shorter=a, longer=b))).extractor for a, b in sizes]
    assert [(each.shorter, each.longer) for each in small] == [(47, 47), (47, 79), (64, 106)]  # type: ignore[union-attr]


def test_the_network_that_comes_along_has_its_size_and_that_of_its_images() -> None:
    boxes, grid, pixels = (tiny(recipe_of(name), shipped=True) for name in ("vl_bert_vqa", "grid_vlp_vqa", "vilt_vqa"))
    assert isinstance(boxes.extractor, RegionConfig) and isinstance(grid.extractor, GridConfig)
    for each, model in ((boxes.extractor, "grid-r50"), (grid.extractor, "r50")):
        assert (each.model, each.weights, each.width_divisor) == (model, SHIPPED, 1)
        assert (each.shorter, each.longer) == SHIPPED_SIZE
    assert boxes.side == grid.side == SHIPPED_SIZE[0]
    assert pixels == tiny(recipe_of("vilt_vqa")), "it sees by no convolutional network"


@pytest.mark.parametrize("name", ["vl_bert_vqa", "grid_vlp_vqa", "pixel_bert_vqa"])
def test_the_network_that_comes_along_fits_what_sees_pixels(name: str) -> None:
    recipe = tiny(replace(recipe_of(name), visual="pixels"), shipped=True)
    [rule], [random] = recipe.train.rules, tiny(replace(recipe_of(name), visual="pixels")).train.rules
    assert (rule.pattern, rule.lr, random.lr) == (r"^network\.", 1, 10), "what sees already learns more slowly"
    model = build_model(recipe.model)
    begun = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}  # type: ignore[union-attr]
    assert len(start_network(model, SHIPPED)) == 64
    weights = "backbone.res2.0.conv1.weight"
    assert not torch.equal(model.network.state_dict()[weights], begun[weights])  # type: ignore[union-attr]


def test_cached_pixels_have_the_size_that_the_tiny_model_sees() -> None:
    recipe = tiny(recipe_of("vilt_vqa"))
    assert isinstance(recipe.extractor, PixelConfig) and recipe.extractor.shorter == recipe.side == 64


def test_towers_have_a_quarter_of_their_patches_a_side() -> None:
    sides = {row.label: tiny(row.recipe).side for row in named("fine_tuning_resolution").rows}
    assert sides == {
        "CLIP B/32, 224": 32,
        "CLIP B/32, 384": 48,
        "CLIP B/32, 576": 64,
        "CLIP B/16, 224": 48,
        "CLIP B/16, 384": 96,
        "CLIP B/16, 576": 144,
    }


def test_every_tower_s_twin_is_the_smallest_of_its_family() -> None:
    models = {row.label: tiny(row.recipe).model.image.model for row in named("vision_encoders").rows}
    assert models.keys() == IMAGE_TOWERS.keys() - {"swin-l-384"}
    assert models["clip-b16-224"] == models["vit-b16-384"] == "timm:test_vit"
    assert models["distilled-deit-b16-384"] != models["deit-b16-384"]
    for name in ("deit", "cait", "volo", "beit", "swin"):
        assert all(name in model for label, model in models.items() if name in label)


def test_tasks_of_meter_learn_slowly_for_their_heads_are_fast() -> None:
    rates = {name: tiny(recipe_of(name)).train.lr for name in ("meter_vqa", "meter_pretrain", "vilt_vqa")}
    assert rates == {"meter_vqa": 1e-4, "meter_pretrain": 1e-3, "vilt_vqa": 1e-3}


def test_lists_in_a_config_file_are_for_commands_that_take_them(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("config") / "job.yaml"
    path.write_text("seeds: [0, 1]\ntiny: true\nrecipes: [vilt_vqa]\nsteps: 3\n")
    args = ["--config", str(path), "--steps", "4"]
    found = with_config_file(args, lists=True)
    assert found == ["--seeds", "0", "1", "--tiny", "--recipes", "vilt_vqa", *args]
    with pytest.raises(ConfigError, match="must be a flat mapping"):
        with_config_file(args)
    path.write_text("seeds: {a: 1}")
    with pytest.raises(ConfigError, match="must be a flat mapping"):
        with_config_file(args, lists=True)


@pytest.mark.parametrize("name", ["vl_bert_vqa", "grid_vlp_vqa", "vilt_vqa", "meter_vqa"])
def test_narrow_layers_begin_with_larger_weights(name: str) -> None:
    model = build_model(tiny(recipe_of(name)).model)
    weights = [weight for weight in model.parameters() if weight.dim() == 2 and min(weight.shape) >= 128]
    narrow = [each for each in weights if each.std().item() == pytest.approx(128**-0.5, rel=0.05)]
    assert len(narrow) >= 8, "two layers of at least four"


def test_the_regions_of_a_twin_are_seen_from_the_start() -> None:
    assert not tiny(recipe_of("vl_bert_vqa")).model.silent
    assert recipe_of("vl_bert_vqa").model.silent
