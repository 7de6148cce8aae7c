"""Grid-VLP (Yan et al., 2021) and PixelBERT (Huang et al., 2020). No code of either is public.

Where the Grid-VLP paper is silent (warm-up, decay, clipping, all of fine-tuning) the settings are those of
airsplay/lxmert, whose tasks and data it takes over; LXMERT's BertAdam does not correct its bias, AdamW here does.
PixelBERT's settings are its paper's, from memory: not checked.
"""

from __future__ import annotations

from dataclasses import replace

from extractors import GridConfig
from extractors.networks import grid_colours
from extractors.resnet import ResNetConfig
from trainers.config import Rule, TrainConfig
from trainers.models.grid_vlp import GridVLPConfig
from workflows.recipes.base import Recipe

LXMERT = "rest: airsplay/lxmert"
PAPER = "Grid-VLP section 4.2"
X152 = GridConfig(model="x152")
FINE = TrainConfig(out="", epochs=4, batch_size=32, lr=5e-5, eps=1e-6, weight_decay=0.01, warmup=0.1, clip=5)


def grid_vlp_pretrain() -> Recipe:
    """Grid-VLP on the texts and questions about COCO's and Visual Genome's images, 100 cells of each.

    triptych extract grid --model x152 --images COCO_AND_VG --out S
    triptych train grid_vlp_pretrain --store S --annotations DIR --out RUN
    """
    return Recipe(
        summary="Grid-VLP: MLM, ITM and image questions on COCO and Visual Genome, 100 random cells an image",
        model=GridVLPConfig(sampled=100),
        task="pretraining",
        data=("coco_captions", "visual_genome", "vqav2", "gqa", "visual_genome_qa"),
        train=TrainConfig(out="", epochs=30, batch_size=512, lr=1e-4, eps=1e-6, weight_decay=0.01, warmup=0.05, clip=1),
        expected="none of its own: see its tasks",
        source=f"{PAPER}; {LXMERT}",
        starts="BERT base, uncased; ResNeXt-152 of grid-feats-vqa",
        longest=20,
        extractor=X152,
        side=600,
        objectives=("itm", "mlm", "qa"),
    )


def grid_vlp_vqa() -> Recipe:
    """Grid-VLP on VQA v2, all cells.

    triptych train grid_vlp_vqa --store S --annotations DIR --out RUN --start pretrained.safetensors
    """
    return Recipe(
        summary="Grid-VLP: VQA v2 from all cells of X-152",
        model=GridVLPConfig(heads=("vqa",)),
        task="vqa",
        data=("vqav2",),
        train=FINE,
        expected="test-dev 76.05, test-std 76.18 (table 1)",
        source=f"{PAPER}; {LXMERT}",
        starts="grid_vlp_pretrain",
        longest=20,
        extractor=X152,
        side=600,
    )


def grid_vlp_nlvr2() -> Recipe:
    """Grid-VLP on NLVR2.

    triptych train grid_vlp_nlvr2 --store S --annotations DIR --out RUN --start pretrained.safetensors
    """
    return replace(
        grid_vlp_vqa(),
        summary="Grid-VLP: NLVR2, both images' states together",
        model=GridVLPConfig(heads=("nlvr2",)),
        task="nlvr2",
        data=("nlvr2",),
        validation="dev",
        expected="dev 80.03, test-P 81.11 (table 1)",
    )


def grid_vlp_gqa() -> Recipe:
    """Grid-VLP on GQA, balanced questions.

    triptych train grid_vlp_gqa --store S --annotations DIR --out RUN --start pretrained.safetensors
    """
    return replace(
        grid_vlp_vqa(),
        summary="Grid-VLP: GQA, balanced",
        model=GridVLPConfig(heads=("gqa",)),
        task="gqa",
        data=("gqa",),
        train=replace(FINE, lr=1e-5),
        expected="test-dev 63.50, test-std 63.81 (table 1)",
    )


def grid_vlp_retrieval_f30k() -> Recipe:
    """Grid-VLP on Flickr30k retrieval, Karpathy's split: for comparisons, its paper has no such task.

    triptych train grid_vlp_retrieval_f30k --store S --annotations DIR --out RUN --start pretrained.safetensors
    """
    return replace(
        grid_vlp_vqa(),
        summary="Grid-VLP: Flickr30k retrieval, 15 false texts",
        model=GridVLPConfig(heads=("itm", "rank")),
        task="retrieval",
        data=("flickr30k",),
        expected="not in its paper",
        source=f"{PAPER}; settings of its VQA; false texts as ViLT has them",
    )


