"""Checks folders of jackroos/VL-BERT: pre-training, VQA, RefCOCO+ and VCR, from embeddings to losses.

Shapes in this file: B texts, N boxes with the whole image's first, as the official code has them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from extractors.resnet import ResNetConfig
from tests.golden.capture import captured
from tests.golden.compare import EXACT, FEATURES, MODELS, CannotCheckError, Folder, Report
from tests.golden.models import Run, compare_valid
from trainers.batch import Batch, Pixels, Regions, Text
from trainers.models import heads
from trainers.models.fast_rcnn import POOL, STRIDE
from trainers.models.layers import LayerConfig
from trainers.models.published import load_vl_bert
from trainers.models.vl_bert import VLBert, VLBertConfig, answer_states, geometry

HEADS = {
    "ResNetVLBERTForPretrainingMultitask and ResNetVLBERTForPretraining": ("mlm", "mvrc", "relationship"),
    "vqa ResNetVLBERT": ("vqa",),
    "refcoco ResNetVLBERT": ("refcoco",),
    "vcr ResNetVLBERT (Q2A)": ("vcr", "vcr_objects"),
}
CLS, SEP, MASK = 101, 102, 103


def check(folder: Folder, report: Report) -> None:
    """Compare everything in a folder of this project."""
    kind = folder.setting("class")
    if kind not in HEADS:
        raise CannotCheckError(f"{folder.path} is of the class {kind!r}; understood are {', '.join(HEADS)}.")
    model = load(folder, HEADS[kind])
    {"mlm": check_pretraining, "vqa": check_vqa, "refcoco": check_refcoco, "vcr": check_vcr}[HEADS[kind][0]](
        folder, report, model
    )


def check_components(folder: Folder, report: Report) -> None:
    """The two parts without weights: geometry and RoIAlign."""
    boxes = folder.inputs["boxes6"]
    found = geometry(boxes[:, :4], boxes[:, [5, 4]]).unflatten(1, (4, -1))
    report.compare("coordinate_embeddings_dim256", found, folder.outputs["coordinate_embeddings_dim256"], MODELS)
    feature_map, rois = folder.inputs["roi_feature_map"], folder.inputs["rois"]
    found = roi_align(feature_map, rois, POOL, 1 / STRIDE, sampling_ratio=1, aligned=False)
    name = "roi_align_14x14_scale16_ratio1"
    report.compare(name, found, folder.outputs[name], MODELS)


def load(folder: Folder, names: tuple[str, ...]) -> VLBert:
    """Our model with the folder's weights."""
    official, weights = folder.setting("vlbert"), load_file(folder.path / "weights.safetensors")
    layer = LayerConfig(official["hidden_size"], official["num_attention_heads"], official["intermediate_size"])
    divisor = folder.config.get("width_div")
    config = VLBertConfig(
        layer,
        official["num_hidden_layers"],
        official["vocab_size"],
        official["max_position_embeddings"],
        folder.config.get("roi_dim", 2048),
        ResNetConfig(folder.setting("network", "IMAGE_NUM_LAYERS")).narrowed(divisor) if divisor else None,
        names,
        answers=folder.config.get("ANSWER_VOCAB_SIZE", 3129),
        region_classes=official.get("visual_region_classes", 1601),
        text_only="aux_text_visual_embedding.weight" in weights,
    )
    model = VLBert(config)
    report = load_vl_bert(model, weights)
    assert not report.changed, report
    return model.eval()


# The batches.


def text_of(ids: Tensor, segments: Tensor | None = None) -> Text:
    return Text(ids, ids > 0, segments)


def enclosed(words: Tensor) -> Tensor:
    """[CLS] words [SEP], padded with 0."""
    ids = F.pad(words, (1, 1))
    ids[:, 0] = CLS
    ids[torch.arange(len(ids)), (words > 0).sum(1) + 1] = SEP
    return ids


