"""The published checkpoints of each model, and the language and vision models that it starts from.

Sources of the names: jackroos/VL-BERT `*/modules/*.py`, `common/utils/load.py`, `vcr/function/train.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from extractors.weights import Tensors
from trainers.models.checkpoints import BERT_LAYERS, RESNET, TWIN, WORD_HEAD, LoadReport, Rules, drop_twins, fill
from trainers.models.vl_bert import VISUAL_SEGMENT, VLBert

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
_FINAL = {  # what `final_mlp` is, by task
    "vqa": (
        (r"^final_mlp\.0\.dense\.", "heads.vqa.transform.dense."),
        (r"^final_mlp\.0\.LayerNorm\.", "heads.vqa.transform.norm."),
        (r"^final_mlp\.2\.", "heads.vqa.decoder."),
    ),
    "vcr": ((r"^final_mlp\.", "heads.vcr."),),
    "refcoco": ((r"^final_mlp\.0\.dense\.", "heads.refcoco.0."), (r"^final_mlp\.", "heads.refcoco.")),
}
_PRETRAINED_HEADS = {"heads.mlm.transform": "heads.vqa.transform", "heads.mvrc.0": "heads.refcoco.0"}


def load_vl_bert(model: VLBert, source: Source) -> LoadReport:
    """A VL-BERT of our or the official names (`.model`), of the task that the model is for. Errors as of `fill`.

    The pooler may be unused, as in official VQA and pre-training runs.
    """
    return fill(model, source, _vl_bert_rules(model), unused=(r"^(module\.)?vlbert\.pooler\.",), adjust=[drop_twins])


def start_vl_bert(model: VLBert, source: Source) -> LoadReport:
    """A pre-trained VL-BERT as the start of a task: its heads begin where the official code begins them.

    VQA takes the transform of the word head, RefCOCO+ and VCR's object loss that of the region head; for VCR the
    segment of second texts, which pre-training never saw, is a copy of the first.
    """
    adjust = [drop_twins, _second_segment] if "vcr" in model.config.heads else [drop_twins]
    heads = (
        r"mlm_head\.",
        r"mvrc_head\.",
        r"relationsip_head\.",
        r"^(module\.)?vlbert\.pooler\.",
        r"^object_mask_",
        r"^aux_",
    )
    return fill(model, source, _vl_bert_rules(model), new=(r"^heads\.", r"^pooler\."), unused=heads, adjust=adjust)


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


def _second_segment(found: Tensors, _: Mapping[str, Tensor]) -> list[str]:
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
