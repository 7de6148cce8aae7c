"""The encoders of METER by name: their shapes, their layers, padding, and what makes CLIP, BEiT and Swin special."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from extractors.configs import ConfigError, PatchConfig
from extractors.weights import WeightsError
from tests.unit.extractors.towers import save_tower
from tests.unit.trainers.meters import ARCHITECTURES, SMALL, pixels, stirred, text, tower
from trainers.batch import Pixels, Text
from trainers.models.image_towers import IMAGE_TOWERS, ImageTower
from trainers.models.text_towers import TEXT_TOWERS, TextTower, TextTowerConfig

TINY: dict[str, dict[str, Any]] = {
    "bert": {}, "roberta": {"max_position_embeddings": 20}, "electra": {"embedding_size": 6},
    "albert": {"embedding_size": 6}, "deberta": {}, "clip": {"max_position_embeddings": 9, "eos_token_id": 2},
    "embeddings": {},
}  # fmt: skip


def text_tower(name: str) -> TextTower:
    return TextTower(TextTowerConfig(name, "random:0", {**SMALL, **TINY[name]})).eval()


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_padding_changes_no_word(name: str) -> None:
    model, texts = text_tower(name).double(), text()  # in float32 products of other sizes round otherwise
    found = model(texts)
    assert found.shape == (3, 5, 8) and model.dim == 8
    for row, length in enumerate((5, 3, 4)):
        alone = model(Text(texts.ids[row : row + 1, :length]))
        torch.testing.assert_close(found[row, :length], alone[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TEXT_TOWERS)
def test_the_states_are_the_embeddings_and_every_layer(name: str) -> None:
    model, texts = text_tower(name), text()
    states = model.states(texts)
    assert len(states) == (1 if name == "embeddings" else 3)
    torch.testing.assert_close(states[-1], model(texts))


def test_the_published_encoders_are_named_with_their_own_sizes() -> None:
    sizes = {}
    for name in TEXT_TOWERS:
        with torch.device("meta"):
            model = TextTower(TextTowerConfig(name, "random:0"))
        sizes[name] = sum(each.numel() for each in model.parameters())
    assert sizes == {
        "bert": 108_891_648, "roberta": 124_055_040, "electra": 108_891_648, "albert": 54_528_512,
        "deberta": 138_601_728, "clip": 63_165_952, "embeddings": 23_837_184,
    }  # fmt: skip


def test_weights_come_from_a_folder(tmp_path: Path) -> None:
    shape = transformers.RobertaConfig(**SMALL, max_position_embeddings=20, type_vocab_size=1)
    official = transformers.RobertaForMaskedLM(shape).eval()
    official.save_pretrained(tmp_path)
    model = TextTower(TextTowerConfig("roberta", str(tmp_path))).eval()
    texts = text()
    wanted = official.roberta(input_ids=texts.ids, attention_mask=texts.mask.long()).last_hidden_state  # type: ignore[union-attr]
    torch.testing.assert_close(model(texts)[texts.mask], wanted[texts.mask], rtol=0, atol=1e-6)
    embeddings = tmp_path / "bert"
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(embeddings)
    assert len(TextTower(TextTowerConfig("embeddings", str(embeddings))).states(texts)) == 1


def test_text_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"is a bert, not a roberta"):
        TextTower(TextTowerConfig("roberta", str(tmp_path)))
    with pytest.raises(WeightsError, match="cannot be loaded from the folder"):
        (tmp_path / "model.safetensors").write_bytes(b"nonsense")
        TextTower(TextTowerConfig("bert", str(tmp_path)))
    with pytest.raises(ValueError, match="no text encoder is called 'gpt'"):
        TextTowerConfig("gpt")
    with pytest.raises(ValueError, match="contradict"):
        TextTowerConfig("bert", str(tmp_path), SMALL)


def image_tower(name: str, size: int | None = None) -> ImageTower:
    torch.manual_seed(0)
    model = ImageTower(tower(name, size)).eval()
    return stirred(model)


SHAPES = {"swin": (3, 4, 32), "volo": (3, 17, 384)}
SIZES = {"swin": 64, "volo": 64}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tokens_are_the_class_token_and_patches_through_the_last_norm(name: str) -> None:
    model, images = image_tower(name), pixels(size=SIZES.get(name, 32))
    tokens = model(images)
    assert tokens.shape == SHAPES.get(name, (3, 17, 16)) and model.has_class == (name != "swin")
    library, prefix = model.tower.model, model.tower.prefix
    assert isinstance(library.norm, nn.LayerNorm)
    whole = library.forward_features(model.ready(images)).flatten(1, -2)
    wanted = torch.cat([whole[:, : int(model.has_class)], whole[:, prefix:]], dim=1)
    torch.testing.assert_close(tokens, wanted)
    assert prefix == {"swin": 0, "distilled-deit": 2}.get(name, 1)


@pytest.mark.parametrize("name", ["clip", "distilled-deit", "beit", "swin"])
def test_an_image_encoder_tells_its_layers(name: str) -> None:
    model, images = image_tower(name), pixels(size=SIZES.get(name, 32))
    *others, last = model.states(images)
    assert torch.equal(last, model(images)) and [each.shape[2] for each in others] == model.widths
    assert len(others) == {"clip": 2, "swin": 4}.get(name, 3)
    assert all(each.shape[:2] == last.shape[:2] for each in others)
    if name == "clip":  # without its last block, and without the norm behind them
        library = model.tower.model
        assert len(library.blocks) == 2
        torch.testing.assert_close(library.blocks[0](others[0]), others[1])
        torch.testing.assert_close(library.norm(library.blocks[1](others[1])), last)


def test_some_layers_cannot_be_told() -> None:
    for name in ("cait", "volo"):
        with pytest.raises(ConfigError, match="cannot be fused"):
            image_tower(name).states(pixels())


def test_swins_windows_grow_with_the_image() -> None:
    model = image_tower("swin", 96)
    assert {block.window_size for stage in model.tower.model.layers for block in stage.blocks} == {(3, 3)}
    assert model(pixels(size=96)).shape == (3, 9, 32)


def test_encoders_of_transformers_are_taken_as_well(tmp_path: Path) -> None:
    folder = save_tower("clip", tmp_path)
    model = ImageTower(PatchConfig(model=f"hf:{folder}", layer=-2)).eval()
    images = pixels()
    vision = transformers.AutoModel.from_pretrained(folder).vision_model.eval()
    states = vision(model.ready(images), output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(model(images), vision.post_layernorm(states), rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match="cannot be fused"):
        model.states(images)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="images are 40x40 pixels, the tower sees 32x32"):
        image_tower("vit")(pixels(size=40))
    with pytest.raises(ValueError, match="crop them"):
        image_tower("vit")(Pixels(torch.zeros(1, 3, 32, 32), torch.tensor([[32, 20]])))


def test_the_published_encoders_exist() -> None:
    sizes = {}
    for name, config in IMAGE_TOWERS.items():
        with torch.device("meta"):
            model = ImageTower(replace(config, weights="random:0"))
        sizes[name] = (model.size, model.dim, sum(each.numel() for each in model.parameters()))
        assert model.square.resized == (248 if name in ("clip-b32-224", "beit-b16-224") else model.size)
    assert sizes == {
        "clip-b32-224": (224, 768, 80_368_128),
        "clip-b16-224": (224, 768, 78_711_552),
        "vit-b16-384": (384, 768, 86_090_496),
        "deit-b16-384": (384, 768, 86_090_496),
        "distilled-deit-b16-384": (384, 768, 86_092_032),
        "cait-m36-384": (384, 768, 270_452_352),
        "volo-d4-448": (448, 768, 191_875_104),
        "beit-b16-224": (224, 768, 85_761_984),
        "swin-b-384": (384, 1024, 86_878_584),
        "swin-l-384": (384, 1536, 195_198_516),
    }
