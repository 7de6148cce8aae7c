"""VL-BERT (Su et al., ICLR 2020), base size.

Settings are those of jackroos/VL-BERT's configs (commit 4373674), where they differ from the paper's text: learning
rates grow with the batch, of which text alone is half in pre-training; everything is decayed, biases too.
"""

from __future__ import annotations

from dataclasses import replace

from extractors import RegionConfig
from trainers.config import TrainConfig
from trainers.models.fast_rcnn import R101
from trainers.models.vl_bert import VLBertConfig
from workflows.recipes.base import Recipe

CODE = "jackroos/VL-BERT cfgs"
UNPUBLISHED = "settings of its VQA"  # of tasks that only comparisons ask of it
ADAMW = TrainConfig(out="", epochs=10, eps=1e-6, weight_decay=1e-4)


def vl_bert_pretrain() -> Recipe:
    """VL-BERT on Conceptual Captions and text alone, from cached boxes.

    triptych extract regions --weights butd-r101 --class-probs --images CC --out S
    triptych train vl_bert_pretrain --store S --annotations DIR --out RUN
    """
    return Recipe(
        summary="VL-BERT: words and regions told from each other on Conceptual Captions, words on plain text",
        model=VLBertConfig(heads=("mlm", "mvrc"), text_only=True),
        task="pretraining",
        data=("conceptual_captions", "corpus"),
        train=replace(ADAMW, batch_size=128, lr=2.56e-5, warmup=16000, clip=10),
        expected="none of its own: see its tasks",
        source=f"{CODE}/pretrain/base_prec_*; the paper states 256 pairs and a rate of 1e-4",
        starts="BERT base, uncased",
        longest=64,
        extractor=RegionConfig(class_probs=True),
        boxes=100,
        prepared="fast-rcnn",
        side=600,
        objectives=("mlm", "mvrc"),
    )


def vl_bert_pretrain_e2e() -> Recipe:
    """The same run end to end: the network of the regions is trained along.

    triptych train vl_bert_pretrain_e2e --store S --images CC --annotations DIR --out RUN
    """
    recipe = vl_bert_pretrain()
    model = replace(recipe.model, body=R101)
    return replace(recipe, model=model, visual="pixels", source=f"{CODE}/pretrain/base_e2e_*")


def vl_bert_vqa() -> Recipe:
    """VL-BERT on VQA v2, answered at [MASK].

    triptych train vl_bert_vqa --store S --annotations DIR --out RUN --start pretrained.model
    """
    return Recipe(
        summary="VL-BERT: VQA v2 from 10 to 100 boxes",
        model=VLBertConfig(heads=("vqa",)),
        task="vqa",
        data=("vqav2",),
        train=replace(ADAMW, batch_size=256, epochs=5, lr=1.6e-4, warmup=500, clip=1),
        expected="test-dev 70.50, test-std 70.83 (table 3)",
        source=f"{CODE}/vqa/base_4x16G_fp32; the paper states 20 epochs, 1e-4 and 2,000 steps of warm-up",
        starts="vl_bert_pretrain",
        longest=64,
        extractor=RegionConfig(),
        boxes=100,
        prepared="fast-rcnn",
        side=600,
    )


def vl_bert_vcr_answer() -> Recipe:
    """VL-BERT on VCR, question to answer, end to end on the annotated boxes.

    triptych train vl_bert_vcr_answer --images vcr1images --annotations DIR --out RUN --start pretrained.model
    """
    return Recipe(
        summary="VL-BERT: VCR, which answer",
        model=VLBertConfig(heads=("vcr", "vcr_objects"), body=R101),
        task="vcr-answer",
        data=("vcr",),
        train=TrainConfig(
            out="",
            epochs=20,
            batch_size=64,
            optimiser="sgd",
            lr=4.48e-3,
            weight_decay=1e-4,
            warmup=1000,
            schedule="milestones",
            milestones=(0.7, 0.9),
            clip=10,
        ),
        expected="val 73.7, test 74.0 (table 2)",
        source=f"{CODE}/vcr/base_q2a_*; the paper states a batch of 256 and 2e-3",
        starts="vl_bert_pretrain_e2e",
        longest=128,
        visual="pixels",
        prepared="fast-rcnn",
        side=600,
    )


def vl_bert_vcr_rationale() -> Recipe:
    """VL-BERT on VCR, question and answer to rationale.

    triptych train vl_bert_vcr_rationale --images vcr1images --annotations DIR --out RUN --start pretrained.model
    """
    return replace(
        vl_bert_vcr_answer(),
        summary="VL-BERT: VCR, why that answer",
        task="vcr-rationale",
        expected="val 74.5, test 74.8; together with the answers val 55.0, test 55.5 (table 2)",
        source=f"{CODE}/vcr/base_qa2r_*",
    )


def vl_bert_refcoco() -> Recipe:
    """VL-BERT on RefCOCO+ with detected boxes.

    triptych train vl_bert_refcoco --store S --annotations DIR --out RUN --start pretrained.model
    """
    return Recipe(
        summary="VL-BERT: RefCOCO+ among the boxes of a store: given ones, or a detector's",
        model=VLBertConfig(heads=("refcoco",)),
        task="refcoco",
        data=("refcoco+",),
        train=replace(ADAMW, batch_size=32, epochs=20, lr=2.56e-5, warmup=3750, clip=1),
        expected="ground-truth boxes: val 78.44, testA 81.30, testB 71.18; detected: 71.84, 77.59, 60.57 (table 4)",
        source=f"{CODE}/refcoco/base_gt_boxes_4x16G, base_detected_regions_4x16G; the paper states 256 and 2e-4",
        starts="vl_bert_pretrain",
        longest=64,
        extractor=RegionConfig(),
        boxes=100,
        prepared="fast-rcnn",
        side=600,
    )


def vl_bert_nlvr2() -> Recipe:
    """VL-BERT on NLVR2, each image with the sentence: for comparisons, its paper has no such task.

    triptych train vl_bert_nlvr2 --store S --annotations DIR --out RUN --start pretrained.model
    """
    recipe = vl_bert_vqa()
    return replace(
        recipe,
        summary="VL-BERT: NLVR2, both images' states together",
        model=VLBertConfig(heads=("nlvr2",)),
        task="nlvr2",
        data=("nlvr2",),
        validation="dev",
        train=replace(recipe.train, batch_size=128),
        expected="not in its paper",
        source=f"{UNPUBLISHED}, half its batch",
    )


def vl_bert_retrieval_f30k() -> Recipe:
    """VL-BERT on Flickr30k retrieval, Karpathy's split: for comparisons, its paper has no such task.

    triptych train vl_bert_retrieval_f30k --store S --annotations DIR --out RUN --start pretrained.model
    """
    return replace(
        vl_bert_vqa(),
        summary="VL-BERT: Flickr30k retrieval, 15 false texts",
        model=VLBertConfig(heads=("rank",)),
        task="retrieval",
        data=("flickr30k",),
        expected="not in its paper",
        source=f"{UNPUBLISHED}; false texts as ViLT has them",
    )


RECIPES = (
    vl_bert_pretrain,
    vl_bert_pretrain_e2e,
    vl_bert_vqa,
    vl_bert_vcr_answer,
    vl_bert_vcr_rationale,
    vl_bert_refcoco,
    vl_bert_nlvr2,
    vl_bert_retrieval_f30k,
)
