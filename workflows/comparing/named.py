"""The papers' analyses as comparisons by name: each a function that returns its lines, with the table it follows.

    triptych compare --list
    triptych compare --name fusion --data DIR --out OUT

Sources: Grid-VLP (Yan et al., 2021) and METER (Dou et al., CVPR 2022). Where a paper fine-tunes on VQA v2 and looks at
zero-shot retrieval beside it, VQA is what is compared here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from extractors import ConfigError, GridConfig, RegionConfig
from extractors.configs import ConvConfig
from storage.errors import did_you_mean
from trainers.config import Rule
from trainers.models.image_towers import IMAGE_TOWERS
from trainers.models.text_towers import TextTowerConfig
from workflows.comparing.cells import Matrix, Row, label_of
from workflows.recipes import Recipe, meter, recipe_of
from workflows.recipes.base import Prepared

MODELS = ("vl_bert", "grid_vlp", "pixel_bert", "vilt", "meter")
SEEN_ALIKE = ("grid_vlp", "pixel_bert", "vilt")  # from a cache and from pixels, by the same networks
CAPTIONS = ("coco_captions", "visual_genome")
CLIP16, CLIP32, SWIN = (IMAGE_TOWERS[name] for name in ("clip-b16-224", "clip-b32-224", "swin-b-384"))
TOKENIZERS = {
    "bert": meter.BERT,
    "roberta": meter.ROBERTA,
    "electra": "google/electra-base-discriminator",
    "deberta": "microsoft/deberta-base",
    "albert": "albert/albert-xlarge-v2",
    "embeddings": meter.BERT,
}


def encoder_depth() -> Matrix:
    """Grid-VLP table 2: deeper networks that see, and the boxes of a detector with the deepest one.

    The paper's x50 is not among the published grid networks, whose smallest is a ResNet-50. Of boxes, only the features
    are told to the model.
    """
    grids = {name: GridConfig(model=name) for name in ("r50", "x101", "x152")}
    boxes = RegionConfig(model="grid-x152", selection="10-100", min_boxes=100, max_boxes=100)
    return Matrix(
        "How deep must the network be that sees?",
        tuple(
            row
            for label, config in {**grids, "x152 (region)": boxes}.items()
            for row in _grid_rows(label, config, ("grid_vlp_vqa", "grid_vlp_nlvr2"))
        ),
        "Grid-VLP table 2",
    )


def input_size() -> Matrix:
    """Grid-VLP table 3: smaller images are quicker to see, and have fewer cells."""
    sizes = ((448, 448), (448, 746), (600, 1000))
    return Matrix(
        "How large must images be?",
        tuple(
            row
            for shorter, longer in sizes
            for row in _grid_rows(
                f"{shorter} x {longer}",
                GridConfig(model="x152", shorter=shorter, longer=longer),
                ("grid_vlp_vqa", "grid_vlp_nlvr2"),
            )
        ),
        "Grid-VLP table 3",
    )


def fusion() -> Matrix:
    """METER table 7: merged attention, co-attention, and co-attention with a decoder."""
    bases = {
        "co-attention": "meter_pretrain_ablation",
        "merged attention": "meter_pretrain_merged",
        "decoder": "meter_pretrain_decoder",
    }
    rows = tuple(_then_vqa(label, recipe_of(name)) for label, name in bases.items())
    return Matrix("How should text and image meet?", rows, "METER table 7")


def text_encoders() -> Matrix:
    """METER table 3: text encoders, no pre-training. CLIP's is left out: its tokenizer has neither [CLS] nor [MASK]."""
    rows = []
    for name, tokenizer in TOKENIZERS.items():
        model = replace(meter.BASE, image=CLIP32, text=TextTowerConfig(name), heads=("vqa",))
        recipe = _without_pretraining(replace(recipe_of("meter_vqa"), model=model, tokenizer=tokenizer, side=224))
        rows.append(Row(name, "meter_vqa", recipe))
    return Matrix("Which text encoder?", tuple(rows), "METER table 3")


