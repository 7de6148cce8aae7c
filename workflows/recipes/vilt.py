"""ViLT (Kim et al., ICML 2021), ViLT-B/32. Settings are those of dandelin/ViLT `vilt/config.py` (commit 762fd39).

bfloat16 stands for its float16. Neither biases nor normalisations are decayed, but for those of the answer heads, which
the official names do not match.
"""

from __future__ import annotations

from dataclasses import replace

from extractors import PixelConfig
from trainers.config import Rule, TrainConfig
from trainers.models.vilt import ViLTConfig
from workflows.recipes.base import Recipe

CODE = "dandelin/ViLT vilt/config.py"
NOT_DECAYED = Rule(r"bias$|norm\.weight$", weight_decay=0.0)
ADAMW = TrainConfig(
    out="", epochs=10, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01, rules=(NOT_DECAYED,), clip=None, dtype="bfloat16"
)


def vilt_pretrain() -> Recipe:
    """ViLT on COCO, Visual Genome, Conceptual Captions and SBU.

    triptych train vilt_pretrain --images DIR --annotations DIR --out RUN
    """
    return Recipe(
        summary="ViLT-B/32: whole-word MLM, ITM and word-patch alignment on four data sets",
        model=ViLTConfig(heads=("mlm", "itm"), max_patches=200),
        task="pretraining",
        data=("coco_captions", "visual_genome", "conceptual_captions", "sbu"),
        train=replace(ADAMW, epochs=None, steps=200_000, batch_size=4096, warmup=2500),
        expected="none of its own; zero-shot F30K and COCO in its paper, table 4",
        source=f"{CODE}, task_mlm_itm; the paper states a warm-up of 10 %",
        starts="ViT-B/32-384 of timm, ImageNet-21k and 1k",
        visual="pixels",
        extractor=PixelConfig(rule="vilt"),
        prepared="vilt",
        objectives=("mlm", "itm", "wpa"),
    )


def vilt_vqa() -> Recipe:
    """ViLT on VQA v2.

    triptych train vilt_vqa --images COCO --annotations DIR --out RUN --start vilt_200k_mlm_itm.ckpt
    """
    head = Rule(r"^heads\.vqa\.", lr=10)
    return Recipe(
        summary="ViLT-B/32: VQA v2",
        model=ViLTConfig(heads=("vqa",)),
        task="vqa",
        data=("vqav2",),
        train=replace(ADAMW, batch_size=256, rules=(NOT_DECAYED, head)),
        expected="test-dev 71.32 of the released weights (EVAL.md); 71.26 with RandAugment in the paper",
        source=f"{CODE}, task_finetune_vqa_randaug; trains on train and validation data but 1,000 images",
        starts="vilt_pretrain",
        visual="pixels",
        extractor=PixelConfig(rule="vilt"),
        prepared="vilt",
        augment=True,
    )


def vilt_nlvr2() -> Recipe:
    """ViLT on NLVR2.

    triptych train vilt_nlvr2 --images NLVR2 --annotations DIR --out RUN --start vilt_200k_mlm_itm.ckpt
    """
    return replace(
        vilt_vqa(),
        summary="ViLT-B/32: NLVR2, a modality for each of both images",
        model=ViLTConfig(heads=("nlvr2",), image_types=2),
        task="nlvr2",
        data=("nlvr2",),
        validation="dev",
        train=replace(ADAMW, batch_size=128),
        expected="dev 75.65, test-P 76.52 of the released weights (EVAL.md)",
        source=f"{CODE}, task_finetune_nlvr2_randaug",
    )


def vilt_retrieval_f30k() -> Recipe:
    """ViLT on Flickr30k retrieval, Karpathy's split.

    triptych train vilt_retrieval_f30k --images F30K --annotations DIR --out RUN --start vilt_200k_mlm_itm.ckpt
    """
    return replace(
        vilt_vqa(),
        summary="ViLT-B/32: Flickr30k retrieval, 15 false texts",
        model=ViLTConfig(heads=("itm", "rank")),
        task="retrieval",
        data=("flickr30k",),
        train=replace(ADAMW, batch_size=256),
        expected="test R@1: images 64.54, texts 83.60 of the released weights (EVAL.md)",
        source=f"{CODE}, task_finetune_irtr_f30k_randaug; trains on train and validation data",
    )


def vilt_retrieval_coco() -> Recipe:
    """ViLT on COCO retrieval, Karpathy's split, 5k test images.

    triptych train vilt_retrieval_coco --images COCO --annotations DIR --out RUN --start vilt_200k_mlm_itm.ckpt
    """
    return replace(
        vilt_retrieval_f30k(),
        summary="ViLT-B/32: COCO retrieval, 15 false texts",
        data=("coco",),
        expected="test R@1: images 42.99, texts 61.62 of the released weights (EVAL.md)",
        source=f"{CODE}, task_finetune_irtr_coco_randaug",
    )


RECIPES = (vilt_pretrain, vilt_vqa, vilt_nlvr2, vilt_retrieval_f30k, vilt_retrieval_coco)
