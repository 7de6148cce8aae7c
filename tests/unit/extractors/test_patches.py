"""Patch records are what the towers' own libraries give, layer by layer, from pixels prepared as those libraries do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_data_config

from extractors import ConfigError, ImageError, PatchConfig, WeightsError, load_extractor
from extractors.patches import PatchExtractor
from storage import PatchRecord
from tests.unit.extractors.towers import TIMM_TOWERS, TOWERS, save_timm_tower, save_tower
from tests.unit.storage.samples import assert_same

SIZES = [(50, 70), (90, 61), (32, 32), (37, 38), (1, 1), (3, 300)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("towers")
    found = {f"hf:{name}": save_tower(name, root / "hf" / name) for name in TOWERS}
    return found | {f"timm:{name}": save_timm_tower(name, root / "timm" / name) for name in TIMM_TOWERS}


def make(folders: dict[str, Path], name: str, **settings: Any) -> PatchExtractor:
    model = f"{name.partition(':')[0]}:{folders[name]}"
    settings = {"device": "cpu", "store_dtype": "float32", **settings}
    return load_extractor("patches", model=model, **settings)  # type: ignore[return-value]


def photo(height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def normalised(extractor: PatchExtractor, image: np.ndarray) -> torch.Tensor:
    """What the tower sees, made by hand from what was prepared."""
    square, pixels = extractor.square, extractor.prepare("a", image).pixels.float()
    mean, std = (torch.tensor(each)[:, None, None] for each in (square.mean, square.std))
    return ((pixels * (1 / 255) - mean) / std)[None]


def vision_model(folder: Path) -> Any:
    """The tower by transformers alone, whole, with what follows it."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if config.model_type in ("clip", "siglip"):
        return transformers.AutoModel.from_pretrained(folder).vision_model.eval()
    return transformers.AutoModel.from_pretrained(folder).eval()


NORMS = {"clip": "post_layernorm", "siglip": "post_layernorm"}


@pytest.mark.parametrize("name", [name for name in TOWERS if name != "swin"])
@pytest.mark.parametrize("layer", [0, 1, 3, -1, -2])
def test_a_layer_is_the_hidden_state_that_transformers_gives(folders: dict[str, Path], name: str, layer: int) -> None:
    image, whole = photo(), vision_model(folders[f"hf:{name}"])
    for norm in (True, False):
        made = make(folders, f"hf:{name}", layer=layer, norm=norm)
        resizing = {} if name in ("dinov2", "registers") else {"interpolate_pos_encoding": True}
        with torch.inference_mode():
            wanted = whole(normalised(made, image), output_hidden_states=True, **resizing).hidden_states[layer]
            wanted = getattr(whole, NORMS.get(name, "layernorm"))(wanted) if norm else wanted
        tokens = {"siglip": 0, "registers": 4}.get(name, 1)
        record = made(image)
        assert isinstance(record, PatchRecord) and record.features.shape == (4, 4, 32)
        np.testing.assert_allclose(record.features.reshape(16, 32), wanted[0, tokens:], atol=1e-6)
        if tokens:
            assert record.whole_image is not None
            np.testing.assert_allclose(record.whole_image, wanted[0, 0], atol=1e-6)
        assert (record.whole_image is None) == (made.spec.layout.without == ("whole_image",)) == (tokens == 0)


def test_the_last_layer_of_every_tower_is_the_librarys_own_output(folders: dict[str, Path]) -> None:
    for name in ("vit", "dinov2", "siglip", "swin"):
        made, whole = make(folders, f"hf:{name}"), vision_model(folders[f"hf:{name}"])
        with torch.inference_mode():
            wanted = whole(normalised(made, photo())).last_hidden_state[0]
        found = made(photo()).features
        np.testing.assert_allclose(found.reshape(-1, found.shape[2]), wanted[-found[..., 0].size :], atol=1e-6)
    made, whole = make(folders, "hf:clip"), vision_model(folders["hf:clip"])
    with torch.inference_mode():
        np.testing.assert_allclose(
            made(photo()).whole_image, whole(normalised(made, photo())).pooler_output[0], atol=1e-6
        )