def vision_encoders() -> Matrix:
    """METER table 4: vision encoders without pre-training."""
    rows = [Row(name, "meter_vqa", _seen_by(name)) for name in IMAGE_TOWERS if name != "swin-l-384"]
    return Matrix("Which vision encoder?", tuple(rows), "METER table 4")


def objectives() -> Matrix:
    """METER table 10: what pre-training learns from. Masked patches are told from the batch's, or by DALL-E's codes."""
    base = recipe_of("meter_pretrain_ablation")
    alone = {
        name.upper(): replace(base, model=replace(base.model, heads=(name,)), objectives=(name,))
        for name in ("mlm", "itm")
    }
    with_patches = {
        "MLM + ITM": base,
        "with masked patches": recipe_of("meter_pretrain_patches"),
        "with discrete codes": recipe_of("meter_pretrain_codes"),
    }
    rows = tuple(_then_vqa(label, recipe) for label, recipe in {**alone, **with_patches}.items())
    return Matrix("What should pre-training learn from?", rows, "METER table 10")


def learning_rate_ratio() -> Matrix:
    """METER table 6: learning rates of the encoders (bottom) and of what is new (top) in pre-training."""
    base = recipe_of("meter_pretrain_ablation")
    rates: dict[str, tuple[Rule, ...]] = {
        f"{rate}e-5, {rate}e-5": (meter.NOT_DECAYED, Rule(r"", lr=rate)) for rate in (1, 2, 3, 5)
    }
    rates["1e-5, 5e-5"] = base.train.rules
    rows = (_then_vqa(label, replace(base, train=replace(base.train, rules=rules))) for label, rules in rates.items())
    return Matrix("How much faster should new layers learn?", tuple(rows), "METER table 6")


def fine_tuning_resolution() -> Matrix:
    """METER figure 5: larger images in fine-tuning than in pre-training, up to 576; 384 as of appendix A."""
    bases = {"CLIP B/32": recipe_of("meter_pretrain_ablation")}
    bases["CLIP B/16"] = replace(recipe_of("meter_pretrain"), model=replace(meter.BASE, image=CLIP16), side=224)
    rows = []
    for label, base in bases.items():
        for side in (224, 384, 576):
            row = _then_vqa(f"{label}, {side}", base)
            model = replace(row.recipe.model, image=replace(base.model.image, size=side))
            rows.append(replace(row, recipe=replace(row.recipe, model=model, side=side)))
    return Matrix("How large should images be in fine-tuning?", tuple(rows), "METER figure 5")


def pre_training_data() -> Matrix:
    """METER appendix, table 7: each data set of pre-training by itself, and all together."""
    base = recipe_of("meter_pretrain_ablation")
    rows = [_then_vqa(name, replace(base, data=(name,))) for name in base.data]
    whole = _then_vqa(" + ".join(base.data), base)
    return Matrix("Which data to pre-train on?", (*rows, whole), "METER appendix, table 7", whole=True)


def layer_fusion() -> Matrix:
    """METER appendix D, table 4: all layers of the encoders gated together, or the last alone; without and with
    pre-training."""
    rows = []
    for label, tower, name in (
        ("Swin B", "swin-b-384", "meter_pretrain_swin"),
        ("CLIP B/16", "clip-b16-224", "meter_pretrain"),
    ):
        for gated in (False, True):
            recipe, base = _seen_by(tower), recipe_of(name)
            recipe = replace(recipe, model=replace(recipe.model, gated=gated))
            kind = f"{label}, {'all layers' if gated else 'last layer'}"
            rows.append(Row(kind, "meter_vqa", recipe))
            rows.append(_then_vqa(f"{kind}, pre-trained", replace(base, model=replace(base.model, gated=gated))))
    return Matrix("Should all layers of the encoders be read?", tuple(rows), "METER appendix D, table 4")