def regions_of(folder: Folder, valid: Tensor) -> Regions:
    """The official boxes, whose first is the whole image, as our regions."""
    boxes, info = folder.inputs["boxes"], folder.inputs["im_info"]
    sizes = info[:, [1, 0]]
    whole = torch.stack([torch.zeros(len(info)), torch.zeros(len(info)), info[:, 0] - 1, info[:, 1] - 1], dim=1)
    if not torch.equal(boxes[:, 0, :4], whole):
        raise CannotCheckError(f"{folder.path}: the first boxes are not those of the whole images.")
    if "image" in folder.inputs:
        pixels = Pixels(folder.inputs["image"], sizes.long())
        outlines = folder.inputs["masks"][:, 1:] if "masks" in folder.inputs else None
        return Regions(boxes[:, 1:, :4], sizes, valid[:, 1:], pixels=pixels, outlines=outlines)
    return Regions(boxes[:, 1:, :4], sizes, valid[:, 1:], boxes[:, 1:, 4:], boxes[:, 0, 4:])


def valid_boxes(folder: Folder) -> Tensor:
    """(B, N) bool."""
    return folder.inputs["boxes"][:, :, 0] > -1.5


# The checks.


def check_states(folder: Folder, report: Report, run: Run, prefix: str = "") -> None:
    """What went into and out of the layers, at valid positions."""
    name = f"{prefix}vlbert.attention_mask"
    report.compare(name, run.mask.long(), folder.outputs[name], EXACT)
    found = {"embedding_output": run.embeddings, **run.layers}
    for each, tensor in found.items():
        name = f"{prefix}vlbert.{each}"
        if name in folder.outputs:
            compare_valid(report, name, tensor, folder.outputs[name], run.mask)


def check_objects(folder: Folder, report: Report, model: VLBert, batch: Batch, prefix: str = "") -> None:
    """The visual part of every box, and what it was computed from."""
    valid, layout = valid_boxes(folder), model.layout(batch)
    assert isinstance(batch.visual, Regions)
    watched = {} if model.network is None else {"network": model.network, "res4": model.network.backbone}
    with captured(watched) as seen:
        found = model.see(batch.visual, layout)
    name = f"{prefix}fast_rcnn.obj_reps"
    report.compare(name, found, folder.outputs[name][valid], MODELS)
    if watched:
        report.compare(
            "fast_rcnn.obj_reps_raw", seen["network"].gave, folder.outputs["fast_rcnn.obj_reps_raw"][valid], FEATURES
        )
    if "fast_rcnn.body4" in folder.outputs:
        report.compare("fast_rcnn.body4", seen["res4"].gave, folder.outputs["fast_rcnn.body4"], FEATURES)
        roi = torch.cat([torch.zeros(1), folder.inputs["boxes"][0, 1, :4]])[None]
        aligned = roi_align(seen["res4"].gave, roi, POOL, 1 / STRIDE, sampling_ratio=1, aligned=False)
        report.compare(
            "fast_rcnn.roi_align_first_roi", aligned, folder.outputs["fast_rcnn.roi_align_first_roi"], FEATURES
        )


