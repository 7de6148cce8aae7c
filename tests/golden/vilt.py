"""Checks folders of dandelin/ViLT: embeddings, states, every head's logits and losses, and the random patches.

Shapes in this file: B pairs, P patches of an image.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.golden.capture import captured
from tests.golden.compare import EXACT, MODELS, Folder, Report
from tests.golden.models import Run, compare_valid
from trainers.batch import Batch, Pixels, Text
from trainers.models import heads
from trainers.models.alignment import alignment_loss, distances, inner_words
from trainers.models.layers import LayerConfig
from trainers.models.published import load_vilt
from trainers.models.vilt import SECOND_IMAGE, ViLT, ViLTConfig, lay_out

HEADS = ("mlm", "itm", "vqa", "nlvr2", "rank")


def check(folder: Folder, report: Report) -> None:
    """Compare everything in a folder of this project."""
    model = load(folder)
    batch = Batch(text_of(folder, "text_ids"), pixels_of(folder, "image"))
    check_infer(folder, report, model, batch)
    check_sampled(folder, report, model, batch)
    check_words(folder, report, model, batch)
    check_pairs(folder, report, model, batch)
    check_questions(folder, report, model, batch)
    check_two_images(folder, report, model, batch)
    check_ranking(folder, report, model, batch)


def load(folder: Folder) -> ViLT:
    """Our model with the folder's weights."""
    hidden, patch = folder.setting("hidden_size"), folder.setting("patch_size")
    epsilons = folder.setting("layer_norm_eps")
    layer = LayerConfig(
        hidden, folder.setting("num_heads"), folder.setting("mlp_ratio") * hidden, epsilons["vit_blocks_and_final_norm"]
    )
    model = ViLT(
        ViLTConfig(
            layer,
            folder.setting("num_layers"),
            folder.setting("vocab_size"),
            folder.setting("max_text_len"),
            patch,
            folder.setting("image_size") // patch,
            image_types=2,
            heads=HEADS,
            answers=folder.setting("vqav2_label_size"),
        )
    )
    report = load_vilt(model, folder.path / "weights.safetensors")
    assert not report.unexpected and not report.changed, report
    return model.eval()


def text_of(folder: Folder, name: str) -> Text:
    return Text(folder.inputs[name], folder.inputs["text_masks"].bool())


def pixels_of(folder: Folder, name: str) -> Pixels:
    """A zero-padded batch with the sizes that its pixels tell, as the official code finds them."""
    images = folder.inputs[name]
    real = images.sum(1) != 0
    return Pixels(images, torch.stack([real.any(2).sum(1), real.any(1).sum(1)], dim=1))


def check_states(folder: Folder, report: Report, run: Run, name: str) -> None:
    """Text and image states, where there are any."""
    words = folder.inputs["text_masks"].bool()
    masks = folder.outputs[f"{name}.image_masks"]
    report.compare(f"{name}.image_masks", image_masks(run), masks, EXACT)
    compare_valid(report, f"{name}.text_feats", run.states.text, folder.outputs[f"{name}.text_feats"], words)
    compare_valid(report, f"{name}.image_feats", run.states.visual, folder.outputs[f"{name}.image_feats"], masks.bool())


def image_masks(run: Run) -> Tensor:
    return (torch.arange(run.states.visual_width) < run.states.visual_lengths[:, None]).long()


def check_infer(folder: Folder, report: Report, model: ViLT, batch: Batch) -> None:
    """All patches of every image."""
    outputs, layout = folder.outputs, model.layout(batch)
    with captured({"text": model.text, "pooler": model.pooler}) as seen:
        run = Run(model, batch)
        pooled = model.pooled(run.states)
    check_states(folder, report, run, "infer")
    words, masks = folder.inputs["text_masks"].bool(), outputs["infer.image_masks"].bool()
    report.compare("infer.text_embeddings", seen["text"].gave, outputs["infer.text_embeddings"][words], MODELS)
    places = outputs["infer.patch_index"][masks[:, 1:]]
    report.compare("infer.patch_index", layout.patches[1:].T, places, EXACT)
    joint = torch.cat([words, masks], dim=1)
    for number in range(model.config.layers):
        wanted = outputs[f"infer.block_{number}"]
        report.compare(f"infer.block_{number}", run.layers[f"layer_{number}"][run.mask], wanted[joint], MODELS)
    visual = outputs["infer.visual_embed"] + model.modality.weight[1]
    found = run.embeddings[run.mask][~is_text(run)]
    report.compare("infer.visual_embed", found, visual[masks], MODELS)
    report.compare("infer.raw_cls_feats", run.states.first, outputs["infer.raw_cls_feats"], MODELS)
    report.compare("infer.cls_feats", pooled, outputs["infer.cls_feats"], MODELS)


def is_text(run: Run) -> Tensor:
    """(N,) bool: which packed tokens are words."""
    place = torch.arange(run.mask.shape[1]) < run.states.text_lengths[:, None]
    return place[run.mask]


