"""Checkpoints in the layouts in which they were published, made of models of ours."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.models.checkpoints import Rules
from trainers.models.meter import Meter
from trainers.models.vl_bert import VLBert

# The official names of ours, the other way round than the rename tables.
LAYER = [
    (r"\.attention_norm\.", ".attention.output.LayerNorm."), (r"\.attention\.out\.", ".attention.output.dense."),
    (r"\.attention\.(query|key|value)\.", r".attention.self.\1."), (r"\.mlp\.up\.", ".intermediate.dense."),
    (r"\.mlp\.down\.", ".output.dense."), (r"\.mlp_norm\.", ".output.LayerNorm."),
]  # fmt: skip
VL_BERT = [
    (r"^encoder\.(\d+)", r"vlbert.encoder.layer.\1"), *LAYER, (r"^(word|position)\.", r"vlbert.\1_embeddings."),
    (r"^segment\.", "vlbert.token_type_embeddings."), (r"^end\.", "vlbert.end_embedding."),
    (r"^norm\.", "vlbert.embedding_LayerNorm."), (r"^text_visual_norm\.", "vlbert.visual_ln_text."),
    (r"^region_visual_norm\.", "vlbert.visual_ln_object."), (r"^pooler\.", "vlbert.pooler."),
    (r"^region_word\.", "object_linguistic_embeddings."), (r"^hidden_word\.", "object_mask_word_embedding."),
    (r"^hidden_feature\.", "object_mask_visual_embedding."), (r"^no_image\.", "aux_text_visual_embedding."),
    (r"^appearance\.", "image_feature_extractor.obj_downsample.1."),
    (r"^heads\.mlm\.transform\.norm\.", "vlbert.mlm_head.predictions.transform.LayerNorm."),
    (r"^heads\.mlm\.", "vlbert.mlm_head.predictions."), (r"^heads\.mvrc\.0\.", "vlbert.mvrc_head.transform.dense."),
    (r"^heads\.mvrc\.2\.", "vlbert.mvrc_head.region_cls_pred."),
    (r"^heads\.relationship\.", "vlbert.relationsip_head.caption_image_relationship."),
    (r"^heads\.vqa\.transform\.norm\.", "final_mlp.0.LayerNorm."), (r"^heads\.vqa\.transform\.", "final_mlp.0."),
    (r"^heads\.vqa\.decoder\.", "final_mlp.2."), (r"^heads\.vcr\.", "final_mlp."),
    (r"^heads\.vcr_objects\.0\.", "cnn_loss_reg.0.dense."), (r"^heads\.vcr_objects\.", "cnn_loss_reg."),
    (r"^heads\.refcoco\.0\.", "final_mlp.0.dense."), (r"^heads\.refcoco\.", "final_mlp."),
    (r"^network\.res5\.", "image_feature_extractor.roi_head_feature_extractor."),
    (r"^network\.backbone\.stem\.conv1\.norm\.", "image_feature_extractor.backbone.bn1."),
    (r"^network\.backbone\.stem\.", "image_feature_extractor.backbone."),
    (r"^network\.backbone\.", "image_feature_extractor.backbone."),
    *((rf"\.res{each + 1}\.", f".layer{each}.") for each in (1, 2, 3)),
    (r"\.conv(\d)\.norm\.", r".bn\1."), (r"\.shortcut\.norm\.", ".downsample.1."), (r"\.shortcut\.", ".downsample.0."),
]  # fmt: skip
VILT = [
    (r"^text\.norm\.", "text_embeddings.LayerNorm."), (r"^text\.segment\.", "text_embeddings.token_type_embeddings."),
    (r"^text\.", "text_embeddings."), (r"^(text_embeddings\.(?:word|position))\.", r"\1_embeddings."),
    (r"^modality\.", "token_type_embeddings."), (r"^class_token$", "transformer.cls_token"),
    (r"^position$", "transformer.pos_embed"), (r"^patch\.", "transformer.patch_embed.proj."),
    (r"^encoder\.", "transformer.blocks."), (r"^norm\.", "transformer.norm."), (r"\.attention_norm\.", ".norm1."),
    (r"\.mlp_norm\.", ".norm2."), (r"\.attention\.qkv\.", ".attn.qkv."), (r"\.attention\.out\.", ".attn.proj."),
    (r"\.mlp\.up\.", ".mlp.fc1."), (r"\.mlp\.down\.", ".mlp.fc2."), (r"^heads\.itm\.", "itm_score.fc."),
    (r"^heads\.(mlm|mpp)\.", r"\1_score."), (r"transform\.norm\.", "transform.LayerNorm."),
    (r"^heads\.(vqa|nlvr2)\.", r"\1_classifier."), (r"^heads\.rank\.", "rank_output."),
]  # fmt: skip


def official(model: nn.Module, table: list[tuple[str, str]]) -> dict[str, Tensor]:
    """A model's tensors by their official names."""
    return Rules(table).apply(model.state_dict())


