"""Checkpoints in the layouts in which they were published, made here: what fits, and that all else is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from extractors.weights import WeightsError
from tests.official_checkpoints import VILT, official, vl_bert_state
from tests.unit.trainers import test_vilt, test_vl_bert
from tests.unit.trainers.test_vilt import batch_of
from trainers.batch import Text
from trainers.models import published
from trainers.models.checkpoints import BERT_LAYERS, OURS, TEXT, Rules, fill, save
from trainers.models.layers import Encoder, LayerConfig, Pooler, PostNormLayer, TextEmbedding
from trainers.models.vilt import ViLT
from trainers.models.vl_bert import WAVES, VLBert

SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 24}


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def vl_bert(*heads: str, **changes: Any) -> VLBert:
    return test_vl_bert.model_of(replace(test_vl_bert.TINY, heads=heads, **changes))


def fresh(model: nn.Module) -> Any:
    """The same model with other numbers."""
    other = type(model)(model.config)  # type: ignore[call-arg, arg-type]
    return other.eval()


# VL-BERT.


@pytest.mark.parametrize(
    "heads", [("mlm", "mvrc"), ("mlm", "mvrc", "relationship"), ("vqa",), ("refcoco",), ("vcr", "vcr_objects")]
)
@pytest.mark.parametrize("body", [None, test_vl_bert.BODY], ids=["cached", "end-to-end"])
def test_vl_bert_s_own_files(tmp_path: Path, heads: tuple[str, ...], body: Any) -> None:
    feature_dim = body.out_channels(5) if body else 6
    model = vl_bert(*heads, body=body, feature_dim=feature_dim, text_only="mlm" in heads)
    path = tmp_path / "vl-bert-base-prec.model"
    content = {"state_dict": vl_bert_state(model), "optimizer": {"state": {}}, "validation_monitor": {"best_val": 0.7}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    found = fresh(model)
    report = published.load_vl_bert(found, path)
    assert_equal(found.state_dict(), model.state_dict())
    assert report.loaded == len(model.state_dict()) and not (report.missing or report.unexpected or report.changed)
    assert str(report) == f"{path}: {report.loaded} tensors loaded"


def test_the_vcr_model_s_names_have_a_module_more() -> None:
    model = vl_bert("vcr", "vcr_objects")
    state = {name.replace("vlbert.", "vlbert._module."): tensor for name, tensor in vl_bert_state(model).items()}
    found = fresh(model)
    published.load_vl_bert(found, {name.removeprefix("module."): tensor for name, tensor in state.items()})
    assert_equal(found.state_dict(), model.state_dict())


def plain_state(model: VLBert) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in vl_bert_state(model).items()}


def test_everything_that_does_not_fit_is_told_at_once() -> None:
    model = vl_bert("mlm", "mvrc")
    state = plain_state(model)
    del state["vlbert.end_embedding.weight"]
    state["vlbert.strange.weight"] = torch.ones(2)
    state["vlbert.visual_ln_text.bias"] = torch.ones(5)
    with pytest.raises(WeightsError) as caught:
        published.load_vl_bert(fresh(model), state)
    message = str(caught.value)
    assert "1 missing (end.weight)" in message and "1 unexpected (vlbert.strange.weight)" in message
    assert "1 reshaped (text_visual_norm.bias [5] for [12])" in message and "\n" not in message


def test_second_copies_must_be_copies() -> None:
    model = vl_bert("mlm", "mvrc")
    state = plain_state(model)
    state["vlbert.mlm_head.predictions.decoder.weight"] = state["vlbert.word_embeddings.weight"] + 1
    with pytest.raises(WeightsError, match="word.weight differs from its second copy"):
        published.load_vl_bert(fresh(model), state)


def test_tasks_start_where_the_official_code_starts_them() -> None:
    pretrained = vl_bert("mlm", "mvrc", text_only=True)
    state = plain_state(pretrained)
    vqa, refcoco, vcr = (vl_bert(*heads) for heads in (("vqa",), ("refcoco",), ("vcr", "vcr_objects")))
    reports = [published.start_vl_bert(model, state) for model in (vqa, refcoco, vcr)]
    assert torch.equal(vqa.heads["vqa"].transform.norm.weight, pretrained.heads["mlm"].transform.norm.weight)
    assert torch.equal(refcoco.heads["refcoco"][0].weight, pretrained.heads["mvrc"][0].weight)
    assert torch.equal(vcr.heads["vcr_objects"][0].bias, pretrained.heads["mvrc"][0].bias)
    assert torch.equal(vcr.segment.weight[1], pretrained.segment.weight[0])
    assert torch.equal(vqa.segment.weight, pretrained.segment.weight)
    assert "segment.weight row 1 copied from row 0" in reports[2].changed
    assert reports[0].missing == ("heads.vqa.decoder.bias", "heads.vqa.decoder.weight")
    assert "heads.vqa.transform.dense.weight copied from heads.mlm.transform.dense.weight" in reports[0].changed
    assert "aux_text_visual_embedding.weight" in reports[0].unexpected


def test_features_of_another_width_begin_anew_and_places_do_not() -> None:
    cached = vl_bert("vqa")
    other = VLBert(replace(cached.config, feature_dim=cached.config.feature_dim + 3))
    drawn, bias = other.appearance.weight.detach().clone(), torch.randn(len(cached.appearance.bias))
    cached.appearance.bias.data.copy_(bias)
    report = published.start_vl_bert(other, cached.state_dict())
    count = cached.config.feature_dim
    assert report.changed == (f"appearance begins anew for features of {count + 3} numbers; the file's have {count}",)
    assert torch.equal(other.appearance.weight[:, : 8 * WAVES], cached.appearance.weight[:, : 8 * WAVES])
    assert torch.equal(other.appearance.weight[:, 8 * WAVES :], drawn[:, 8 * WAVES :])
    assert not other.appearance.bias.any(), "so that twins take off what all features share"
    assert torch.equal(other.word.weight, cached.word.weight)
    assert torch.equal(report.other["appearance.weight"], cached.appearance.weight)
    assert torch.equal(report.other["appearance.bias"], bias)
    with pytest.raises(WeightsError, match="appearance.weight"):
        published.load_vl_bert(other, cached.state_dict())
    again = fresh(cached)
    same = published.start_vl_bert(again, cached.state_dict())
    assert not same.changed and not same.other
    assert torch.equal(again.appearance.bias, bias)


def test_vl_bert_starts_from_bert() -> None:
    from transformers import BertConfig, BertForPreTraining

    settings = BertConfig(vocab_size=40, max_position_embeddings=20, **SIZES)
    theirs = BertForPreTraining(settings)
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
           for n, t in theirs.state_dict().items()}  # fmt: skip
    ours = vl_bert("mlm", "mvrc", "relationship")
    third = ours.segment.weight[2].clone()
    report = published.start_vl_bert_from_bert(ours, old)
    assert report.changed == ("segment.weight rows from 2 on are new",) and torch.equal(ours.segment.weight[2], third)
    assert all(
        "visual" in n or n.startswith(("end", "region", "hidden", "appearance", "heads.mvrc", "heads.rel"))
        for n in report.missing
    )
    assert torch.equal(ours.pooler.dense.weight, theirs.bert.pooler.dense.weight)  # type: ignore[union-attr]
    assert torch.equal(ours.heads["mlm"].bias, theirs.cls.predictions.bias)


# ViLT.


def vilt(*heads: str, **changes: Any) -> ViLT:
    return test_vilt.model_of(replace(test_vilt.TINY, heads=heads, **{"image_types": 1, **changes}))


class AttributeDict(dict):  # what Lightning and sacred put beside the tensors
    pass


class ReadOnlyList(list):
    pass


class Callback:
    pass


class Runs:
    """Would write a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (write_it, (self.path,))


