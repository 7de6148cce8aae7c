"""VL-BERT on tiny sizes: what its rules promise, on the cached and the end-to-end path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from extractors.resnet import ResNetConfig
from extractors.weights import randomise
from storage import FeatureStore, StoreWriter, open_store
from storage.records import PER_BOX, RegionRecord
from storage.spec import FeatureLayout, Spec
from trainers.batch import Batch, Cells, Pixels, Regions, Text, from_packed
from trainers.images import fast_rcnn_regions
from trainers.models.fast_rcnn import hide
from trainers.models.layers import LayerConfig
from trainers.models.vl_bert import HEADS, LARGE, Layout, VLBert, VLBertConfig, answer_states, geometry

LAYER = LayerConfig(12, 3, 24)
TINY = VLBertConfig(
    LAYER, 2, vocabulary=40, positions=20, feature_dim=6, heads=tuple(HEADS), answers=5, region_classes=7
)
BODY = ResNetConfig(50).narrowed(64)
END_TO_END = replace(TINY, body=BODY, feature_dim=BODY.out_channels(5))
SIZES = torch.tensor([[40.0, 60], [50, 30], [64, 64]])


def model_of(config: VLBertConfig = TINY) -> VLBert:
    """A tiny model in which every part counts: the visual norms, silent at the start, too."""
    torch.manual_seed(0)
    model = VLBert(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    if model.network is not None:
        randomise(model.network, 0)
    return model


def boxes_of(count: int, rows: int) -> Tensor:
    low = torch.rand(count, rows, 2) * 12
    return torch.cat([low, low + torch.rand(count, rows, 2) * 16], dim=-1)


def batch_of(texts: tuple[int, ...] = (5, 3, 4), regions: tuple[int, ...] = (4, 2, 3)) -> Batch:
    torch.manual_seed(1)
    ids = torch.randint(4, 40, (len(texts), max(texts)))
    mask = torch.arange(max(texts)) < torch.tensor(texts)[:, None]
    rows = torch.arange(max(regions)) < torch.tensor(regions)[:, None]
    features = torch.randn(len(regions), max(regions), 6)
    boxes = boxes_of(len(regions), max(regions))
    return Batch(
        Text(ids, mask, (torch.arange(max(texts)) > 2).long().expand_as(ids)), Regions(boxes, SIZES, rows, features)
    )


def alone(batch: Batch, row: int) -> Batch:
    """One sample without any padding."""
    text, regions = batch.text, batch.visual
    assert isinstance(regions, Regions) and text.lengths and regions.lengths and text.segments is not None
    t, n = text.lengths[row], regions.lengths[row]
    one = slice(row, row + 1)
    features = None if regions.features is None else regions.features[one, :n]
    pixels = regions.pixels
    if pixels is not None and pixels.shapes is not None:
        height, width = pixels.shapes[row]
        pixels = Pixels(pixels.images[one, :, :height, :width])
    seen = Regions(regions.boxes[one, :n], regions.image_sizes[one], None, features, pixels=pixels)
    return Batch(Text(text.ids[one, :t], None, text.segments[one, :t]), seen)


def everything(model: VLBert, batch: Batch) -> dict[str, Tensor]:
    """Every head's logits."""
    states = model(batch)
    pooled = model.pooled(states)
    given = {
        "mlm": (states.text, model.word.weight), "mvrc": (states.visual,), "relationship": (pooled,), "vcr": (pooled,),
        "vqa": (states.first,), "vcr_objects": (states.visual,), "refcoco": (states.visual,),
    }  # fmt: skip
    return {name: model.heads[name](*inputs) for name, inputs in given.items()}


def assert_padding_changes_nothing(model: VLBert, batch: Batch, tolerance: float) -> None:
    together = everything(model, batch)
    for row in range(len(batch)):
        for name, wanted in everything(model, alone(batch, row)).items():
            found = together[name][row : row + 1]
            if name in ("mlm", "mvrc", "vcr_objects", "refcoco"):
                found = found[:, : wanted.shape[1]]
            torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def test_padding_changes_no_logit() -> None:
    assert_padding_changes_nothing(model_of(), batch_of(), 2e-5)