@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4])
def test_a_stage_of_swin_is_its_map_before_the_next_ones_merging(folders: dict[str, Path], layer: int) -> None:
    made, whole = make(folders, "hf:swin", layer=layer, norm=False), vision_model(folders["hf:swin"])
    with torch.inference_mode():
        pixels = normalised(made, photo())
        maps = whole(pixels, output_hidden_states=True, output_hidden_states_before_downsampling=True)
    wanted = maps.reshaped_hidden_states[layer][0].permute(1, 2, 0)
    stage = max(0, layer - 1)
    found = made(photo()).features
    assert found.shape == (16 >> stage, 16 >> stage, 8 << stage)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("name", TIMM_TOWERS)
def test_timms_towers_give_what_timm_gives(folders: dict[str, Path], name: str) -> None:
    image, whole = photo(), timm.create_model(f"local-dir:{folders[f'timm:{name}']}", pretrained=True).eval()
    depth = 4 if name == "swin" else 3
    for layer in (depth, -1, -2, 1):
        made = make(folders, f"timm:{name}", layer=layer, norm=False)
        with torch.inference_mode():
            maps = whole.forward_intermediates(normalised(made, image), intermediates_only=True, output_fmt="NCHW")
        record = made(image)
        np.testing.assert_allclose(record.features, maps[layer - (layer > 0)][0].permute(1, 2, 0), atol=1e-6)
    last = make(folders, f"timm:{name}")
    with torch.inference_mode():
        wanted = whole.forward_features(normalised(last, image))[0]
    record = last(image)
    np.testing.assert_allclose(
        record.features.reshape(-1, last.tower.dim), wanted.reshape(-1, last.tower.dim)[last.tower.prefix :], atol=1e-6
    )
    assert (record.whole_image is None) == (name in ("siglip", "swin"))
    if record.whole_image is not None:
        np.testing.assert_allclose(record.whole_image, wanted[0], atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TOWERS)
def test_pixels_are_prepared_as_transformers_does_to_the_last_byte(
    folders: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    image = photo(*size)
    made = make(folders, f"hf:{name}", weights="random:0")
    processor = transformers.AutoImageProcessor.from_pretrained(folders[f"hf:{name}"], backend="pil")
    bytes_only = processor(Image.fromarray(image), do_rescale=False, do_normalize=False, return_tensors="np")
    prepared = made.prepare("a", image)
    np.testing.assert_array_equal(prepared.pixels, bytes_only["pixel_values"][0])
    whole = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    np.testing.assert_allclose(normalised(made, image), whole, atol=1e-6)
    assert (prepared.key, prepared.image_size) == ("a", size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TIMM_TOWERS)
def test_pixels_are_prepared_as_timm_does_to_the_last_byte(
    folders: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    image, made = photo(*size), make(folders, f"timm:{name}", weights="random:0")
    model = timm.create_model(f"local-dir:{folders[f'timm:{name}']}")
    config = resolve_data_config({"img_size": made.square.size}, model=model)
    found = create_transform(**config)(Image.fromarray(image))
    np.testing.assert_allclose(normalised(made, image)[0], found, atol=1e-6)


@pytest.mark.parametrize("name", ["hf:clip", "hf:vit", "hf:dinov2", "hf:swin", "timm:vit", "timm:swin"])
def test_another_size_interpolates_positions_and_makes_another_grid(folders: dict[str, Path], name: str) -> None:
    made = make(folders, name, size=128)
    record = made(photo())
    assert record.features.shape[0] * made.tower.stride == 128
    assert made.spec.preprocess["size"] == 128 and made.spec.preprocess["resized"] >= 128
    if name == "hf:clip":
        whole = vision_model(folders[name])
        with torch.inference_mode():
            wanted = whole(normalised(made, photo()), interpolate_pos_encoding=True).last_hidden_state
            wanted = whole.post_layernorm(wanted)[0, 1:]
        np.testing.assert_allclose(record.features.reshape(-1, 32), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["hf:clip", "hf:swin", "timm:vit", "timm:swin"])
def test_features_of_an_image_do_not_depend_on_its_batch(folders: dict[str, Path], name: str) -> None:
    made = make(folders, name)
    batch = [made.prepare(str(at), photo(*size, seed=at)) for at, size in enumerate(SIZES)]
    for image, found in zip(batch, made.extract(batch), strict=True):
        [alone] = made.extract([image])
        assert isinstance(found, PatchRecord) and isinstance(alone, PatchRecord)
        assert (found.key, found.image_size) == (alone.key, alone.image_size)
        np.testing.assert_allclose(found.features, alone.features, rtol=1e-5, atol=2e-6)  # float32's rounding


def test_patches_lie_as_the_image_does(folders: dict[str, Path]) -> None:
    before = photo(64, 64)
    after = before.copy()
    after[:12, -12:] = 255 - after[:12, -12:]
    made = make(folders, "hf:vit", layer=0)
    change = np.abs(made(before).features - made(after).features).sum(2)
    assert np.unravel_index(change.argmax(), change.shape) == (0, 3)


def test_random_weights_are_those_of_their_seed_and_nobody_elses(folders: dict[str, Path]) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    for name in ("hf:clip", "timm:swin"):
        one, same, other = (make(folders, name, weights=f"random:{seed}") for seed in (1, 1, 2))
        assert_same(one(photo()), same(photo()))
        assert one.spec.id == same.spec.id != other.spec.id
        assert one.spec.model["weights"]["origin"] == "random:1"
        assert not np.array_equal(one(photo()).features, other(photo()).features)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_setting_that_changes_numbers_changes_the_spec(folders: dict[str, Path]) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"layer": -2}, {"norm": False}, {"size": 64}, {"weights": "random:0"}, {"dtype": "bfloat16"},
        {"store_dtype": "float16"},
    ]  # fmt: skip
    ids = [make(folders, "hf:clip", **change).spec.id for change in changes]
    assert len(set(ids)) == len(changes)
    assert make(folders, "hf:clip", layer=3).spec.id == ids[0]  # the last by another name