def write_it(path: Path) -> None:
    path.touch()


def test_vilt_s_lightning_files_are_read_without_running_them(tmp_path: Path) -> None:
    model, path, trap = vilt("mlm", "itm"), tmp_path / "vilt_200k_mlm_itm.ckpt", tmp_path / "ran"
    state = official(model, VILT) | {"text_embeddings.position_ids": torch.arange(8)[None]}
    config = AttributeDict(config=AttributeDict(datasets=ReadOnlyList(["coco", "vg"]), seed=0))
    others = {"callbacks": {Callback: {"best": torch.ones(1)}}, "hyper_parameters": config, "trap": Runs(trap)}
    torch.save({"epoch": 3, "pytorch-lightning_version": "1.1.4", "state_dict": state, **others}, path)
    found = fresh(model)
    report = published.load_vilt(found, path)
    assert_equal(found.state_dict(), model.state_dict())
    assert not trap.exists() and not (report.missing or report.unexpected)


def test_the_same_object_elsewhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": official(vilt("itm"), VILT), "config": AttributeDict()}, path)
    with pytest.raises(WeightsError, match="nothing else is unpickled"):
        published.load_vilt(vilt("itm"), path)


def test_vilt_tasks_start_from_pre_training() -> None:
    pretrained = vilt("mlm", "itm")
    state = official(pretrained, VILT)
    ranking, pairs = vilt("itm", "rank"), vilt("nlvr2", image_types=2)
    reports = [published.start_vilt(model, state) for model in (ranking, pairs)]
    assert torch.equal(ranking.heads["rank"].weight[0], pretrained.heads["itm"].weight[1])
    assert torch.equal(pairs.modality.weight[2], pretrained.modality.weight[1])
    assert reports[0].changed == ("heads.rank copied from row 1 of heads.itm",) and not reports[0].missing
    assert reports[1].changed == ("modality.weight row 2 copied from row 1",)
    assert all(name.startswith("heads.nlvr2") for name in reports[1].missing)
    with pytest.raises(WeightsError, match=r"modality.weight \[2, 12\] for \[3, 12\]"):
        published.load_vilt(pairs, official(vilt("nlvr2"), VILT))