def test_what_stands_in_the_padding_is_never_read() -> None:
    model, batch = model_of(), batch_of()
    wanted = everything(model, batch)
    assert isinstance(batch.visual, Regions) and batch.visual.features is not None and batch.visual.mask is not None
    noise = torch.where(batch.visual.mask[..., None], batch.visual.features, torch.nan)
    ids = batch.text.ids.where(batch.text.mask, 7)  # type: ignore[arg-type]
    changed = replace(
        batch, visual=replace(batch.visual, features=noise, whole_image=None), text=replace(batch.text, ids=ids)
    )
    whole = (batch.visual.features * batch.visual.mask[..., None]).sum(1) / batch.visual.mask.sum(1, keepdim=True)
    changed = replace(changed, visual=replace(changed.visual, whole_image=whole))  # type: ignore[type-var]
    for name, found in everything(model, changed).items():
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=1e-5)


def test_regions_of_an_image_have_no_order() -> None:
    model, batch = model_of(), batch_of(regions=(3, 3, 3))
    assert isinstance(batch.visual, Regions) and batch.visual.features is not None
    turned = replace(batch.visual, boxes=batch.visual.boxes.flip(1), features=batch.visual.features.flip(1))
    found, wanted = everything(model, replace(batch, visual=turned)), everything(model, batch)
    torch.testing.assert_close(found["mlm"], wanted["mlm"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found["refcoco"][:, 1:], wanted["refcoco"][:, 1:].flip(1), rtol=0, atol=1e-5)


def test_texts_may_share_an_image() -> None:
    model, batch = model_of(), batch_of()
    shared = replace(batch, image_of=(1, 1, 0))
    regions, rows = batch.visual, [1, 1, 0]
    assert isinstance(regions, Regions) and regions.mask is not None and regions.features is not None
    repeated = Regions(regions.boxes[rows], regions.image_sizes[rows], regions.mask[rows], regions.features[rows])
    wanted = everything(model, replace(batch, visual=repeated))
    for name, found in everything(model, shared).items():
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=1e-5)


def test_a_tag_gives_a_word_its_region() -> None:
    model, batch = model_of(), batch_of()
    tagged = replace(batch, text=replace(batch.text, tags=torch.tensor([[0, 2, 0, 0, 0]] + 2 * [[0] * 5])))
    rows, wanted = model.layout(batch), model._embed(batch.text, batch.visual, model.layout(batch))  # type: ignore[arg-type]
    found = model._embed(tagged.text, tagged.visual, rows)  # type: ignore[arg-type]
    changed = (found != wanted).any(1)
    assert changed.nonzero().flatten().tolist() == [1]
    objects = model.see(batch.visual, rows)  # type: ignore[arg-type]
    torch.testing.assert_close(
        found[1] - wanted[1], model.text_visual_norm(objects[2]) - model.text_visual_norm(objects[0])
    )


def test_without_a_whole_image_the_mean_of_what_may_be_seen_stands_for_it() -> None:
    model, batch = model_of(), batch_of()
    regions = batch.visual
    assert isinstance(regions, Regions) and regions.features is not None
    whole = torch.stack([regions.features[row, :count].mean(0) for row, count in enumerate((4, 2, 3))])
    given = replace(batch, visual=replace(regions, whole_image=whole))
    torch.testing.assert_close(model(given).tokens, model(batch).tokens, rtol=0, atol=1e-5)
    hidden = torch.zeros(3, 4, dtype=torch.bool)
    hidden[0, 1] = True
    noisy = regions.features.clone()
    noisy[0, 1] = 100.0
    one, other = (
        replace(batch, visual=replace(regions, hidden=hidden, features=each)) for each in (regions.features, noisy)
    )
    assert torch.equal(model(one).tokens, model(other).tokens)


def test_a_new_model_is_blind() -> None:
    torch.manual_seed(0)
    model, batch = VLBert(TINY).eval(), batch_of()
    assert isinstance(batch.visual, Regions) and batch.visual.features is not None
    other = replace(batch, visual=replace(batch.visual, features=batch.visual.features + 1))
    assert torch.equal(model(other).tokens, model(batch).tokens)


def test_a_layout_made_ahead_changes_nothing_and_lengths_may_be_the_device_s() -> None:
    model, batch = model_of(), batch_of()
    wanted = model(batch).tokens
    assert torch.equal(model(replace(batch, layout=model.layout(batch))).tokens, wanted)
    unknown = replace(batch.text)
    object.__setattr__(unknown, "lengths", None)
    assert torch.equal(model(replace(batch, text=unknown)).tokens, wanted)


