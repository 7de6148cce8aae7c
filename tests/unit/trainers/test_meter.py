"""METER as a whole: padding, sharing, cache and pixels, masked patches, the decoder, compilation and sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from extractors import load_extractor
from tests.unit.trainers.meters import (
    CACHED,
    assert_cache_is_true,
    cached_batch,
    cells,
    end_to_end,
    meter,
    pixels,
    text,
    tower,
)
from trainers.batch import Batch, Cells, Pixels, Regions, Text, from_images, from_records
from trainers.images import square_pixels
from trainers.models.heads import class_loss
from trainers.models.image_towers import IMAGE_TOWERS
from trainers.models.layers import LayerConfig
from trainers.models.meter import SECOND_IMAGE, Meter, MeterConfig
from trainers.models.text_towers import TextTowerConfig

DECODER = replace(CACHED, layers=1, decoder_layers=2)
MERGED = replace(CACHED, fusion="merged")


def everything(model: Meter, batch: Batch) -> dict[str, Tensor]:
    """Every head's logits."""
    states = model(batch)
    pooled = model.pooled(states)
    logits = {name: model.heads[name](pooled) for name in ("itm", "vqa", "snli", "rank")}
    pair = torch.cat([pooled, model.pooled(model(batch, SECOND_IMAGE))], dim=1)
    patches = {"codes": model.heads["codes"](states.patches)}
    return {**logits, "nlvr2": model.heads["nlvr2"](pair), "mlm": model.heads["mlm"](states.text), **patches}


@pytest.mark.parametrize("config", [CACHED, MERGED, DECODER], ids=["co-attention", "merged", "decoder"])
@pytest.mark.parametrize("whole", [True, False], ids=["class token", "mean"])
def test_padding_changes_no_logit(config: MeterConfig, whole: bool) -> None:
    model, mask = meter(config), torch.tensor([[True] * 4, [True] * 2 + [False] * 2, [True] * 3 + [False]])
    images = cells(mask=mask, whole=whole)
    batch = Batch(text(), images)
    together = everything(model, batch)
    for row, (words, count) in enumerate(((5, 4), (3, 2), (4, 3))):
        one = slice(row, row + 1)
        own = images.whole_image[one] if images.whole_image is not None else None
        alone = Batch(Text(batch.text.ids[one, :words]), Cells(images.features[one, :count], whole_image=own))
        for name, wanted in everything(model, alone).items():
            found = together[name][one]
            found = found[:, : wanted.shape[1]] if wanted.ndim == 3 else found
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_texts_may_share_an_image() -> None:
    model, batch = meter(), cached_batch()
    shared = replace(batch, image_of=(1, 1, 0))
    assert isinstance(batch.visual, Cells) and batch.visual.whole_image is not None
    rows = [1, 1, 0]
    repeated = replace(batch, visual=Cells(batch.visual.features[rows], whole_image=batch.visual.whole_image[rows]))
    wanted = everything(model, repeated)
    for given in (shared, replace(shared, layout=model.layout(shared))):
        for name, found in everything(model, given).items():
            torch.testing.assert_close(found, wanted[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("name", "size"), [("clip", None), ("clip", 48), ("swin", None), ("swin", 96)])
def test_the_cache_gives_what_pixels_give(name: str, size: int | None, dtype: Any) -> None:
    """From one image: `extract patches`, against the same encoder inside the model, at its own size and another."""
    extractor = load_extractor("patches", **{**vars(tower(name, size)), "device": "cpu", "store_dtype": dtype})
    model = meter(replace(end_to_end(name), image=tower(name, size)))
    assert model.image is not None
    model.image.tower.load_state_dict(extractor.tower.state_dict())  # type: ignore[attr-defined]
    photos = [np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8) for seed in range(3)]
    fresh = Batch(text(), square_pixels(photos, model.image.square))
    cached, others = (Batch(text(), from_images(extractor, each)) for each in (photos, photos[::-1]))
    assert isinstance(cached.visual, Cells) and str(cached.visual.features.dtype) == f"torch.{dtype}"
    assert_cache_is_true(*(everything(model, each) for each in (fresh, cached, others)), exact=dtype == "float32")


def test_hidden_patches_are_not_seen() -> None:
    hidden = torch.zeros(3, 4, dtype=torch.bool)
    hidden[0, 2] = True
    model, batch = meter(), cached_batch()
    assert isinstance(batch.visual, Cells)
    noisy = batch.visual.features.clone()
    noisy[0, 2] = 9.0
    other = replace(batch, visual=replace(batch.visual, features=noisy))
    assert torch.equal(model(batch, hidden=hidden).text, model(other, hidden=hidden).text)
    assert not torch.equal(model(batch, hidden=hidden).text, model(batch).text)
    whole = meter(end_to_end())
    images = pixels()
    changed = images.images.clone()
    changed[0, :, 8:16, 24:] = 7  # patch 7 of 16, row 1 and column 3
    hidden = torch.zeros(3, 16, dtype=torch.bool)
    hidden[0, 7] = True
    one, two = (whole(Batch(text(), each), hidden=hidden).image for each in (images, Pixels(changed)))
    assert torch.equal(one, two)
    assert not torch.equal(whole(Batch(text(), images)).image, whole(Batch(text(), Pixels(changed))).image)