def test_the_folder_is_not_in_the_spec(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "copy").symlink_to(folders["hf:vit"])
    spec = make({"hf:vit": tmp_path / "copy"}, "hf:vit").spec
    assert spec.id == make(folders, "hf:vit").spec.id and str(tmp_path) not in json.dumps(spec.to_dict())


def test_other_dtypes_stay_close(folders: dict[str, Path]) -> None:
    exact, found = (make(folders, "hf:clip", dtype=dtype)(photo()).features for dtype in ("float32", "bfloat16"))
    cosine = (exact * found).sum() / np.linalg.norm(exact) / np.linalg.norm(found)
    assert cosine > 0.99 and not np.array_equal(exact, found)
    halved = make(folders, "hf:clip", store_dtype="float16")(photo())
    assert halved.features.dtype == halved.whole_image.dtype == np.float16


def test_features_that_are_no_numbers_are_an_error_of_their_image_only(folders: dict[str, Path]) -> None:
    made = make(folders, "hf:clip")
    good, bad = made.prepare("good", photo()), made.prepare("bad", photo())
    object.__setattr__(bad, "pixels", torch.full(bad.pixels.shape, torch.inf))
    first, error, last = made.extract([good, bad, good])
    assert isinstance(error, ImageError) and error.reason == "not_representable"
    assert isinstance(first, PatchRecord) and isinstance(last, PatchRecord)


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "no such layer": ("hf:clip", {"layer": 4}, "--layer 4: this tower has 3 layers; choose 0 .* to 3, or -1 .* to -4"),
    "no such negative layer": ("timm:swin", {"layer": -6}, "--layer -6: this tower has 4 layers"),
    "size of half a patch": ("hf:vit", {"size": 36}, "--size 36 must be a multiple of 8"),
    "size of half a map": ("timm:swin", {"size": 40}, "--size 40 must be a multiple of 32"),
    "norm of another width": ("hf:swin", {"layer": 2}, "--layer 2 is 16 wide, .* normalisation 64; add --no-norm"),
}


