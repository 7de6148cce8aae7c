"""Checks folders of zdou0830/METER: encoders, fusion, every head's logits and losses, and resized positions.

Shapes in this file: B pairs, T text positions.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from extractors.configs import PatchConfig
from tests.golden.capture import captured
from tests.golden.compare import MODELS, Folder, Report
from tests.golden.models import compare_valid
from trainers.batch import Batch, Pixels, Text
from trainers.models import heads
from trainers.models.layers import LayerConfig, resize_positions, resize_square
from trainers.models.meter import IMAGE, SECOND_IMAGE, Meter, MeterConfig, MeterStates
from trainers.models.published_meter import load_meter
from trainers.models.text_towers import TextTowerConfig

HEADS = {"mlm": "mlm", "itm": "itm", "vqa": "vqa", "nlvr2": "nlvr2", "snli": "snli", "irtr": "rank"}


def check(folder: Folder, report: Report) -> None:
    """Compare everything in a folder of this project."""
    model = load(folder)
    batch = Batch(text_of(folder, "text_ids"), Pixels(folder.inputs["image"]))
    check_infer(folder, report, model, batch)
    check_words(folder, report, model, batch)
    pooled = model.pooled(model(batch))
    check_class(folder, report, "vqa", model.heads["vqa"](pooled), "vqa_targets")
    if "itm" in model.heads:
        check_matching(folder, report, model, batch)
        check_class(folder, report, "snli", model.heads["snli"](pooled), "snli_labels")
        check_two_images(folder, report, model, batch)
        check_ranking(folder, report, model, batch)


def check_components(folder: Folder, report: Report) -> None:
    """Tables of positions at other sizes."""
    for name, wanted in folder.outputs.items():
        side = int(name.rpartition("x")[2] if "x" in name else name.rpartition("window")[2])
        if name.startswith("clip_pos_embed"):
            found = resize_positions(folder.inputs["clip_pos_embed_4x4"], side)
        else:
            found = resize_square(folder.inputs["swin_bias_table_window7"], 2 * side - 1)
        report.compare(name, found, wanted, MODELS)


def load(folder: Folder) -> Meter:
    """Our model with the folder's weights."""
    text, hidden = folder.setting("text"), folder.setting("hidden_size")
    settings = {
        "vocab_size": folder.setting("vocab_size"),
        "hidden_size": text["hidden"],
        "intermediate_size": 4 * text["hidden"],
        "num_hidden_layers": text["layers"],
        "num_attention_heads": text["heads"],
        "max_position_embeddings": text["max_position_embeddings"],
    }
    layer = LayerConfig(hidden, folder.setting("num_heads"), folder.setting("mlp_ratio") * hidden)
    names = tuple(ours for official, ours in HEADS.items() if folder.setting("loss_names")[official])
    with TemporaryDirectory() as path:
        config = MeterConfig(
            TextTowerConfig("roberta", "random:0", settings),
            tower(folder, Path(path)),
            layer=layer,
            layers=folder.setting("num_top_layer"),
            heads=names,
            answers=folder.setting("vqav2_label_size"),
        )
        model = Meter(config)
    weights = load_file(folder.path / "weights.safetensors")
    report = load_meter(model, weights)
    assert not report.changed, report
    put_masks(model, weights)
    return model.eval()


def put_masks(model: Meter, weights: dict[str, Tensor]) -> None:
    """The folder's masks of Swin's shifted windows, which are made up as its weights are.

    The official class adds what its checkpoint holds; ours makes them from the size, as they are in real checkpoints.
    """
    for name in [name for name in weights if name.endswith(".attn_mask")]:
        assert model.image is not None
        block = model.image.tower.model.get_submodule(name.removeprefix("vit_model.").removesuffix(".attn_mask"))
        assert block.attn_mask.shape == weights[name].shape
        block.attn_mask = weights[name]


def tower(folder: Folder, path: Path) -> PatchConfig:
    """The folder's image encoder, described as timm describes one."""
    size = folder.setting("image_size")
    if "swin" in folder.config:
        swin = folder.setting("swin")
        names = ("embed_dim", "depths", "num_heads", "patch_size", "window_size")
        describe(path, "swin_base_patch4_window12_384", {"img_size": size, **{name: swin[name] for name in names}})
        return PatchConfig(model=f"timm:{path}", weights="random:0", size=size)
    clip = folder.setting("clip")
    settings = {
        "img_size": size,
        "patch_size": folder.setting("patch_size"),
        "embed_dim": clip["width"],
        "depth": clip["layers_in_clip_checkpoint"],
        "num_heads": clip["heads"],
    }
    describe(path, "vit_base_patch16_clip_quickgelu_224", settings)
    return PatchConfig(model=f"timm:{path}", weights="random:0", layer=-2, size=size)