def test_masked_patches_are_told_from_all_of_the_batch() -> None:
    model, batch = meter(), cached_batch()
    assert isinstance(batch.visual, Cells)
    hidden = torch.tensor([[True, False, False, False], [False, False, True, False], [False] * 4])
    originals = model.originals(batch.visual)
    assert originals.shape == (12, 12) and not originals.requires_grad
    torch.testing.assert_close(originals, model.image_projection(batch.visual.features).flatten(0, 1))
    states = model(batch, hidden=hidden).patches[hidden]
    logits = model.heads["patches"](states, originals)
    torch.testing.assert_close(logits, states @ originals.T)
    labels = hidden.flatten().nonzero().flatten()
    wanted = -logits.softmax(1)[torch.arange(2), labels].log().mean()
    torch.testing.assert_close(class_loss(logits, labels), wanted)
    padded = cells(mask=torch.tensor([[True] * 4, [True] * 3 + [False], [True] * 4]))
    assert len(model.originals(padded)) == 11


def test_a_decoder_answers_and_speaks() -> None:
    model, batch = meter(DECODER), cached_batch()
    states = model(batch)
    assert model.pooled(states).shape == (3, 12) and model.text_pooler is None
    said = model.heads["mlm"](model.words(torch.tensor([[0, 5], [0, 6], [0, 7]]), states))
    assert said.shape == (3, 2, 40)


def test_gated_layers_begin_as_none_and_then_count() -> None:
    plain, gated = end_to_end(), end_to_end(gated=True)
    torch.manual_seed(0)
    models, batch = [Meter(each).eval() for each in (plain, gated)], Batch(text(), pixels())
    models[0].load_state_dict(models[1].state_dict(), strict=False)
    torch.testing.assert_close(models[0](batch).text, models[1](batch).text)
    for gates in (models[1].text_gates, models[1].image_gates):
        assert gates is not None
        torch.nn.init.normal_(gates.gate.weight)
        assert not torch.allclose(models[0](batch).text, models[1](batch).text)
    with pytest.raises(ValueError, match="holds one layer"):
        replace(CACHED, gated=True)


def test_everything_is_trained() -> None:
    model, batch = meter(end_to_end(gated=True)), Batch(text(), pixels())
    model.train()
    everything(model, batch)["nlvr2"].sum().backward()
    still = {name.split(".")[0] for name, each in model.named_parameters() if each.grad is None}
    assert still == {"heads"}, still


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        (None, "needs an image"),
        (Pixels(torch.zeros(3, 3, 32, 32)), "no image encoder"),
        (Regions(torch.zeros(3, 1, 4), torch.ones(3, 2), features=torch.zeros(3, 1, 6)), "not Regions"),
    ],
)
def test_what_it_cannot_read_is_refused(visual: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meter()(Batch(text(), visual))


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="no fusion is called 'late'"):
        replace(CACHED, fusion="late")
    with pytest.raises(ValueError, match="no head 'gqa'"):
        replace(CACHED, heads=("gqa",))


def count(**changes: Any) -> int:
    with torch.device("meta"):
        image = replace(IMAGE_TOWERS["clip-b16-224"], weights="random:0")
        model = Meter(MeterConfig(TextTowerConfig("roberta", "random:0"), image, heads=("itm",), **changes))
    return sum(each.numel() for name, each in model.named_parameters() if not name.startswith("heads."))


def test_parameter_counts() -> None:
    """The paper gives no total; it says that 12 merged layers and 6 + 6 of co-attention are about as large."""
    dim, hidden = 768, 3072
    attention, mlp, norm = 4 * (dim * dim + dim), 2 * dim * hidden + hidden + dim, 2 * dim
    encoders, joints = 124_055_040 + 78_711_552, 4 * (dim * dim + dim) + 2 * dim
    assert count() == encoders + joints + 12 * (2 * attention + mlp + 3 * norm)
    assert count(fusion="merged", layers=12) == encoders + joints + 12 * (attention + mlp + 2 * norm)
    fusions = [count() - encoders, count(fusion="merged", layers=12) - encoders]
    assert [round(each / 1e6) for each in fusions] == [116, 87]


def test_the_default_layer_is_the_official_one() -> None:
    assert MeterConfig().layer == LayerConfig(768, 12, 3072, 1e-12, 0.1, 0.1, "gelu")


def test_records_of_patches_are_read_as_they_are() -> None:
    extractor = load_extractor("patches", **{**vars(tower("clip")), "device": "cpu"})
    record = extractor(np.zeros((40, 40, 3), np.uint8))
    found = from_records([record])  # type: ignore[list-item]
    assert isinstance(found, Cells) and found.whole_image is not None and found.features.shape == (1, 16, 16)
