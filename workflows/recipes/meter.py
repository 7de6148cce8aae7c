"""METER (Dou et al., CVPR 2022). Settings are those of zdou0830/METER `meter/config.py` (commit f4f0934).

Three learning rates: the encoders', five times as much for the layers that fuse, and more yet for the heads. The
published code trains in float32.
"""

from __future__ import annotations

from dataclasses import replace

from trainers.codebook import CodebookConfig
from trainers.config import Rule, TrainConfig
from trainers.models.image_towers import IMAGE_TOWERS
from trainers.models.meter import MeterConfig
from trainers.models.text_towers import TextTowerConfig
from workflows.recipes.base import Recipe

CODE = "zdou0830/METER meter/config.py"
ROBERTA, BERT = "FacebookAI/roberta-base", "google-bert/bert-base-uncased"
CLIP16, CLIP32, SWIN = (IMAGE_TOWERS[name] for name in ("clip-b16-224", "clip-b32-224", "swin-b-384"))
# Official names decide what is not decayed: CLIP's normalisations are, their names do not match.
NOT_DECAYED = Rule(
    r"bias$|LayerNorm\.weight$|^(fusion|decoder)\..*norm\.weight$|^heads\.mlm\..*norm\.weight$", weight_decay=0.0
)
FUSION = Rule(r"^(text_projection|image_projection|fusion|decoder|text_pooler|image_pooler)\.", lr=5)
ADAMW = TrainConfig(out="", epochs=10, betas=(0.9, 0.98), weight_decay=0.01, warmup=0.1, clip=None)
BASE = MeterConfig(image=CLIP16)


def rules(head: float) -> tuple[Rule, ...]:
    """Decay and learning rates; `head` is the factor of task heads, the ranking head not among them."""
    return (NOT_DECAYED, FUSION, Rule(r"^heads\.(vqa|nlvr2|mlm|itm|snli)\.", lr=head))


def meter_pretrain() -> Recipe:
    """METER with CLIP B/16 and RoBERTa, co-attention: the best one.

    triptych train meter_pretrain --images DIR --annotations DIR --out RUN
    """
    return Recipe(
        summary="METER (CLIP B/16, RoBERTa, co-attention): whole-word MLM and ITM on four data sets",
        model=replace(BASE, image=replace(CLIP16, size=288)),
        task="pretraining",
        data=("coco_captions", "visual_genome", "conceptual_captions", "sbu"),
        train=replace(ADAMW, epochs=None, steps=100_000, batch_size=4096, lr=1e-5, rules=rules(5)),
        expected="zero-shot Flickr30k R@1: images 79.60, texts 90.90 (table 8)",
        source=f"{CODE}, task_mlm_itm_clip_bert; METER appendix A",
        starts="CLIP B/16 and RoBERTa base, by their names in the model's config",
        tokenizer=ROBERTA,
        longest=50,
        visual="pixels",
        prepared="clip",
        side=288,
        objectives=("mlm", "itm"),
    )


def meter_pretrain_swin() -> Recipe:
    """METER with Swin B and RoBERTa."""
    return replace(
        meter_pretrain(),
        summary="METER (Swin B, RoBERTa, co-attention): pre-training",
        model=replace(BASE, image=SWIN),
        expected="VQA test-dev 76.43; zero-shot Flickr30k R@1 71.68, 85.30 (table 8)",
        prepared="imagenet",
        side=384,
    )


def meter_pretrain_ablation() -> Recipe:
    """METER with CLIP B/32 and BERT at 224: what its paper's comparisons start from (tables 5 to 7 and 10)."""
    return replace(
        meter_pretrain(),
        summary="METER (CLIP B/32, BERT, co-attention): the base of the paper's comparisons",
        model=replace(BASE, text=TextTowerConfig("bert"), image=CLIP32),
        expected="VQA test-dev 74.98; zero-shot Flickr30k R@1 66.08, 78.10 (table 7)",
        tokenizer=BERT,
        side=224,
    )