_CNN = (Rule(r"^network\.", lr=100, weight_decay=5e-4, optimiser="sgd", optional=True),)
_PIXEL_BERT = GridVLPConfig(body=ResNetConfig(50), colours=grid_colours("r50"), tuned=True, pool=2, sampled=100)


def pixel_bert_pretrain() -> Recipe:
    """PixelBERT with ResNet-50 from pixels: the network is trained along by SGD.

    triptych train pixel_bert_pretrain --images COCO_AND_VG --annotations DIR --out RUN
    """
    return Recipe(
        summary="PixelBERT (ResNet-50): MLM and ITM on COCO and Visual Genome, from pixels",
        model=replace(_PIXEL_BERT, heads=("mlm", "itm")),
        task="pretraining",
        data=("coco_captions", "visual_genome"),
        train=TrainConfig(
            out="",
            epochs=40,
            batch_size=4096,
            lr=1e-4,
            weight_decay=0.01,
            rules=_CNN,
            warmup=0,
            schedule="milestones",
            milestones=(0.625, 0.875),
            clip=None,
        ),
        expected="none of its own: see its tasks",
        source="PixelBERT section 4.1, from memory: SGD 1e-2 and AdamW 1e-4, a tenth at epochs 25 and 35",
        starts="BERT base, uncased; ResNet-50 of ImageNet",
        longest=20,
        visual="pixels",
        extractor=GridConfig(model="r50"),
        side=600,
        objectives=("itm", "mlm"),
    )


def pixel_bert_vqa() -> Recipe:
    """PixelBERT (ResNet-50) on VQA v2.

    triptych train pixel_bert_vqa --images COCO --annotations DIR --out RUN --start pretrained.safetensors
    """
    recipe = pixel_bert_pretrain()
    return replace(
        recipe,
        summary="PixelBERT (ResNet-50): VQA v2 from pixels",
        model=replace(_PIXEL_BERT, sampled=None, heads=("vqa",)),
        task="vqa",
        data=("vqav2",),
        train=replace(recipe.train, epochs=18, batch_size=256, milestones=(2 / 3, 8 / 9)),
        expected="test-dev 71.35 with ResNet-50 [from memory]; 74.45 with ResNeXt-152 (Grid-VLP table 1)",
        source="PixelBERT section 4.2, from memory: a tenth at epochs 12 and 16 of 18",
        starts="pixel_bert_pretrain",
        objectives=(),
    )


def pixel_bert_nlvr2() -> Recipe:
    """PixelBERT (ResNet-50) on NLVR2.

    triptych train pixel_bert_nlvr2 --images NLVR2 --annotations DIR --out RUN --start pretrained.safetensors
    """
    recipe = pixel_bert_vqa()
    return replace(
        recipe,
        summary="PixelBERT (ResNet-50): NLVR2 from pixels",
        model=replace(_PIXEL_BERT, sampled=None, heads=("nlvr2",)),
        task="nlvr2",
        data=("nlvr2",),
        validation="dev",
        train=replace(recipe.train, epochs=13, milestones=(8 / 13, 10 / 13)),
        expected="dev 71.7, test-P 72.4 with ResNet-50 [from memory]; 76.50, 77.20 with ResNeXt-152 (Grid-VLP table 1)",
        source="PixelBERT section 4.2, from memory: a tenth at epochs 8 and 10 of 13",
    )


def pixel_bert_retrieval_f30k() -> Recipe:
    """PixelBERT (ResNet-50) on Flickr30k retrieval, Karpathy's split.

    triptych train pixel_bert_retrieval_f30k --images F30K --annotations DIR --out RUN --start pretrained.safetensors
    """
    return replace(
        pixel_bert_vqa(),
        summary="PixelBERT (ResNet-50): Flickr30k retrieval from pixels, 15 false texts",
        model=replace(_PIXEL_BERT, sampled=None, heads=("itm", "rank")),
        task="retrieval",
        data=("flickr30k",),
        expected="test R@1: images 71.5, texts 87.0 with ResNeXt-152 (METER table 9)",
        source="settings of its VQA; false texts as ViLT has them",
    )


RECIPES = (
    grid_vlp_pretrain,
    grid_vlp_vqa,
    grid_vlp_nlvr2,
    grid_vlp_gqa,
    grid_vlp_retrieval_f30k,
    pixel_bert_pretrain,
    pixel_bert_vqa,
    pixel_bert_nlvr2,
    pixel_bert_retrieval_f30k,
)
