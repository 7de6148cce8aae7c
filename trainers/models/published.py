"""The published checkpoints of each model, and the language and vision models that it starts from.

Sources of the names: jackroos/VL-BERT `*/modules/*.py`, `common/utils/load.py`, `vcr/function/train.py`; dandelin/ViLT
`vilt/modules/*.py`; transformers' `models/vilt` and `models/vit`; timm's `vision_transformer.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from extractors.weights import PUBLISHED, Tensors, find_weights
from extractors.weights import fill as fill_network
from trainers.models.checkpoints import (
    BERT_LAYERS,
    RESNET,
    TWIN,
    WORD_HEAD,
    Adjust,
    LoadReport,
    Rules,
    drop_twins,
    fill,
)
from trainers.models.fast_rcnn import FastRCNN
from trainers.models.layers import resize_positions
from trainers.models.vilt import IMAGE, ViLT
from trainers.models.vl_bert import VISUAL_SEGMENT, WAVES, VLBert

Source = str | Path | Mapping[str, Tensor]

COUNTERS = (r"num_batches_tracked$", r"position_ids$")
_VL_BERT = (
    (r"^vlbert\._module\.", "vlbert."),
    *BERT_LAYERS,
    *WORD_HEAD,
    (r"^vlbert\.mlm_head\.predictions\.decoder\.weight$", f"{TWIN}word.weight"),
    (r"^vlbert\.mlm_head\.predictions\.", "heads.mlm."),
    (r"^vlbert\.mvrc_head\.transform\.dense\.", "heads.mvrc.0."),
    (r"^vlbert\.mvrc_head\.region_cls_pred\.", "heads.mvrc.2."),
    (r"^vlbert\.relationsip_head\.caption_image_relationship\.", "heads.relationship."),
    (r"^vlbert\.word_embeddings\.", "word."),
    (r"^vlbert\.position_embeddings\.", "position."),
    (r"^vlbert\.token_type_embeddings\.", "segment."),
    (r"^vlbert\.end_embedding\.", "end."),
    (r"^vlbert\.embedding_LayerNorm\.", "norm."),
    (r"^vlbert\.visual_ln_text\.", "text_visual_norm."),
    (r"^vlbert\.visual_ln_object\.", "region_visual_norm."),
    (r"^vlbert\.", ""),
    (r"^object_linguistic_embeddings\.", "region_word."),
    (r"^object_mask_word_embedding\.", "hidden_word."),
    (r"^object_mask_visual_embedding\.", "hidden_feature."),
    (r"^aux_text_visual_embedding\.", "no_image."),
    (r"^image_feature_extractor\.obj_downsample\.1\.", "appearance."),
    (r"^image_feature_extractor\.roi_head_feature_extractor\.", "network.res5."),
    (r"^image_feature_extractor\.head\.0\.", f"{TWIN}network.res5."),
    (r"^image_feature_extractor\.backbone\.", "network.backbone."),
    *RESNET,
    (r"^cnn_loss_reg\.0\.dense\.", "heads.vcr_objects.0."),
    (r"^cnn_loss_reg\.", "heads.vcr_objects."),
)
_FAST_RCNN = (
    (r"^(roi_heads\.res5|backbone\.res5|layer4)\.", "res5."),  # a C4 detector, a grid network, torchvision
    (r"^(conv1|bn1|layer\d)\.", r"backbone.\1."),
    *RESNET,
)
_FINAL = {  # what `final_mlp` is, by task
    "vqa": (
        (r"^final_mlp\.0\.dense\.", "heads.vqa.transform.dense."),
        (r"^final_mlp\.0\.LayerNorm\.", "heads.vqa.transform.norm."),
        (r"^final_mlp\.2\.", "heads.vqa.decoder."),
    ),
    "vcr": ((r"^final_mlp\.", "heads.vcr."),),
    "refcoco": ((r"^final_mlp\.0\.dense\.", "heads.refcoco.0."), (r"^final_mlp\.", "heads.refcoco.")),
}
# What another task, or another source of what is seen, may lack: by our names, and by the official ones.
_VL_BERT_NEW = (r"^heads\.", r"^pooler\.", r"^(hidden_word|hidden_feature|no_image)\.", r"^network\.")
_VL_BERT_UNUSED = (
    r"_head\.",
    r"^(module\.)?vlbert\.pooler\.",
    r"^object_mask_",
    r"^aux_",
    r"^image_feature_extractor\.(backbone|roi_head_feature_extractor)\.",
)
_PRETRAINED_HEADS = {"heads.mlm.transform": "heads.vqa.transform", "heads.mvrc.0": "heads.refcoco.0"}


def load_vl_bert(model: VLBert, source: Source) -> LoadReport:
    """A VL-BERT of our or the official names (`.model`), of the task that the model is for. Errors as of `fill`.

    The pooler may be unused, as in official VQA and pre-training runs.
    """
    return fill(model, source, _vl_bert_rules(model), unused=(r"^(module\.)?vlbert\.pooler\.",), adjust=[drop_twins])


def start_vl_bert(model: VLBert, source: Source) -> LoadReport:
    """A VL-BERT of our or the official names as the start of another task, which begins where the official code does.

    VQA takes the transform of the word head, RefCOCO+ and VCR's object loss that of the region head; for VCR the
    segment of second texts, which pre-training never saw, is a copy of the first. The network for pixels may be new, or
    left out; where features have another width, what the model makes of them begins anew, but not of places, and what
    the file makes of its own is `other` of the report.
    """
    other: Tensors = {}
    adjust: list[Adjust] = [drop_twins, partial(_other_width, other)]
    adjust += [_second_segment] if "vcr" in model.config.heads else []
    known = (*_VL_BERT_NEW, *_VL_BERT_UNUSED)
    return replace(fill(model, source, _vl_bert_rules(model), _VL_BERT_NEW, known, adjust), other=other)


def start_vl_bert_from_bert(model: VLBert, source: Source) -> LoadReport:
    """BERT (`pytorch_model.bin`, old or new names) as the start of a VL-BERT: what has to do with images stays new."""
    renames = (
        (r"^bert\.", ""),
        (r"^embeddings\.word_embeddings\.", "word."),
        (r"^embeddings\.position_embeddings\.", "position."),
        (r"^embeddings\.token_type_embeddings\.", "segment."),
        (r"^embeddings\.LayerNorm\.", "norm."),
        *BERT_LAYERS,
        *WORD_HEAD,
        (r"^cls\.predictions\.decoder\.weight$", f"{TWIN}word.weight"),
        (r"^cls\.predictions\.decoder\.bias$", f"{TWIN}heads.mlm.bias"),
        (r"^cls\.predictions\.", "heads.mlm."),
    )
    new = (
        r"^heads\.",
        r"^network\.",
        r"^(end|region_word|hidden_word|hidden_feature|no_image|appearance)\.",
        r"visual_norm\.",
    )
    unused = (r"^cls\.", r"pooler\.")
    return fill(model, source, Rules(renames, COUNTERS), new, unused, [drop_twins, _third_segment])


def _vl_bert_rules(model: VLBert) -> Rules:
    final = [rename for task, renames in _FINAL.items() if task in model.config.heads for rename in renames]
    copies = [
        (f"{source}.{part}", f"{target}.{part}")
        for source, target in (*_PRETRAINED_HEADS.items(), ("heads.mvrc.0", "heads.vcr_objects.0"))
        for part in ("weight", "bias", "dense.weight", "dense.bias", "norm.weight", "norm.bias")
    ]
    return Rules((*_VL_BERT, *final), COUNTERS, copies)


def load_vl_bert_network(network: FastRCNN, weights: str) -> str:
    """Put weights into the network of a VL-BERT that sees pixels, before it is trained along.

    Args:
        weights: a file of the bottom-up detector or of a grid network, by detectron2's or by torchvision's names (as
            VL-BERT's own `resnet101-pt-vgbua-0000.model`), one of its published names (`butd-r101`, ...), or
            random:SEED.

    Returns:
        the SHA-256 of its tensors.

    Raises:
        WeightsError: they cannot be had, or do not fit.
    """
    checkpoint = find_weights(weights, fitting=[name for name in PUBLISHED if name.startswith("butd-")])
    if checkpoint.tensors is not None:
        checkpoint = replace(checkpoint, tensors=Rules(_FAST_RCNN).apply(checkpoint.tensors))
    return fill_network(network, checkpoint, "VL-BERT's network")


def _other_width(other: Tensors, found: Tensors, wanted: Mapping[str, Tensor]) -> list[str]:
    """As from a cache of one network to pixels through another. A bias has been learnt for features, too."""
    theirs, ours = (each.get("appearance.weight") for each in (found, wanted))
    if theirs is None or ours is None or len(theirs) != len(ours) or theirs.shape == ours.shape:
        return []
    other |= {name: found[name] for name in ("appearance.weight", "appearance.bias")}
    place = theirs[:, : 8 * WAVES]
    found["appearance.weight"] = torch.cat([place, ours[:, 8 * WAVES :].to(place)], dim=1)
    found["appearance.bias"] = ours.new_zeros(len(ours))
    before, after = (each.shape[1] - 8 * WAVES for each in (theirs, ours))
    return [f"appearance begins anew for features of {after} numbers; the file's have {before}"]


def _second_segment(found: Tensors, _: Mapping[str, Tensor]) -> list[str]:
    if "heads.vcr.1.weight" in found:
        return []  # the other task of VCR, which has learnt it
    segment = found["segment.weight"].clone()
    segment[1] = segment[0]
    found["segment.weight"] = segment
    return ["segment.weight row 1 copied from row 0"]


def _third_segment(found: Tensors, wanted: Mapping[str, Tensor]) -> list[str]:
    """BERT has no segment for what is seen."""
    segment = found.get("segment.weight")
    if segment is None or len(segment) > VISUAL_SEGMENT:
        return []
    found["segment.weight"] = torch.cat([segment, wanted["segment.weight"][len(segment) :].to(segment)])
    return [f"segment.weight rows from {len(segment)} on are new"]


# timm's ViT, which ViLT has as `transformer`; transformers' ViT, which its ViLT resembles.
_TIMM_VIT = (
    (r"^(transformer\.)?cls_token$", "class_token"),
    (r"^(transformer\.)?pos_embed$", "position"),
    (r"^(transformer\.)?patch_embed\.proj\.", "patch."),
    (r"^(transformer\.)?blocks\.", "encoder."),
    (r"^transformer\.norm\.", "norm."),
    (r"^(encoder\.\d+)\.norm1\.", r"\1.attention_norm."),
    (r"^(encoder\.\d+)\.norm2\.", r"\1.mlp_norm."),
    (r"^(encoder\.\d+)\.attn\.qkv\.", r"\1.attention.qkv."),
    (r"^(encoder\.\d+)\.attn\.proj\.", r"\1.attention.out."),
    (r"^(encoder\.\d+)\.mlp\.fc1\.", r"\1.mlp.up."),
    (r"^(encoder\.\d+)\.mlp\.fc2\.", r"\1.mlp.down."),
)
_TRANSFORMERS_VIT = (
    (r"^(vit|vilt)\.", ""),
    (r"^embeddings\.cls_token$", "class_token"),
    (r"^embeddings\.position_embeddings$", "position"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch."),
    (r"^encoder\.layer\.", "encoder."),
    (r"^layers\.(\d+)\.", r"encoder.\1."),
    (r"\.attention\.attention\.", ".attention."),
    (r"\.attention\.output\.dense\.", ".attention.out."),
    (r"\.attention\.q_proj\.", ".attention.query."),
    (r"\.attention\.k_proj\.", ".attention.key."),
    (r"\.attention\.v_proj\.", ".attention.value."),
    (r"\.attention\.o_proj\.", ".attention.out."),
    (r"\.layernorm_before\.", ".attention_norm."),
    (r"\.layernorm_after\.", ".mlp_norm."),
    (r"(\.\d+)\.intermediate\.dense\.", r"\1.mlp.up."),
    (r"(\.\d+)\.output\.dense\.", r"\1.mlp.down."),
    (r"(\.\d+)\.mlp\.fc1\.", r"\1.mlp.up."),
    (r"(\.\d+)\.mlp\.fc2\.", r"\1.mlp.down."),
    (r"^layernorm\.", "norm."),
)
_VILT = (
    *_TRANSFORMERS_VIT,
    *_TIMM_VIT,
    (r"^(embeddings\.)?text_embeddings\.word_embeddings\.", "text.word."),
    (r"^(embeddings\.)?text_embeddings\.position_embeddings\.", "text.position."),
    (r"^(embeddings\.)?text_embeddings\.token_type_embeddings\.", "text.segment."),
    (r"^(embeddings\.)?text_embeddings\.LayerNorm\.", "text.norm."),
    (r"^(embeddings\.)?token_type_embeddings\.", "modality."),
    (r"^mlm_score\.decoder\.bias$", "mlm_score.bias"),
    (r"^(mlm|itm|mpp)_score\.(fc\.)?", r"heads.\1."),
    *WORD_HEAD,
    (r"^(vqa|nlvr2)_classifier\.", r"heads.\1."),
    (r"^rank_output\.", "heads.rank."),
)
_VILT_HEADS = (
    *(r"^mlm_score\.", r"^itm_score\.", r"_classifier\.", r"^classifier\.", r"^rank_output\."),
    *(r"^heads\.", r"^mask_token$"),
)


def load_vilt(model: ViLT, source: Source) -> LoadReport:
    """A ViLT of our, the official (`.ckpt`) or transformers' names, of the task that the model is for.

    What only other tasks have, as the pair head of a retrieval checkpoint, may be unused. Errors as of `fill`.
    """
    return fill(model, source, _vilt_rules(model), unused=_VILT_HEADS, adjust=[_fuse])


def start_vilt(model: ViLT, source: Source) -> LoadReport:
    """A ViLT of our or published names as the start of another task: heads are new, but for ranking, which begins as
    the pair head's match; the second image's modality begins as the first's."""
    adjust = [_fuse, modalities, rank_from_pairs]
    return fill(model, source, _vilt_rules(model), (r"^heads\.", r"^mask_token$"), _VILT_HEADS, adjust)


def start_vilt_from_vit(model: ViLT, source: Source) -> LoadReport:
    """A ViT of timm's or transformers' names as the start of a ViLT, as its authors start it: all text is new.

    Positions of another image size are interpolated, bilinear; a ViT's own pooler is left out.
    """
    renames = ((r"^(vit\.)?pooler\.", "unused_pooler."), *_TRANSFORMERS_VIT, *_TIMM_VIT)
    new = (r"^heads\.", r"^text\.", r"^modality\.", r"^pooler\.", r"^mask_token$")
    unused = (r"^head\.", r"^classifier\.", r"pooler\.", r"^fc_norm\.", r"^pre_logits\.")
    return fill(model, source, Rules(renames, COUNTERS), new, unused, [_fuse, _resize])


def _vilt_rules(model: ViLT) -> Rules:
    """transformers calls every task's head `classifier`."""
    task = next((name for name in ("vqa", "nlvr2") if name in model.config.heads), None)
    classifier = ((r"^classifier\.", f"heads.{task}."),) if task else ()
    return Rules((*_VILT, *classifier), COUNTERS)


def _fuse(found: Tensors, wanted: Mapping[str, Tensor]) -> list[str]:
    """Query, key and value, one below the other, where the model has one projection for them; no number changes."""
    for name in [each for each in wanted if ".attention.qkv." in each and each not in found]:
        parts = [name.replace("qkv", part) for part in ("query", "key", "value")]
        if all(part in found for part in parts):
            found[name] = torch.cat([found.pop(part) for part in parts])
    return []


def _resize(found: Tensors, wanted: Mapping[str, Tensor]) -> list[str]:
    """Positions for the model's image size. Source: timm 0.4.12 `vision_transformer.py`, resize_pos_embed."""
    old, new = found.get("position"), wanted["position"]
    if old is None or old.shape == new.shape:
        return []
    side = round((new.shape[1] - 1) ** 0.5)
    found["position"] = resize_positions(old[0], side, "bilinear")[None]
    return [f"position interpolated from {old.shape[1] - 1} to {side * side} places, bilinear"]


def modalities(found: Tensors, wanted: Mapping[str, Tensor]) -> list[str]:
    """The row of NLVR2's second image comes from the first's, or goes."""
    rows, count = found.get("modality.weight"), len(wanted["modality.weight"])
    if rows is None or len(rows) == count:
        return []
    found["modality.weight"] = torch.cat([rows, rows[IMAGE : IMAGE + 1]])[:count] if len(rows) < count else rows[:count]
    return [f"modality.weight row 2 {f'copied from row {IMAGE}' if len(rows) < count else 'left out'}"]


def rank_from_pairs(found: Tensors, wanted: Mapping[str, Tensor]) -> list[str]:
    """The head of rankings begins as the pair head's match, in ViLT and METER."""
    if "heads.rank.weight" not in wanted or "heads.rank.weight" in found or "heads.itm.weight" not in found:
        return []
    for part in ("weight", "bias"):
        found[f"heads.rank.{part}"] = found[f"heads.itm.{part}"][1:]
    return ["heads.rank copied from row 1 of heads.itm"]