def visual_inputs() -> Matrix:
    """All five models on three tasks, each from a cache and end to end: what the project is for; of no paper.

    Cached are VL-BERT's regions, the grids of Grid-VLP and PixelBERT, ViLT's resized pixels, and the patches of METER's
    image encoder. Each is pre-trained by its own objectives, all on the same captions: VL-BERT goes without text alone,
    Grid-VLP without questions. VL-BERT's store has the class distributions that its pre-training asks for. Where the
    cache holds what the model sees end to end, both are fine-tuned from one pre-training, on the cache.
    """
    rows = (row for model in MODELS for visual in ("store", "pixels") for row in _on_three_tasks(model, visual))
    return Matrix("Which visual input is worth its cost?", tuple(rows), sees=True)


def _on_three_tasks(model: str, visual: str) -> Iterator[Row]:
    """A model that is pre-trained and fine-tuned with its images from one source."""
    before = recipe_of(f"{model}_pretrain")
    objectives = tuple(name for name in before.objectives if name != "qa")
    heads = tuple(name for name in before.model.heads if name != "qa")
    seen = "store" if model in SEEN_ALIKE else visual
    before = replace(
        before, model=replace(before.model, heads=heads), objectives=objectives, data=CAPTIONS, visual=seen
    )
    for name in (f"{model}_vqa", f"{model}_nlvr2", f"{model}_retrieval_f30k"):
        recipe = replace(recipe_of(name), visual=visual, extractor=before.extractor)
        yield Row(label_of(recipe), name, recipe, before)


def _grid_rows(label: str, config: ConvConfig, names: tuple[str, ...]) -> list[Row]:
    """A Grid-VLP of some features, pre-trained and fine-tuned on each task."""
    boxes = config.max_boxes if isinstance(config, RegionConfig) else None
    before = replace(recipe_of("grid_vlp_pretrain"), extractor=config, boxes=boxes)
    return [Row(label, name, replace(recipe_of(name), extractor=config, boxes=boxes), before) for name in names]


def _then_vqa(label: str, before: Recipe) -> Row:
    """A METER as it is pre-trained, and fine-tuned on VQA at the same size."""
    recipe = replace(recipe_of("meter_vqa"), model=replace(before.model, heads=("vqa",)))
    recipe = replace(recipe, tokenizer=before.tokenizer, side=before.side, prepared=before.prepared)
    return Row(label, "meter_vqa", recipe, before)


def _seen_by(name: str) -> Recipe:
    """METER with RoBERTa and one of the vision encoders, fine-tuned on VQA without pre-training."""
    side = int(name.rpartition("-")[2])
    prepared: Prepared = "clip" if name.startswith("clip") else "imagenet"
    model = replace(meter.BASE, image=IMAGE_TOWERS[name], heads=("vqa",))
    return _without_pretraining(replace(recipe_of("meter_vqa"), model=model, side=side, prepared=prepared))


def _without_pretraining(recipe: Recipe) -> Recipe:
    """Section 4.1.1: 1e-5 for the encoders, 1e-4 for all that is new, 10 epochs."""
    rules = (meter.NOT_DECAYED, replace(meter.FUSION, lr=10), Rule(r"^heads\.", lr=10))
    return replace(recipe, train=replace(recipe.train, lr=1e-5, rules=rules))


NAMED: dict[str, Callable[[], Matrix]] = {
    each.__name__: each
    for each in (
        encoder_depth,
        input_size,
        fusion,
        text_encoders,
        vision_encoders,
        objectives,
        learning_rate_ratio,
        fine_tuning_resolution,
        pre_training_data,
        layer_fusion,
        visual_inputs,
    )
}


def named(name: str) -> Matrix:
    """The comparison of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in NAMED:
        near = did_you_mean(name, NAMED)
        raise ConfigError(f"there is no comparison {name!r}{near} `triptych compare --list` shows them all.")
    return NAMED[name]()


def listed() -> Iterator[dict[str, Any]]:
    """Each comparison's name, the table that it follows, and its lines."""
    for name, matrix in ((name, make()) for name, make in NAMED.items()):
        lines = list(dict.fromkeys(row.label for row in matrix.rows))
        yield {"name": name, "source": matrix.source, "title": matrix.title, "lines": lines}