def meter_pretrain_merged() -> Recipe:
    """The same with merged attention, 12 layers."""
    recipe = meter_pretrain_ablation()
    return replace(
        recipe,
        summary="METER (CLIP B/32, BERT, merged attention)",
        model=replace(recipe.model, fusion="merged", layers=12),
        expected="VQA test-dev 74.00; zero-shot Flickr30k R@1 57.46, 73.10 (table 7)",
        source="METER section 4.2; no official code",
    )


def meter_pretrain_decoder() -> Recipe:
    """The same with three layers of encoder and three of decoder, which says the hidden words."""
    recipe = meter_pretrain_ablation()
    return replace(
        recipe,
        summary="METER (CLIP B/32, BERT, encoder and decoder)",
        model=replace(recipe.model, layers=3, decoder_layers=3),
        expected="below the encoder alone on VQA and zero-shot Flickr30k (table 7)",
        source="METER section 4.3; no official code",
    )


def meter_pretrain_patches() -> Recipe:
    """The same with masked patches, told from all patches of the batch."""
    recipe = meter_pretrain_ablation()
    return replace(
        recipe,
        summary="METER (CLIP B/32, BERT): MLM, ITM and masked patches with in-batch negatives",
        model=replace(recipe.model, heads=("mlm", "itm", "patches")),
        expected="VQA test-dev 74.01; zero-shot Flickr30k R@1 62.12, 76.90 (table 10)",
        source="METER sections 3.3 and 4.4; no official code",
        objectives=("mlm", "itm", "patches"),
        patch=32,
    )


def meter_pretrain_codes() -> Recipe:
    """The same with masked patches told by the code that DALL-E's tokenizer gives them."""
    recipe = meter_pretrain_patches()
    return replace(
        recipe,
        summary="METER (CLIP B/32, BERT): MLM, ITM and masked patches as discrete codes",
        model=replace(recipe.model, heads=("mlm", "itm", "codes")),
        expected="VQA test-dev 74.21; zero-shot Flickr30k R@1 59.80, 76.30 (table 10)",
        objectives=("mlm", "itm", "codes"),
        codebook=CodebookConfig(),
    )


def meter_vqa() -> Recipe:
    """METER on VQA v2 at 576 pixels.

    triptych train meter_vqa --images COCO --annotations DIR --out RUN --start meter_clip16_288_roberta_pretrain.ckpt
    """
    return replace(
        meter_pretrain(),
        summary="METER (CLIP B/16, RoBERTa): VQA v2 at 576 pixels",
        model=replace(BASE, image=replace(CLIP16, size=576), heads=("vqa",)),
        task="vqa",
        data=("vqav2",),
        split="train+val",
        train=replace(ADAMW, batch_size=512, lr=5e-6, rules=rules(50)),
        expected="test-dev 77.68, test-std 77.64 (table 8); the last checkpoint counts, validation is trained on",
        source=f"{CODE}, task_finetune_vqa_clip_bert",
        starts="meter_pretrain",
        side=576,
        augment=True,
        objectives=(),
    )


def meter_nlvr2() -> Recipe:
    """METER on NLVR2 at 288 pixels."""
    return replace(
        meter_vqa(),
        summary="METER (CLIP B/16, RoBERTa): NLVR2 at 288 pixels",
        model=replace(BASE, image=replace(CLIP16, size=288), heads=("nlvr2",)),
        task="nlvr2",
        data=("nlvr2",),
        split="train",
        validation="dev",
        train=replace(ADAMW, batch_size=256, lr=1e-5, rules=rules(10)),
        expected="dev 82.33, test-P 83.05 (table 8)",
        source=f"{CODE}, task_finetune_nlvr2_clip_bert",
        side=288,
    )


def meter_snli_ve() -> Recipe:
    """METER on SNLI-VE at 384 pixels."""
    return replace(
        meter_vqa(),
        summary="METER (CLIP B/16, RoBERTa): SNLI-VE at 384 pixels",
        model=replace(BASE, image=replace(CLIP16, size=384), heads=("snli",)),
        task="snli-ve",
        data=("snli_ve",),
        split="train",
        validation="dev",
        train=replace(ADAMW, epochs=5, batch_size=64, lr=2e-6, rules=rules(10)),
        expected="dev 80.86, test 81.19 (table 8)",
        source=f"{CODE}, task_finetune_snli_clip_bert",
        side=384,
    )