def describe(path: Path, architecture: str, settings: dict[str, Any]) -> None:
    """Write a config.json of timm's."""
    shape = {"input_size": [3, settings["img_size"], settings["img_size"]]}
    config = {"architecture": architecture, "pretrained_cfg": shape, "model_args": settings}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")


def text_of(folder: Folder, name: str) -> Text:
    return Text(folder.inputs[name], folder.inputs["text_masks"].bool())


def stages(model: Meter) -> dict[str, nn.Module]:
    """Modules by the name of the official tensor that they give."""
    encoder, fusion = model.text.model.encoder.layer, model.fusion
    found: dict[str, nn.Module] = {f"text_layer_{number}": layer for number, layer in enumerate(encoder)}
    for stream in ("text", "image"):
        layers = fusion.get_submodule(f"{stream}_layers").children()
        found |= {f"cross_modal_{stream}_layer_{number}": layer for number, layer in enumerate(layers)}
    assert model.image is not None
    return {**found, "vit_model": model.image}


def check_infer(folder: Folder, report: Report, model: Meter, batch: Batch) -> None:
    """Both encoders and every layer of the fusion."""
    real = folder.inputs["text_masks"].bool()
    with captured(stages(model)) as seen:
        states: MeterStates = model(batch)
        pooled = model.pooled(states)
    found = {name: each.gave[0] if isinstance(each.gave, tuple) else each.gave for name, each in seen.items()}
    found |= {"text_feats": states.text, "image_feats": states.image}
    for name, tensor in found.items():
        wanted = folder.outputs[f"infer.{name}"]
        if "text" in name:
            compare_valid(report, f"infer.{name}", tensor, wanted, real)
        else:
            report.compare(f"infer.{name}", tensor, wanted, MODELS)
    report.compare("infer.cls_feats", pooled, folder.outputs["infer.cls_feats"], MODELS)


def check_words(folder: Folder, report: Report, model: Meter, batch: Batch) -> None:
    states = model(replace(batch, text=text_of(folder, "text_ids_mlm")))
    logits = model.heads["mlm"](states.text)
    compare_valid(report, "mlm.logits", logits, folder.outputs["mlm.logits"], folder.inputs["text_masks"].bool())
    loss = heads.class_loss(logits, folder.inputs["text_labels_mlm"])
    report.compare("mlm.loss", loss, folder.outputs["mlm.loss"], MODELS)


def check_class(folder: Folder, report: Report, task: str, logits: Tensor, targets: str) -> None:
    """A head's logits and loss."""
    report.compare(f"{task}.logits", logits, folder.outputs[f"{task}.logits"], MODELS)
    loss = heads.answer_loss if task == "vqa" else heads.class_loss
    report.compare(f"{task}.loss", loss(logits, folder.inputs[targets]), folder.outputs[f"{task}.loss"], MODELS)


def check_matching(folder: Folder, report: Report, model: Meter, batch: Batch) -> None:
    """Matched and other images."""
    matched = folder.inputs["itm_labels"][:, None, None, None] == 1
    images = torch.where(matched, folder.inputs["image"], folder.inputs["image_2"])
    logits = model.heads["itm"](model.pooled(model(replace(batch, visual=Pixels(images)))))
    check_class(folder, report, "itm", logits, "itm_labels")


def check_two_images(folder: Folder, report: Report, model: Meter, batch: Batch) -> None:
    """NLVR2: one pass an image, the second with a modality of its own."""
    pooled = []
    for number, image_type in enumerate((IMAGE, SECOND_IMAGE)):
        images = Pixels(folder.inputs["image_2" if number else "image"])
        pooled.append(model.pooled(model(replace(batch, visual=images), image_type)))
        name = f"nlvr2.cls_feats_image_{number}"
        report.compare(name, pooled[-1], folder.outputs[name], MODELS)
    check_class(folder, report, "nlvr2", model.heads["nlvr2"](torch.cat(pooled, dim=1)), "nlvr2_answers")


def check_ranking(folder: Folder, report: Report, model: Meter, batch: Batch) -> None:
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