def check_pretraining(folder: Folder, report: Report, model: VLBert) -> None:
    """Words, regions and relationship of one batch with images, and words of one without."""
    inputs, outputs, valid = folder.inputs, folder.outputs, valid_boxes(folder)
    regions = replace(regions_of(folder, valid), hidden=inputs["mvrc_ops"][:, 1:] == 1)
    batch = Batch(text_of(inputs["text"]), regions)
    check_objects(folder, report, model, batch, "single.")
    run = Run(model, batch)
    check_states(folder, report, run, "single.")
    states = run.states
    words = model.heads["mlm"](states.text, model.word.weight)
    pooled = model.pooled(states)
    report.compare("single.vlbert.pooled", pooled, outputs["single.vlbert.pooled"], MODELS)
    real, labels = inputs["text"] > 0, inputs["mlm_labels"]
    compare_valid(report, "single.mlm_logits", words, outputs["single.mlm_logits"], real)
    compare_valid(
        report, "multitask.mlm_logits_wvc", words, outputs["multitask.mlm_logits_wvc"][:, : words.shape[1]], real
    )
    region_logits, region_labels = model.heads["mvrc"](states.visual), inputs["mvrc_labels"]
    relation = model.heads["relationship"](pooled)
    for prefix in ("single.", "multitask."):
        compare_valid(report, f"{prefix}mvrc_logits", region_logits, outputs[f"{prefix}mvrc_logits"], valid)
        report.compare(f"{prefix}relationship_logits", relation, outputs[f"{prefix}relationship_logits"], MODELS)
    labels = labels.where(labels != -1, heads.IGNORED)
    losses = {
        "relationship_loss": heads.class_loss(relation, inputs["relationship_label"]),
        "mlm_loss": heads.class_loss(words, labels),
        "mvrc_loss": heads.soft_class_loss(region_logits, region_labels),
    }
    by_sample = {
        "single.mlm_loss_norm_in_batch_first": heads.class_loss(words, labels, by_sample=True),
        "single.mvrc_loss_norm_in_batch_first": heads.soft_class_loss(region_logits, region_labels, by_sample=True),
    }
    single = {f"single.{name}": loss for name, loss in losses.items()}
    text = check_text_only(folder, report, model, run)
    multitask = {
        "multitask.relationship_loss": losses["relationship_loss"],
        "multitask.mlm_loss_wvc": losses["mlm_loss"],
        "multitask.mlm_loss_aux": text,
        "multitask.mvrc_loss": losses["mvrc_loss"],
    }
    totals = {"single.loss": sum(single.values()), "multitask.loss": sum(multitask.values())}
    for name, loss in {**single, **by_sample, **multitask, **totals}.items():
        assert isinstance(loss, Tensor)
        report.compare(name, loss, outputs[name], MODELS)


def check_text_only(folder: Folder, report: Report, model: VLBert, images: Run) -> Tensor:
    """The batch without images, which the official code runs together with the other one; its loss."""
    ids, outputs = folder.inputs["aux_text"], folder.outputs
    run = Run(model, Batch(text_of(ids)))
    width = outputs["multitask.vlbert.attention_mask"].shape[1]

    def together(one: Tensor, other: Tensor) -> Tensor:
        return torch.cat(
            [F.pad(each.movedim(1, -1), (0, width - each.shape[1])).movedim(-1, 1) for each in (one, other)]
        )

    mask = together(images.mask, run.mask)
    report.compare("multitask.vlbert.attention_mask", mask.long(), outputs["multitask.vlbert.attention_mask"], EXACT)
    pairs = {
        "embedding_output": (images.embeddings, run.embeddings),
        "layer_1": (images.layers["layer_1"], run.layers["layer_1"]),
    }
    for name, pair in pairs.items():
        compare_valid(report, f"multitask.vlbert.{name}", together(*pair), outputs[f"multitask.vlbert.{name}"], mask)
    words = model.heads["mlm"](run.states.text, model.word.weight)
    compare_valid(report, "multitask.mlm_logits_aux", words, outputs["multitask.mlm_logits_aux"], ids > 0)
    labels = folder.inputs["aux_mlm_labels"]
    return heads.class_loss(words, labels.where(labels != -1, heads.IGNORED))


def check_vqa(folder: Folder, report: Report, model: VLBert) -> None:
    """[CLS] question [SEP] [MASK] [SEP], answered at [MASK]."""
    question = folder.inputs["question"]
    length = (question > 0).sum(1)
    ids = F.pad(enclosed(question), (0, 2))
    rows = torch.arange(len(ids))
    ids[rows, length + 2], ids[rows, length + 3] = MASK, SEP
    segments = (torch.arange(ids.shape[1]) >= length[:, None] + 2).long() * (ids > 0)
    for name, found in {
        "input_ids": ids,
        "mask": (ids > 0).long(),
        "token_type_ids": segments,
        "ans_pos": length + 2,
    }.items():
        report.compare(f"text.{name}", found, folder.outputs[f"text.{name}"], EXACT)
    batch = Batch(text_of(ids, segments), regions_of(folder, valid_boxes(folder)))
    check_objects(folder, report, model, batch)
    run = Run(model, batch)
    check_states(folder, report, run)
    logits = model.heads["vqa"](answer_states(run.states, ids, MASK))
    report.compare("label_logits", logits, folder.outputs["label_logits"], MODELS)
    report.compare("ans_loss", heads.answer_loss(logits, folder.inputs["label"]), folder.outputs["ans_loss"], MODELS)