def test_transformers_vilt_answers_alike() -> None:
    from transformers import ViltConfig, ViltForQuestionAnswering

    torch.manual_seed(0)
    shape = {"image_size": 12, "patch_size": 4, "max_position_embeddings": 8, "max_image_length": -1}
    settings = ViltConfig(vocab_size=40, num_labels=5, layer_norm_eps=1e-6, **shape, **SIZES)
    theirs, ours = ViltForQuestionAnswering(settings).eval(), vilt("vqa")
    report = published.load_vilt(ours, theirs.state_dict())
    assert not (report.missing or report.unexpected)
    batch = batch_of()
    floats = batch.visual.normalised((127.5,) * 3, (127.5,) * 3)  # type: ignore[union-attr]
    with torch.inference_mode():
        found = ours.heads["vqa"](ours.pooled(ours(batch)))
        mask = batch.text.mask.long()  # type: ignore[union-attr]
        wanted = theirs(batch.text.ids, mask, pixel_values=floats.images, pixel_mask=floats.inside().long()).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_vilt_starts_from_a_vit_of_either_library() -> None:
    from timm.models.vision_transformer import VisionTransformer
    from transformers import ViTConfig, ViTForImageClassification

    ours = vilt("mlm", "itm")
    theirs = VisionTransformer(
        img_size=12, patch_size=4, embed_dim=12, depth=2, num_heads=3, mlp_ratio=2, num_classes=4
    )
    report = published.start_vilt_from_vit(ours, theirs.state_dict())
    assert torch.equal(ours.encoder[1].attention.qkv.weight, theirs.blocks[1].attn.qkv.weight)  # type: ignore[union-attr, arg-type]
    assert report.unexpected == ("head.bias", "head.weight") and not report.changed
    assert {name.partition(".")[0] for name in report.missing} == {"text", "modality", "pooler", "heads"}
    other = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **SIZES))
    report = published.start_vilt_from_vit(ours, other.state_dict())
    assert report.changed == ("position interpolated from 16 to 9 places, bilinear",)
    query = other.state_dict()["vit.layers.1.attention.q_proj.weight"]
    assert torch.equal(ours.encoder[1].attention.qkv.weight[:12], query)  # type: ignore[union-attr, index]


# Our own files, and text encoders.


def test_our_files_come_back(tmp_path: Path) -> None:
    for model in (vilt("mlm", "itm"), vl_bert("mlm", "mvrc")):
        save(model, tmp_path / "model.safetensors")
        found = fresh(model)
        assert fill(found, tmp_path / "model.safetensors", OURS).loaded == len(model.state_dict())
        assert_equal(found.state_dict(), model.state_dict())


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_full_size_text_encoders_equal_transformers(kind: str) -> None:
    from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

    torch.manual_seed(0)
    settings = (
        BertConfig()
        if kind == "bert"
        else RobertaConfig(vocab_size=50265, layer_norm_eps=1e-5, max_position_embeddings=514)
    )
    theirs = (BertModel if kind == "bert" else RobertaModel)(settings).eval()  # type: ignore[arg-type]
    config = LayerConfig(eps=settings.layer_norm_eps)
    table = (settings.vocab_size, settings.max_position_embeddings, settings.type_vocab_size, config)
    ours = nn.ModuleDict(
        {
            "embeddings": TextEmbedding(*table, first_position=0 if kind == "bert" else 2),
            "encoder": Encoder(PostNormLayer(config) for _ in range(12)),
            "pooler": Pooler(768),
        }
    ).eval()
    report = fill(ours, theirs.state_dict(), Rules((*TEXT, *BERT_LAYERS)))
    assert not (report.missing or report.unexpected)
    text = Text(torch.randint(5, 30000, (2, 12)), torch.arange(12) < torch.tensor([[12], [7]]))
    assert text.mask is not None
    ids = text.ids.where(text.mask, settings.pad_token_id or 0)
    with torch.inference_mode():
        states = ours["encoder"](ours["embeddings"](ids), text.mask)
        wanted = theirs(ids, text.mask.long())
        pooled = ours["pooler"](states[:, 0])
    torch.testing.assert_close(states[text.mask], wanted.last_hidden_state[text.mask], rtol=0, atol=2e-5)
    torch.testing.assert_close(pooled, wanted.pooler_output, rtol=0, atol=2e-5)