def vl_bert_state(model: VLBert) -> dict[str, Tensor]:
    """With what VL-BERT's files hold besides: second copies, counters, the prefix of several GPUs."""
    state = official(model, VL_BERT)
    twins = {re.sub("roi_head_feature_extractor", "head.0", n): t for n, t in state.items() if "roi_head_feature" in n}
    if "vlbert.mlm_head.predictions.bias" in state:
        twins["vlbert.mlm_head.predictions.decoder.weight"] = state["vlbert.word_embeddings.weight"]
    counters = {n.replace("running_mean", "num_batches_tracked"): torch.tensor(7) for n in state if "running_mean" in n}
    return {f"module.{name}": tensor for name, tensor in (state | twins | counters).items()}


METER = (  # ours to official, in order
    (r"^text\.model\.", "text_transformer."),
    (r"^(text|image)_projection\.", r"cross_modal_\1_transform."),
    (r"^(text|image)_pooler\.", r"cross_modal_\1_pooler."),
    (r"^fusion\.(text|image)_layers\.", r"cross_modal_\1_layers."),
    (r"^(cross_modal\S+\.\d+)\.attention\.out\.", r"\1.attention.output.dense."),
    (r"^(cross_modal\S+\.\d+)\.attention\.(query|key|value)\.", r"\1.attention.self.\2."),
    (r"^(cross_modal\S+\.\d+)\.cross\.out\.", r"\1.crossattention.output.dense."),
    (r"^(cross_modal\S+\.\d+)\.cross\.", r"\1.crossattention.self."),
    (r"^(cross_modal\S+\.\d+)\.attention_norm\.", r"\1.attention.output.LayerNorm."),
    (r"^(cross_modal\S+\.\d+)\.cross_norm\.", r"\1.crossattention.output.LayerNorm."),
    (r"^(cross_modal\S+\.\d+)\.mlp_norm\.", r"\1.output.LayerNorm."),
    (r"^(cross_modal\S+\.\d+)\.mlp\.up\.", r"\1.intermediate.dense."),
    (r"^(cross_modal\S+\.\d+)\.mlp\.down\.", r"\1.output.dense."),
    (r"^modality\.", "token_type_embeddings."),
    (r"^heads\.mlm\.transform\.norm\.", "mlm_score.transform.LayerNorm."),
    (r"^heads\.mlm\.", "mlm_score."),
    (r"^heads\.itm\.", "itm_score.fc."),
    (r"^heads\.rank\.", "rank_output."),
    (r"^heads\.(\w+)\.", r"\1_classifier."),
)
TOWER = "image.tower.model."
CLIP = (  # timm's to OpenAI's, in order
    ("cls_token", "class_embedding"),
    ("pos_embed", "positional_embedding"),
    ("patch_embed.proj", "conv1"),
    ("norm_pre", "ln_pre"),
    ("blocks.", "transformer.resblocks."),
    ("attn.qkv.", "attn.in_proj_"),
    ("attn.proj", "attn.out_proj"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("norm.", "ln_post."),
)


def meter_state(model: Meter) -> dict[str, Tensor]:
    """A model's tensors as the official class names them, with what it keeps without any use."""
    found: dict[str, Tensor] = {}
    swin = f"{TOWER}layers.0.blocks.0.norm1.weight" in model.state_dict()
    for name, tensor in model.state_dict().items():
        for pattern, replacement in METER:
            name = re.sub(pattern, replacement, name)
        if name.startswith(TOWER):
            name = (official_swin if swin else official_clip)(name.removeprefix(TOWER))
        flat = name.endswith(("class_embedding", "visual.positional_embedding"))
        found[name] = tensor[0].squeeze(0).clone() if flat else tensor.clone()
    return found | {
        "text_transformer.embeddings.position_ids": torch.arange(20)[None],
        "text_transformer.pooler.dense.weight": torch.zeros(8, 8),
        "text_transformer.pooler.dense.bias": torch.zeros(8),
    }


def official_clip(name: str) -> str:
    for ours, theirs in CLIP:
        name = name.replace(ours, theirs)
    return f"vit_model.visual.{name}"


def official_swin(name: str) -> str:
    """In timm 0.4 maps are halved at the end of a stage."""
    halving = re.fullmatch(r"layers\.(\d)\.(downsample\..+)", name)
    return f"vit_model.layers.{int(halving[1]) - 1}.{halving[2]}" if halving else f"vit_model.{name}"


def meter_checkpoint(path: Path, model: Meter) -> Path:
    """A Lightning file, as published."""
    unused = {"vit_model.ln_final.weight": torch.zeros(3), "vit_model.positional_embedding": torch.zeros(7, 3)}
    torch.save({"state_dict": meter_state(model) | unused, "epoch": 3, "global_step": 7}, path)
    return path