def meter_retrieval_f30k() -> Recipe:
    """METER on Flickr30k retrieval at 384 pixels, Karpathy's split."""
    return replace(
        meter_vqa(),
        summary="METER (CLIP B/16, RoBERTa): Flickr30k retrieval, 15 false texts",
        model=replace(BASE, image=replace(CLIP16, size=384), heads=("itm", "rank")),
        task="retrieval",
        data=("flickr30k",),
        split="train",
        train=replace(ADAMW, batch_size=512, lr=5e-6, rules=rules(5)),
        expected="test R@1: images 82.22, texts 94.30 (table 9)",
        source=f"{CODE}, task_finetune_irtr_f30k_clip_bert",
        longest=40,
        side=384,
    )


def meter_retrieval_coco() -> Recipe:
    """METER on COCO retrieval at 384 pixels, Karpathy's split, 5k test images."""
    return replace(
        meter_retrieval_f30k(),
        summary="METER (CLIP B/16, RoBERTa): COCO retrieval, 15 false texts",
        data=("coco",),
        expected="test R@1: images 57.08, texts 76.16 (table 9)",
        source=f"{CODE}, task_finetune_irtr_coco_clip_bert",
    )


def meter_captions() -> Recipe:
    """METER on COCO captions by masked words, beam 5."""
    return replace(
        meter_retrieval_coco(),
        summary="METER (CLIP B/16, RoBERTa): COCO captions, beam 5",
        model=replace(BASE, image=replace(CLIP16, size=384), heads=("mlm",)),
        task="captions",
        train=replace(ADAMW, epochs=5, batch_size=512, lr=5e-6, rules=rules(5)),
        expected="BLEU-4 38.8, METEOR 30.0, CIDEr 128.2, SPICE 23.0 (appendix, table 3)",
        source="METER appendix C: 5 epochs; rate and size are not stated: those of retrieval",
        longest=50,
    )


def meter_probe_images() -> Recipe:
    """A linear classifier on METER's image encoder: CIFAR-10 as folders of images."""
    return replace(
        meter_pretrain(),
        summary="METER: linear probe of the image encoder, CIFAR-10",
        model=replace(BASE, image=CLIP16),
        task="image-classes",
        data=("image-folder",),
        validation="test",
        train=TrainConfig(out="", epochs=10, batch_size=256, lr=1e-3, weight_decay=0.0, warmup=0),
        expected="CIFAR-10 95.85 before, 94.92 after pre-training (appendix, table 6)",
        source="METER appendix F: a linear classifier; how it is fitted is not stated",
        starts="meter_pretrain, or CLIP itself",
        side=224,
        objectives=(),
        classes=10,
    )


def meter_probe_texts() -> Recipe:
    """METER's text encoder alone on a GLUE task: MNLI."""
    return replace(
        meter_probe_images(),
        summary="METER: the text encoder on GLUE, MNLI",
        task="text-classes",
        data=("glue-mnli",),
        validation="dev_matched",
        train=TrainConfig(out="", epochs=10, batch_size=32, lr=1e-5, betas=(0.9, 0.98), weight_decay=0.1, warmup=0.06),
        expected="87.53 before, 87.38 after pre-training (appendix, table 5)",
        source="METER appendix F; settings of RoBERTa's GLUE runs [from memory]",
        starts="meter_pretrain, or RoBERTa itself",
        longest=128,
        classes=3,
    )


RECIPES = (
    meter_pretrain,
    meter_pretrain_swin,
    meter_pretrain_ablation,
    meter_pretrain_merged,
    meter_pretrain_decoder,
    meter_pretrain_patches,
    meter_pretrain_codes,
    meter_vqa,
    meter_nlvr2,
    meter_snli_ve,
    meter_retrieval_f30k,
    meter_retrieval_coco,
    meter_captions,
    meter_probe_images,
    meter_probe_texts,
)
