"""LXMERT and VisualBERT by an adapter give what they give when called by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.unit.trainers.meters import stirred, text
from trainers.batch import Batch, Cells, Pixels, Regions, Text
from trainers.models.adapters import Adapter, AdapterConfig
from trainers.models.grid_vlp import GridVLPConfig

SHAPE = {"vocab_size": 40, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
SETTINGS: dict[str, dict[str, Any]] = {
    "lxmert": {**SHAPE, "l_layers": 1, "x_layers": 2, "r_layers": 1, "visual_feat_dim": 6},
    "visual_bert": {**SHAPE, "num_hidden_layers": 2, "visual_embedding_dim": 6},
}
COUNTS = (4, 2, 3)


def test_gqa_has_as_many_answers_as_lxmert_s_list(shared: Path) -> None:
    answers = json.loads((shared / "data/annotations/vocab/gqa_trainval_label2ans.json").read_text(encoding="utf-8"))
    assert len(answers) == AdapterConfig("lxmert").gqa_answers == GridVLPConfig().gqa_answers


def adapter(name: str) -> Adapter:
    model = Adapter(AdapterConfig(name, "random:0", SETTINGS[name], ("itm", "vqa", "gqa", "nlvr2")))
    return stirred(model).eval()


def regions() -> Regions:
    torch.manual_seed(2)
    mask = torch.arange(4) < torch.tensor(COUNTS)[:, None]
    corner = torch.rand(3, 4, 2) * 30
    boxes = torch.cat([corner, corner + 10], dim=-1)
    return Regions(boxes, torch.tensor([[50.0, 100], [64, 40], [80, 80]]), mask, torch.randn(3, 4, 6).half())


def by_hand(model: Adapter, batch: Batch, row: int) -> Any:
    """One sample, unpadded, as transformers' documentation has it."""
    found, texts = batch.visual, batch.text
    assert isinstance(found, Regions) and found.features is not None and texts.lengths is not None
    one, count = slice(row, row + 1), COUNTS[row]
    ids, features = texts.ids[one, : texts.lengths[row]], found.features[one, :count].float()
    if model.config.name == "visual_bert":
        return model.model(input_ids=ids, visual_embeds=features)
    height, width = found.image_sizes[row].tolist()
    boxes = found.boxes[one, :count] / torch.tensor([width, height, width, height])
    return model.model(input_ids=ids, visual_feats=features, visual_pos=boxes)


@pytest.mark.parametrize("name", SETTINGS)
def test_it_is_the_model_called_by_hand(name: str) -> None:
    model, batch = adapter(name), Batch(text(), regions())
    states = model(batch)
    assert batch.text.lengths is not None
    for row, words in enumerate(batch.text.lengths):
        wanted = by_hand(model, batch, row)
        if name == "lxmert":
            parts = (wanted.language_output, wanted.vision_output, wanted.pooled_output)
        else:
            parts = (wanted.last_hidden_state[:, :words], wanted.last_hidden_state[:, words:], wanted.pooler_output)
        for found, part in zip((states.text[row, :words], states.visual[row, : COUNTS[row]]), parts, strict=False):
            torch.testing.assert_close(found, part[0], rtol=0, atol=2e-5)
        torch.testing.assert_close(model.pooled(states)[row], parts[2][0], rtol=0, atol=2e-5)
    assert model.heads["vqa"](model.pooled(states)).shape == (3, 3129)


@pytest.mark.parametrize("name", SETTINGS)
def test_texts_may_share_an_image(name: str) -> None:
    model, batch = adapter(name), Batch(text(), regions(), image_of=(1, 1, 0))
    seen, rows = regions(), [1, 1, 0]
    assert seen.features is not None and seen.mask is not None
    repeated = Regions(seen.boxes[rows], seen.image_sizes[rows], seen.mask[rows], seen.features[rows])
    torch.testing.assert_close(model(batch).pooled, model(replace(batch, visual=repeated, image_of=None)).pooled)


@pytest.mark.parametrize("name", SETTINGS)
def test_in_a_lower_number_type_it_says_nearly_the_same(name: str) -> None:
    model, batch = adapter(name), Batch(text(), regions())
    wanted = model(batch).pooled
    found = model.bfloat16()(batch).pooled
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0.05)


def test_a_cell_lies_where_it_lies() -> None:
    model, features = adapter("lxmert"), torch.randn(2, 6, 6)
    mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    grids = Cells(features, mask, ((2, 3), (1, 2)))
    boxes = torch.tensor([[column, row, column + 1, row + 1] for row in range(2) for column in range(3)]) * 1.0
    second = torch.tensor([[0.0, 0, 1.5, 2], [1.5, 0, 3, 2]] + [[0.0] * 4] * 4)
    same = Regions(torch.stack([boxes, second]), torch.tensor([[2.0, 3]] * 2), mask, features)
    words = Text(torch.tensor([[4, 5], [6, 7]]))
    torch.testing.assert_close(model(Batch(words, grids)).pooled, model(Batch(words, same)).pooled)
    with pytest.raises(ValueError, match="where cells lie"):
        model(Batch(words, replace(grids, shapes=None)))
    assert adapter("visual_bert")(Batch(words, replace(grids, shapes=None))).visual.shape == (2, 6, 12)


def test_weights_come_from_a_folder(tmp_path: Path) -> None:
    official = transformers.LxmertModel(transformers.LxmertConfig(**SETTINGS["lxmert"])).eval()
    official.save_pretrained(tmp_path)
    model = Adapter(AdapterConfig("lxmert", str(tmp_path))).eval()
    assert all(torch.equal(each, model.model.state_dict()[name]) for name, each in official.state_dict().items())


def test_what_it_cannot_read_is_refused() -> None:
    for visual in (None, Pixels(torch.zeros(3, 3, 8, 8))):
        with pytest.raises(ValueError, match="reads cached features"):
            adapter("visual_bert")(Batch(text(), visual))
    with pytest.raises(ValueError, match="no model is called 'uniter'"):
        AdapterConfig("uniter")
    with pytest.raises(ValueError, match="no head 'mlm' here"):
        AdapterConfig("lxmert", heads=("mlm",))
