"""METER's published checkpoints, at any image size and for any task.

Sources of the names and of what changes with the size: zdou0830/METER `meter/modules/meter_module.py`,
`clip_model.py` (adapt_position_encoding), `swin_helpers.py` (swin_adapt_position_encoding).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

from extractors.weights import Tensors, WeightsError
from trainers.models.checkpoints import WORD_HEAD, LoadReport, Rules, fill
from trainers.models.image_towers import ImageTower
from trainers.models.layers import resize_positions, resize_square
from trainers.models.meter import Meter
from trainers.models.published import COUNTERS, Source, modalities, rank_from_pairs
from trainers.models.text_towers import TextTower

_TOWER = "image.tower.model."
_FUSION = r"^(fusion\.\w+_layers\.\d+\.)"
_METER = (
    (r"^text_transformer\.", "text.model."),
    (r"^cross_modal_(text|image)_transform\.", r"\1_projection."),
    (r"^cross_modal_(text|image)_pooler\.", r"\1_pooler."),
    (r"^cross_modal_(text|image)_layers\.", r"fusion.\1_layers."),
    (rf"{_FUSION}attention\.self\.", r"\1attention."),
    (rf"{_FUSION}attention\.output\.dense\.", r"\1attention.out."),
    (rf"{_FUSION}attention\.output\.LayerNorm\.", r"\1attention_norm."),
    (rf"{_FUSION}crossattention\.self\.", r"\1cross."),
    (rf"{_FUSION}crossattention\.output\.dense\.", r"\1cross.out."),
    (rf"{_FUSION}crossattention\.output\.LayerNorm\.", r"\1cross_norm."),
    (rf"{_FUSION}intermediate\.dense\.", r"\1mlp.up."),
    (rf"{_FUSION}output\.dense\.", r"\1mlp.down."),
    (rf"{_FUSION}output\.LayerNorm\.", r"\1mlp_norm."),
    (r"^token_type_embeddings\.", "modality."),
    (r"^mlm_score\.", "heads.mlm."),
    *WORD_HEAD,
    (r"^itm_score\.fc\.", "heads.itm."),
    (r"^(vqa|nlvr2|snli)_classifier\.", r"heads.\1."),
    (r"^rank_output\.", "heads.rank."),
)
_CLIP = (  # OpenAI's names to timm's
    (r"^vit_model\.visual\.class_embedding$", f"{_TOWER}cls_token"),
    (r"^vit_model\.visual\.positional_embedding$", f"{_TOWER}pos_embed"),
    (r"^vit_model\.visual\.conv1\.", f"{_TOWER}patch_embed.proj."),
    (r"^vit_model\.visual\.ln_pre\.", f"{_TOWER}norm_pre."),
    (r"^vit_model\.visual\.ln_post\.", f"{_TOWER}norm."),
    (r"^vit_model\.visual\.transformer\.resblocks\.", f"{_TOWER}blocks."),
    (r"(\.blocks\.\d+)\.attn\.in_proj_", r"\1.attn.qkv."),
    (r"(\.blocks\.\d+)\.attn\.out_proj\.", r"\1.attn.proj."),
    (r"(\.blocks\.\d+)\.ln_(\d)\.", r"\1.norm\2."),
    (r"(\.blocks\.\d+)\.mlp\.c_fc\.", r"\1.mlp.fc1."),
    (r"(\.blocks\.\d+)\.mlp\.c_proj\.", r"\1.mlp.fc2."),
)
_SWIN = (  # timm 0.4's names to today's: maps are halved before a stage instead of behind the one before
    *((rf"^vit_model\.layers\.{stage}\.downsample\.", f"{_TOWER}layers.{stage + 1}.downsample.") for stage in range(3)),
    (r"^vit_model\.(layers|patch_embed|norm)\.", rf"{_TOWER}\1."),
)
# Made anew from the size: Swin's indices and masks.
_DERIVED = (*COUNTERS, r"relative_position_index$", r"\.attn_mask$")
# Kept by the official class without any use: RoBERTa's pooler and what is left of CLIP's text side.
_UNUSED = (r"^text_transformer\.pooler\.", r"^vit_model\.ln_final\.", r"^vit_model\.positional_embedding$")
_OTHER_TASKS = (r"^(mlm|itm)_score\.", r"_classifier\.", r"^rank_output\.", r"^heads\.", r"^hidden_patch\.")
_RULES = Rules((*_METER, *_CLIP, *_SWIN), _DERIVED)


def load_meter(model: Meter, source: Source) -> LoadReport:
    """A METER of our or the official names (`.ckpt`), of the task that the model is for.

    Positions and Swin's bias tables are resized to the model's image size. What only other tasks have may be unused.
    Errors as of `fill`.
    """
    adjust = [_same_library, _resize_positions, _resize_bias_tables, modalities]
    return fill(model, source, _RULES, unused=(*_UNUSED, *_OTHER_TASKS), adjust=adjust)


def start_meter(model: Meter, source: Source) -> LoadReport:
    """A METER of our or the official names as the start of another task: heads are new, but for ranking, which begins
    as the pair head's match; the second image's modality begins as the first's. One that was trained on cached patches
    has no image encoder: the model's stays as it is."""
    adjust = [_same_library, _own_tower, _resize_positions, _resize_bias_tables, modalities, rank_from_pairs]
    return fill(model, source, _RULES, (r"^heads\.", r"^hidden_patch\."), (*_UNUSED, *_OTHER_TASKS), adjust)