def check_sampled(folder: Folder, report: Report, model: ViLT, batch: Batch) -> None:
    """The patches that the official code drew, given to ours; and that ours draws as many."""
    most, chosen = folder.setting("max_image_len_sampled"), folder.outputs["sampled.patch_index"]
    assert isinstance(batch.visual, Pixels) and batch.visual.shapes is not None
    across = [width // model.config.patch for _, width in batch.visual.shapes]
    masks = folder.outputs["sampled.image_masks"].bool()[:, 1:]
    kept = [
        (places[:, 0] * width + places[:, 1])[mask].numpy()
        for places, width, mask in zip(chosen, across, masks, strict=True)
    ]
    layout = model.layout(batch, kept)
    run = Run(model, replace(batch, layout=layout))
    report.compare("sampled.patch_index", layout.patches[1:].T, chosen[masks], EXACT)
    check_states(folder, report, run, "sampled")
    report.compare("sampled.cls_feats", model.pooled(run.states), folder.outputs["sampled.cls_feats"], MODELS)
    own = lay_out(replace(model.config, max_patches=most), batch)
    counts = torch.from_numpy(np.bincount(own.patches[0].numpy()))
    report.compare("sampled patches of each image", counts, masks.sum(1), EXACT)


def check_words(folder: Folder, report: Report, model: ViLT, batch: Batch) -> None:
    states = model(replace(batch, text=text_of(folder, "text_ids_mlm")))
    logits = model.heads["mlm"](states.text)
    compare_valid(report, "mlm.logits", logits, folder.outputs["mlm.logits"], folder.inputs["text_masks"].bool())
    loss = heads.class_loss(logits, folder.inputs["text_labels_mlm"])
    report.compare("mlm.loss", loss, folder.outputs["mlm.loss"], MODELS)


def check_pairs(folder: Folder, report: Report, model: ViLT, batch: Batch) -> None:
    """Matched and other images, and how far words are from patches."""
    matched = folder.inputs["itm_labels"]
    images = torch.where(matched[:, None, None, None] == 1, folder.inputs["image"], folder.inputs["image_2"])
    sizes = [pixels_of(folder, name).shapes for name in ("image", "image_2")]
    chosen = [sizes[0][i] if label else sizes[1][i] for i, label in enumerate(matched.tolist())]  # type: ignore[index]
    run = Run(model, replace(batch, visual=Pixels(images, torch.tensor(chosen))))
    states = run.states
    report.compare("itm.image_masks", image_masks(run), folder.outputs["itm.image_masks"], EXACT)
    logits = model.heads["itm"](model.pooled(states))
    report.compare("itm.logits", logits, folder.outputs["itm.logits"], MODELS)
    report.compare("itm.loss", heads.class_loss(logits, matched), folder.outputs["itm.loss"], MODELS)
    patches = image_masks(run).bool()
    patches[:, 0] = False
    words = inner_words(states.text_lengths, states.text_width)
    distance = distances(states.text, states.visual, words, patches)
    report.compare("itm.wpa_distance", distance, folder.outputs["itm.wpa_distance"], MODELS)
    loss = 0.1 * alignment_loss(distance, matched)
    report.compare("itm.wpa_loss", loss, folder.outputs["itm.wpa_loss"], MODELS)


def check_questions(folder: Folder, report: Report, model: ViLT, batch: Batch) -> None:
    logits = model.heads["vqa"](model.pooled(model(batch)))
    report.compare("vqa.logits", logits, folder.outputs["vqa.logits"], MODELS)
    loss = heads.answer_loss(logits, folder.inputs["vqa_targets"])
    report.compare("vqa.loss", loss, folder.outputs["vqa.loss"], MODELS)


def check_two_images(folder: Folder, report: Report, model: ViLT, batch: Batch) -> None:
    """NLVR2: one pass an image, the second with a modality of its own."""
    pooled = [
        model.pooled(model(batch)),
        model.pooled(model(replace(batch, visual=pixels_of(folder, "image_2")), SECOND_IMAGE)),
    ]
    for number, found in enumerate(pooled):
        name = f"nlvr2.cls_feats_image_{number}"
        report.compare(name, found, folder.outputs[name], MODELS)
    logits = model.heads["nlvr2"](torch.cat(pooled, dim=1))
    report.compare("nlvr2.logits", logits, folder.outputs["nlvr2.logits"], MODELS)
    loss = heads.class_loss(logits, folder.inputs["nlvr2_answers"])
    report.compare("nlvr2.loss", loss, folder.outputs["nlvr2.loss"], MODELS)


def check_ranking(folder: Folder, report: Report, model: ViLT, batch: Batch) -> None:
    """Each image's own caption against false ones, which share the image."""
    false, masks = folder.inputs["irtr_false_text_ids"], folder.inputs["irtr_false_text_masks"]
    count, others = false.shape[:2]
    ids = torch.cat([folder.inputs["text_ids"][:count, None], false], dim=1).flatten(0, 1)
    real = torch.cat([folder.inputs["text_masks"][:count, None], masks], dim=1).flatten(0, 1)
    image_of = tuple(image for image in range(count) for _ in range(others + 1))
    states = model(Batch(Text(ids, real.bool()), batch.visual, image_of))
    scores = model.heads["rank"](model.pooled(states)).view(count, others + 1)
    report.compare("irtr.scores", scores, folder.outputs["irtr.scores"], MODELS)
    loss = F.cross_entropy(scores, torch.zeros(count, dtype=torch.long))
    report.compare("irtr.loss", loss, folder.outputs["irtr.loss"], MODELS)