def test_what_it_cannot_read_is_refused() -> None:
    model, batch = model_of(), batch_of()
    with pytest.raises(ValueError, match="text_only"):
        model(Batch(batch.text))
    with pytest.raises(ValueError, match="not Cells"):
        model(Batch(batch.text, Cells(torch.zeros(3, 4, 6))))
    with pytest.raises(ValueError, match="no head 'gqa'"):
        VLBertConfig(heads=("gqa",))
    pixels = Regions(boxes_of(3, 4), SIZES, pixels=Pixels(torch.zeros(3, 3, 64, 64)))
    with pytest.raises(ValueError, match="no network for pixels"):
        model(replace(batch, visual=pixels))


def test_text_alone() -> None:
    model = model_of(replace(TINY, text_only=True))
    together, one = (
        model(Batch(batch_of().text)),
        model(Batch(Text(batch_of().text.ids[1:2, :3], None, torch.zeros(1, 3).long()))),
    )
    torch.testing.assert_close(together.text[1:2, :3], one.text, rtol=0, atol=1e-5)
    assert together.visual.shape == (3, 0, 12) and together.spans.lengths == (6, 4, 5)


def test_questions_are_answered_at_the_mask() -> None:
    model, batch = model_of(), batch_of()
    ids = batch.text.ids.clone()
    ids[:, 2] = 3
    states = model(replace(batch, text=replace(batch.text, ids=ids)))
    assert torch.equal(answer_states(states, ids, 3), states.text[:, 2])


def test_geometry_is_of_centre_and_size() -> None:
    found = geometry(torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[100.0, 200]])).view(4, 2, 256)
    assert torch.allclose(found[:, 0, 0], torch.tensor([10.0, 40, 10, 40]).sin(), atol=1e-5)
    assert torch.allclose(found[:, 1, 0], torch.tensor([10.0, 40, 10, 40]).cos(), atol=1e-5)


# End to end.


def pixels_batch() -> Batch:
    batch = batch_of()
    assert isinstance(batch.visual, Regions)
    images = torch.zeros(3, 3, 64, 64)
    for row, (height, width) in enumerate(SIZES.long().tolist()):
        images[row, :, :height, :width] = torch.randn(3, height, width) * 50
    seen = Regions(batch.visual.boxes, SIZES, batch.visual.mask, pixels=Pixels(images, SIZES.long()))
    return replace(batch, visual=seen)


def test_pixels_give_what_their_cached_features_give() -> None:
    model, batch = model_of(END_TO_END), pixels_batch()
    seen = batch.visual
    assert isinstance(seen, Regions)
    captured: list[Tensor] = []
    assert model.network is not None
    handle = model.network.register_forward_hook(lambda *each: captured.append(each[2]))
    wanted = model(batch).tokens
    handle.remove()
    layout, features = model.layout(batch), torch.zeros(3 * 5, END_TO_END.feature_dim)
    features[layout.region_rows] = captured[0]
    features = features.view(3, 5, -1)
    cached = Regions(seen.boxes, SIZES, seen.mask, features[:, 1:], features[:, 0])
    torch.testing.assert_close(model(replace(batch, visual=cached)).tokens, wanted, rtol=0, atol=1e-5)
    half = Regions(seen.boxes, SIZES, seen.mask, features[:, 1:].half(), features[:, 0].half())
    torch.testing.assert_close(model(replace(batch, visual=half)).tokens, wanted, rtol=0, atol=5e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-5), ("float16", 5e-3)])
def test_a_store_of_its_own_network_s_features_gives_what_pixels_give(
    tmp_path: Path, dtype: str, tolerance: float
) -> None:
    """No extractor makes these features: VL-BERT's network pools otherwise than the detectors'."""
    model, rng = model_of(END_TO_END), np.random.default_rng(0)
    photos = [rng.integers(0, 256, (48, width, 3), np.uint8) for width in (60, 75)]
    seen = fast_rcnn_regions(photos, [boxes_of(1, count)[0].numpy() for count in (4, 2)], 48, 90)
    words = Text(torch.tensor([[5, 6, 7], [8, 9, 4]]))
    wanted = everything(model, Batch(words, seen))
    layout = model.layout(Batch(words, seen))
    store = write_features(tmp_path, seen, features_of(model, seen, layout), dtype)
    read = from_packed(store.batch(["0", "1"], ["whole_image"]))
    assert isinstance(read, Regions) and str(read.features.dtype) == f"torch.{dtype}"  # type: ignore[union-attr]
    for name, found in everything(model, Batch(words, read)).items():
        torch.testing.assert_close(found, wanted[name], rtol=0, atol=tolerance)