def start_encoder(encoder: ImageTower | TextTower, source: Source) -> LoadReport:
    """One encoder of a METER of our or the official names, alone, at any image size. Errors as of `fill`."""
    alone = nn.ModuleDict({"image" if isinstance(encoder, ImageTower) else "text": encoder})
    return fill(alone, source, _RULES, (), (r"",), [_same_library, _resize_positions, _resize_bias_tables])


def _same_library(found: Tensors, wanted: Mapping[str, Tensor]) -> list[str]:
    """Refuse what was made for the other library's encoder: no name of it would be found.

    Raises:
        WeightsError: the file's image encoder has names of timm's and the model's of transformers', or the other way.
    """
    in_file, in_model = ({name for name in each if name.startswith(_TOWER)} for each in (found, wanted))
    if in_file and in_model and not in_file & in_model:
        raise WeightsError(
            "the checkpoint's image encoder is of another library than the model's; published METERs go into timm's: "
            "build the model with an encoder out of IMAGE_TOWERS."
        )
    return []


def _own_tower(found: Tensors, wanted: Mapping[str, Tensor]) -> list[str]:
    """Let the model's encoder count as found where the file has nothing of one."""
    own = {name: tensor for name, tensor in wanted.items() if name.startswith(_TOWER)}
    if not own or any(name.startswith(_TOWER) for name in found):
        return []
    found.update(own)
    return ["the image encoder is the model's own: the file has none"]


def _resize_positions(found: Tensors, wanted: Mapping[str, Tensor]) -> list[str]:
    """CLIP's, whose official table has no batch dimension; nor has its class token."""
    for name in (f"{_TOWER}pos_embed", f"{_TOWER}cls_token"):
        if name in found and name in wanted:
            found[name] = found[name].reshape(1, -1, found[name].shape[-1])
    name = f"{_TOWER}pos_embed"
    if name not in found or name not in wanted or found[name].shape == wanted[name].shape:
        return []
    before, after = (round((each[name].shape[1] - 1) ** 0.5) for each in (found, wanted))
    found[name] = resize_positions(found[name][0], after)[None]
    return [f"{name} interpolated from {before} x {before} to {after} x {after}"]


def _resize_bias_tables(found: Tensors, wanted: Mapping[str, Tensor]) -> list[str]:
    changed = []
    for name in [each for each in found if re.search(r"relative_position_bias_table$", each) and each in wanted]:
        before, after = (round(len(each[name]) ** 0.5) for each in (found, wanted))
        if before != after:
            found[name] = resize_square(found[name], after)
            changed.append(f"{name} interpolated from {before} x {before} to {after} x {after}")
    return changed