@pytest.mark.parametrize(("name", "settings", "message"), WRONG.values(), ids=WRONG.keys())
def test_settings_that_do_not_fit_the_tower_are_refused(
    folders: dict[str, Path], name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(folders, name, weights="random:0", **settings)
    assert "\n" not in str(caught.value)


NAMES = {
    "no library": ({"model": "vit"}, "--model 'vit' is not known; choose hf:NAME, hf:FOLDER, timm:NAME"),
    "no name": ({"model": "hf:"}, "--model 'hf:' is not known"),
    "size": ({"size": 0}, "--size 0 must be at least 1"),
}


@pytest.mark.parametrize(("settings", "message"), NAMES.values(), ids=NAMES.keys())
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PatchConfig(**settings)


def test_models_that_nobody_knows_are_refused_without_a_download(folders: dict[str, Path]) -> None:
    for model, message in {
        "timm:vit_tiny_patch16_22": "neither a model of timm .* nor a folder; did you mean vit_tiny_patch16_224",
        "timm:resnet18": "timm's ResNet is no tower of patches; choose a VisionTransformer .* or a SwinTransformer",
        "hf:nobody/nothing": "with random weights must be a folder with config.json, or one of openai/clip-vit-base",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load_extractor("patches", model=model, weights="random:0", device="cpu")
    with pytest.raises(WeightsError, match="random weights need a seed"):
        make(folders, "hf:clip", weights="random:x")


def test_folders_that_are_no_towers_are_one_line(tmp_path: Path) -> None:
    transformers.BertConfig(hidden_size=8, num_attention_heads=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(ConfigError, match="is a bert; the towers here are clip_vision_model, siglip_vision_model"):
        load_extractor("patches", model=f"hf:{tmp_path / 'bert'}", device="cpu")
    code = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "config.json").write_text(json.dumps(code))
    (tmp_path / "code" / "code.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(WeightsError, match="cannot be loaded") as caught:
        load_extractor("patches", model=f"hf:{tmp_path / 'code'}", device="cpu")
    assert "\n" not in str(caught.value)
    (tmp_path / "empty").mkdir()
    for library in ("hf", "timm"):
        with pytest.raises(WeightsError, match="give .*model.safetensors") as caught:
            load_extractor("patches", model=f"{library}:{tmp_path / 'empty'}", device="cpu")
        assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("hf:vit", "timm:vit"):
        copy = tmp_path / name.replace(":", "-")
        copy.mkdir()
        for file in folders[name].glob("*.json"):
            (copy / file.name).write_bytes(file.read_bytes())
        torch.save({}, copy / "pytorch_model.bin")
        with pytest.raises(WeightsError, match="model.safetensors"):
            make({name: copy}, name)


def test_weights_of_another_tower_name_what_is_missing(folders: dict[str, Path]) -> None:
    with pytest.raises(WeightsError, match="tensors of the tower are missing"):
        make({"hf:clip": _with_config(folders, "clip", num_hidden_layers=5)}, "hf:clip")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        make(folders, "timm:vit", weights=str(folders["timm:swin"]))
    with pytest.raises(WeightsError, match="is no folder; for hf: models give that of a snapshot"):
        make(folders, "hf:clip", weights="/nowhere/at/all")


def _with_config(folders: dict[str, Path], name: str, **changes: int) -> Path:
    """A copy of a tower whose config tells of more layers than it has."""
    copy = folders[f"hf:{name}"].parent / f"{name} changed"
    copy.mkdir(exist_ok=True)
    for file in folders[f"hf:{name}"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config["vision_config"] |= changes
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_weights_are_taken_from_the_folder_named(folders: dict[str, Path]) -> None:
    by_name = load_extractor(
        "patches", model="hf:openai/clip-vit-base-patch32", weights=str(folders["hf:clip"]), device="cpu"
    )
    assert by_name.spec.model == make(folders, "hf:clip", store_dtype="float16").spec.model
    settings = {"weights": str(folders["timm:vit"] / "model.safetensors")}
    assert make(folders, "timm:vit", **settings).spec.id == make(folders, "timm:vit").spec.id


def test_a_timm_file_may_lack_its_classifier_and_nothing_else(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = load_file(folders["timm:vit"] / "model.safetensors")
    tower = {name: value for name, value in whole.items() if not name.startswith("head.")}
    assert len(tower) < len(whole)
    save_file(tower, tmp_path / "tower.safetensors")
    found = make(folders, "timm:vit", weights=str(tmp_path / "tower.safetensors"))
    assert found.spec.id == make(folders, "timm:vit").spec.id
    del tower["blocks.0.norm1.weight"]
    save_file(tower, tmp_path / "less.safetensors")
    with pytest.raises(WeightsError, match="cannot be loaded"):
        make(folders, "timm:vit", weights=str(tmp_path / "less.safetensors"))


def test_a_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub\nand so on")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(WeightsError, match="cannot be loaded from the Hugging Face hub .*connect to the hub") as caught:
        load_extractor("patches", model="hf:google/vit-base-patch16-224", device="cpu")
    assert str(caught.value).startswith("--model hf:google/vit-base-patch16-224 cannot")
    assert "\n" not in str(caught.value) and "--weights random:0" in str(caught.value)