def features_of(model: VLBert, seen: Regions, layout: Layout) -> list[Tensor]:
    """What the model's own network makes of each image's whole and regions."""
    captured: list[Tensor] = []
    assert model.network is not None and seen.lengths is not None
    handle = model.network.register_forward_hook(lambda *each: captured.append(each[2]))
    model.see(seen, layout)
    handle.remove()
    return list(captured[0].detach().split([1 + count for count in seen.lengths]))


def write_features(path: Path, seen: Regions, features: list[Tensor], dtype: str) -> FeatureStore:
    layout = FeatureLayout(features[0].shape[1], dtype, without=tuple(PER_BOX))
    writer = StoreWriter(path, Spec("regions", layout, {"name": "VL-BERT's own Fast R-CNN"}))
    keys = [str(number) for number in range(len(features))]
    with writer.unit(keys) as unit:
        for row, (key, each) in enumerate(zip(keys, features, strict=True)):
            height, width = seen.image_sizes[row].long().tolist()
            whole, *regions = each.numpy().astype(dtype)
            boxes = seen.boxes[row, : len(regions)].numpy()
            unit.append(RegionRecord(key, (height, width), boxes, np.stack(regions), whole))
        unit.commit()
    return open_store(path)


def test_a_box_of_the_network_does_not_depend_on_other_boxes() -> None:
    model, batch = model_of(END_TO_END), pixels_batch()
    assert isinstance(batch.visual, Regions) and batch.visual.pixels is not None and model.network is not None
    rois = torch.tensor([[0, 2.0, 3, 20, 30], [2, 0, 0, 63, 63]])
    both = model.network(batch.visual.pixels, rois)
    torch.testing.assert_close(model.network(batch.visual.pixels, rois[1:]), both[1:], rtol=0, atol=1e-4)
    outlines = torch.zeros(2, 14, 14)
    assert not model.network(batch.visual.pixels, rois, outlines).any()


def test_early_stages_and_norms_are_frozen() -> None:
    model = model_of(END_TO_END)
    trained = {name for name, each in model.named_parameters() if each.requires_grad and name.startswith("network")}
    assert not [name for name in trained if ".stem." in name or ".res2." in name or ".norm." in name]
    assert {name.split(".")[2] for name in trained if "backbone" in name} == {"res3", "res4"}
    model.train()
    states = model(pixels_batch())
    states.tokens.sum().backward()
    assert all(
        each.grad is not None and bool(each.grad.isfinite().all())
        for name, each in model.named_parameters()
        if name in trained
    )


def test_hidden_boxes_are_black() -> None:
    boxes = torch.tensor([[[1.9, 2.2, 3.7, 4.0], [0, 0, 1, 1]]])
    found = hide(Pixels(torch.ones(1, 3, 6, 8)), boxes, torch.tensor([[True, False]])).images[0, 0]
    wanted = torch.ones(6, 8)
    wanted[2:5, 1:4] = 0
    assert torch.equal(found, wanted)


def test_parameter_counts_are_the_papers() -> None:
    with torch.device("meta"):
        base, large = (
            VLBert(VLBertConfig(heads=("relationship",))),
            VLBert(VLBertConfig(LARGE, 24, heads=("relationship",))),
        )
    count = sum(each.numel() for name, each in base.named_parameters() if not name.startswith("heads."))
    bert_base = 109_482_240  # transformers' BertModel, pooler included
    assert count == bert_base + 3 * 768 + 2 * 2 * 768 + (4096 + 1) * 768
    count = sum(each.numel() for name, each in large.named_parameters() if not name.startswith("heads."))
    assert count == 335_141_888 + 3 * 1024 + 2 * 2 * 1024 + (4096 + 1) * 1024


def test_a_model_begins_silent_or_with_its_regions_and_with_as_much_of_few_features_as_of_a_place() -> None:
    wide = replace(TINY, layer=replace(LAYER, dim=48, std=0.1), silent=False)
    silent, seeing = VLBert(replace(wide, silent=True)), VLBert(wide)
    assert not silent.region_visual_norm.weight.any() and (seeing.region_visual_norm.weight == 1).all()
    assert not silent.text_visual_norm.weight.any() and not seeing.text_visual_norm.weight.any()
    place, features = seeing.appearance.weight[:, :2048], seeing.appearance.weight[:, 2048:]
    assert place.std().item() == pytest.approx(0.1, rel=0.05)
    assert features.std().item() == pytest.approx(0.1 * (2048 / 6) ** 0.5, rel=0.2)


def test_the_official_width_begins_as_berts() -> None:
    torch.manual_seed(0)
    for silent in (True, False):
        weight = VLBert(replace(TINY, feature_dim=2048, silent=silent)).appearance.weight
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