def check_refcoco(folder: Folder, report: Report, model: VLBert) -> None:
    """A score for every box, end to end."""
    valid, boxes = valid_boxes(folder), folder.inputs["boxes"]
    batch = Batch(text_of(enclosed(folder.inputs["expression"])), regions_of(folder, valid))
    check_objects(folder, report, model, batch)
    run = Run(model, batch)
    check_states(folder, report, run)
    logits = model.heads["refcoco"](run.states.visual)[..., 0]
    compare_valid(report, "label_logits", logits, folder.outputs["label_logits"], valid)
    loss = heads.binary_loss(logits, folder.inputs["label"].clamp(min=0), valid)
    report.compare("cls_loss", loss, folder.outputs["cls_loss"], MODELS)
    best = logits.masked_fill(~valid, -torch.inf).argmax(1)
    ratios = folder.inputs["im_info"][:, [2, 3, 2, 3]]
    report.compare(
        "pred_boxes", boxes[torch.arange(len(best)), best, :4] / ratios, folder.outputs["pred_boxes"], MODELS
    )


def check_vcr(folder: Folder, report: Report, model: VLBert) -> None:
    """Four choices that share an image's boxes, end to end with outlines."""
    question, choices = folder.inputs["question"], folder.inputs["answer_choices"]
    valid, label = valid_boxes(folder), folder.inputs["answer_label"]
    texts = [sequence(question[i], choices[i, j]) for i in range(len(question)) for j in range(choices.shape[1])]
    ids, tags, segments = (torch.nn.utils.rnn.pad_sequence(each, True) for each in zip(*texts, strict=True))
    image_of = tuple(i for i in range(len(question)) for _ in range(choices.shape[1]))
    batch = Batch(Text(ids, ids > 0, segments, tags), regions_of(folder, valid), image_of)
    check_objects(folder, report, model, batch)
    run = Run(model, batch)
    check_states(folder, report, run)
    pooled = model.pooled(run.states)
    report.compare("vlbert.pooled", pooled, folder.outputs["vlbert.pooled"], MODELS)
    logits = model.heads["vcr"](pooled).view(choices.shape[:2])
    report.compare("label_logits", logits, folder.outputs["label_logits"], MODELS)
    wanted = F.one_hot(label, choices.shape[1])
    objects = model.heads["vcr_objects"](run.states.visual)
    classes = folder.inputs["boxes"][..., 5].long().where(valid, heads.IGNORED).repeat_interleave(choices.shape[1], 0)
    losses = {
        "ans_loss": heads.binary_loss(logits, wanted),
        "cnn_regularization_loss": heads.class_loss(objects, classes),
    }
    for name, loss in {**losses, "loss": losses["ans_loss"] + losses["cnn_regularization_loss"]}.items():
        report.compare(name, loss, folder.outputs[name], MODELS)
    report.compare("positive_fraction", wanted.float().mean(), folder.outputs["positive_fraction"], MODELS)


def sequence(question: Tensor, choice: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, tags and segments of [CLS] question [SEP] choice [SEP]."""
    first, second = (each[each[:, 0] > 0, :2] for each in (question, choice))
    special = [torch.tensor([[each, 0]]) for each in (CLS, SEP, SEP)]
    rows = torch.cat([special[0], first, special[1], second, special[2]])
    segments = (torch.arange(len(rows)) >= len(first) + 2).long()
    return rows[:, 0], rows[:, 1], segments
