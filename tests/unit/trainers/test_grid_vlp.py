"""Grid-VLP and PixelBERT: padding, the random part, cache and pixels, the open choices as switches, and sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from extractors import load_extractor
from extractors.networks import GRID_MODELS, grid_colours
from extractors.resnet import ResNetConfig
from tests.unit.trainers.meters import assert_cache_is_true, stirred, text
from trainers.batch import Batch, Cells, Pixels, Regions, Text, from_images, stack_pixels
from trainers.models.checkpoints import OURS, fill, save
from trainers.models.grid_vlp import IMAGE, GridVLP, GridVLPConfig, lay_out
from trainers.models.layers import LayerConfig
from trainers.models.published_grid import load_grid_network, start_grid_vlp_from_bert

LAYER = LayerConfig(dim=12, heads=3, hidden=20)
HEADS = ("mlm", "itm", "qa", "vqa", "gqa", "nlvr2")
TINY = GridVLPConfig(LAYER, 2, vocabulary=40, positions=9, feature_dim=6, heads=HEADS, qa_answers=8, vqa_answers=7)
DIVISOR = 32
BODY = GRID_MODELS["r50"].body.narrowed(DIVISOR)
END_TO_END = replace(TINY, feature_dim=BODY.out_channels(5), body=BODY, colours=grid_colours("r50"))
SWITCHED = replace(TINY, spatial=4, visual_norm=True)
COUNTS, GRIDS = (6, 4, 3), ((2, 3), (2, 2), (1, 3))
SIZES = ((64, 96), (64, 64), (33, 90))  # pixels of such grids


def model_of(config: GridVLPConfig = TINY) -> GridVLP:
    torch.manual_seed(0)
    model = stirred(GridVLP(config))
    if model.network is not None:
        load_grid_network(model.network, "random:0")
    return model.eval()


def cells(width: int = 6) -> Cells:
    torch.manual_seed(2)
    mask = torch.arange(max(COUNTS)) < torch.tensor(COUNTS)[:, None]
    return Cells(torch.randn(3, max(COUNTS), width), mask, GRIDS)


def pixels() -> Pixels:
    torch.manual_seed(3)
    return stack_pixels([torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES])


def everything(model: GridVLP, batch: Batch) -> dict[str, Tensor]:
    """Every head's logits."""
    states = model(batch)
    pooled = model.pooled(states)
    logits = {name: model.heads[name](pooled) for name in ("itm", "qa", "vqa", "gqa")}
    words = model.heads["mlm"](states.text, model.text.word.weight)
    return {**logits, "mlm": words, "nlvr2": model.heads["nlvr2"](torch.cat([pooled, pooled], dim=1))}


def alone(batch: Batch, row: int) -> Batch:
    assert batch.text.lengths is not None
    words, visual = Text(batch.text.ids[row : row + 1, : batch.text.lengths[row]]), batch.visual
    if isinstance(visual, Cells):
        return Batch(words, Cells(visual.features[row : row + 1, : COUNTS[row]], None, (GRIDS[row],)))
    assert isinstance(visual, Pixels)
    height, width = SIZES[row]
    return Batch(words, Pixels(visual.images[row : row + 1, :, :height, :width]))


@pytest.mark.parametrize("config", [TINY, SWITCHED, END_TO_END, replace(END_TO_END, pool=2)])
def test_padding_changes_no_logit(config: GridVLPConfig) -> None:
    model, batch = model_of(config), Batch(text(), cells() if config.body is None else pixels())
    together = everything(model, batch)
    for row in range(3):
        for name, wanted in everything(model, alone(batch, row)).items():
            found = together[name][row : row + 1]
            found = found[:, : wanted.shape[1]] if name == "mlm" else found
            torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_what_stands_in_the_padding_is_never_read() -> None:
    model, batch = model_of(), Batch(text(), cells())
    assert isinstance(batch.visual, Cells) and batch.visual.mask is not None
    noise = torch.where(batch.visual.mask[..., None], batch.visual.features, torch.nan)
    found = everything(model, replace(batch, visual=replace(batch.visual, features=noise)))
    assert all(torch.equal(found[name], each) for name, each in everything(model, batch).items())


def test_a_token_is_what_the_paper_adds_up() -> None:
    model, batch = model_of(), Batch(text(), cells())
    seen: list[Tensor] = []
    model.encoder[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(batch)
    embed, images = model.text, cells()
    word = embed.norm(embed.word(batch.text.ids[1, :3]) + embed.position.weight[:3] + embed.segment.weight[0])
    cell = model.cell(images.features[1, :4]) + embed.segment.weight[IMAGE]
    torch.testing.assert_close(seen[0][11:18], torch.cat([word, cell]))


def test_a_random_part_is_drawn_while_training_only() -> None:
    model, batch = model_of(replace(TINY, sampled=3)), Batch(text(), cells())
    assert model(batch).spans.lengths == (11, 7, 7) and model(batch).visual.shape == (3, 6, 12)
    model.train()
    assert model(batch).visual.shape == (3, 3, 12)
    parts = [model.layout(batch).cells.split((3, 3, 3)) for _ in range(200)]
    for row, different in enumerate((20, 4, 1)):  # 3 of 6, of 4, of 3
        rows = [part[row] - 6 * row for part in parts]
        assert all(bool((each.diff() > 0).all()) and int(each.max()) < COUNTS[row] for each in rows)
        assert len({tuple(each.tolist()) for each in rows}) == different


def test_what_was_drawn_is_what_is_seen() -> None:
    model, batch = model_of(replace(TINY, sampled=3)), Batch(text(), cells())
    layout = lay_out(model.config, batch, training=True)
    assert isinstance(batch.visual, Cells)
    chosen = batch.visual.features.flatten(0, 1)[layout.cells].unflatten(0, (3, 3))
    wanted = model(Batch(text(), Cells(chosen)))
    torch.testing.assert_close(model(replace(batch, layout=layout)).tokens, wanted.tokens)


def test_cells_have_places_only_where_switched_on() -> None:
    turned = replace(cells(), features=cells().features.clone())
    turned.features[0] = turned.features[0].flip(0)
    for config, same in ((TINY, True), (SWITCHED, False)):
        model = model_of(config)
        one, other = (model(Batch(text(), each)).first for each in (cells(), turned))
        assert torch.allclose(one[0], other[0], atol=1e-5) == same
    model = model_of(SWITCHED)
    layout = model.layout(Batch(text(), cells()))
    assert layout.places is not None
    assert layout.places.tolist() == [[0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0], [0, 1, 2, 0, 1, 2, 0, 1, 0, 1, 0, 1, 2]]
    with pytest.raises(ValueError, match="cells have places"):
        model(Batch(text(), replace(cells(), shapes=None)))


def test_texts_may_share_an_image() -> None:
    for model, visual in ((model_of(), cells()), (model_of(END_TO_END), pixels())):
        shared = everything(model, Batch(text(), visual, image_of=(2, 2, 0)))
        for row, image in enumerate((2, 2, 0)):
            own = alone(Batch(text(), visual), image).visual
            wanted = everything(model, Batch(alone(Batch(text(), visual), row).text, own))
            torch.testing.assert_close(shared["vqa"][row], wanted["vqa"][0], rtol=0, atol=1e-5)


def photos() -> list[np.ndarray]:
    return [np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8) for number, size in enumerate(SIZES)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_cache_gives_what_pixels_give(dtype: Any) -> None:
    """From one image: `extract grid`, against the same network inside the model."""
    settings = {"shorter": 48, "longer": 80, "width_divisor": DIVISOR, "device": "cpu"}
    extractor = load_extractor("grid", model="r50", weights="random:0", store_dtype=dtype, **settings)
    model = model_of(END_TO_END)
    prepared = [extractor.prepare(str(number), photo).pixels.flip(0) for number, photo in enumerate(photos())]
    assert all(each.dtype == torch.uint8 for each in prepared)
    cached, others = (Batch(text(), from_images(extractor, each)) for each in (photos(), photos()[::-1]))
    assert isinstance(cached.visual, Cells) and str(cached.visual.features.dtype) == f"torch.{dtype}"
    logits = [everything(model, each) for each in (Batch(text(), stack_pixels(prepared)), cached, others)]
    assert_cache_is_true(*logits, exact=dtype == "float32")


def test_pixel_bert_tunes_its_network_and_grid_vlp_does_not() -> None:
    batch = Batch(text(), pixels())
    for tuned in (True, False):
        model = model_of(replace(END_TO_END, tuned=tuned, pool=2))
        model.train()
        everything(model, batch)["vqa"].sum().backward()
        assert model.network is not None
        gradients = [each.grad is not None for each in model.network.parameters()]
        assert all(gradients) if tuned else not any(gradients)
    assert model.eval()(batch).spans.lengths == (5 + 2, 3 + 1, 4 + 2)


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        (None, "not nothing"),
        (Regions(torch.zeros(3, 1, 4), torch.ones(3, 2), features=torch.zeros(3, 1, 6)), "not Regions"),
        (pixels(), "no network for pixels"),
    ],
)
def test_what_it_cannot_read_is_refused(visual: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of()(Batch(text(), visual))
    with pytest.raises(ValueError, match="no head 'vcr'"):
        replace(TINY, heads=("vcr",))
    with pytest.raises(ValueError, match="leave out pool"):
        replace(TINY, pool=2)


def test_it_starts_as_bert(tmp_path: Path) -> None:
    shape = transformers.BertConfig(
        vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=20,
        max_position_embeddings=9,
    )  # fmt: skip
    official = transformers.BertForPreTraining(shape).eval()
    model = model_of(replace(TINY, heads=("mlm",)))
    report = start_grid_vlp_from_bert(model, official.state_dict())
    assert set(report.missing) == {"cell.weight", "cell.bias"}
    assert all(name.startswith("cls.seq_relationship") for name in report.unexpected)
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():  # a cell of zeros
        model.cell.weight.zero_()
        embeddings = official.bert.embeddings
        model.cell.bias.copy_(-model.text.segment.weight[IMAGE])
    wanted = official.bert.encoder(torch.cat([embeddings(ids), torch.zeros(1, 1, 12)], dim=1)).last_hidden_state
    states = model(Batch(Text(ids), Cells(torch.zeros(1, 1, 6))))
    torch.testing.assert_close(states.tokens, wanted[0], rtol=0, atol=1e-5)
    logits = model.heads["mlm"](states.text, model.text.word.weight)
    torch.testing.assert_close(logits, official.cls.predictions(wanted)[:, :3], rtol=0, atol=1e-5)
    save(model, tmp_path / "ours.safetensors")
    again = GridVLP(model.config).eval()
    assert not fill(again, tmp_path / "ours.safetensors", OURS).missing


def count(**settings: Any) -> int:
    with torch.device("meta"):
        model = GridVLP(GridVLPConfig(**settings))
    return sum(each.numel() for name, each in model.named_parameters() if not name.startswith("heads."))


def test_parameter_counts_are_the_papers() -> None:
    """Table 1: Grid-VLP 110M, which leaves its frozen network out; PixelBERT 170M, which fits a plain ResNet-152."""
    bert_base = 109_482_240  # transformers' BertModel, pooler included
    assert count() == bert_base + (2048 + 1) * 768
    assert round(count(body=ResNetConfig(depth=152), tuned=True) / 1e6) == 169
