"""The truth of scenes in the official files of the data sets, as `trainers.data` and everybody else reads them.

All data sets show the same pictures, whose official id is the scene's number + 1, so one store serves all of them but
NLVR2 and VCR, which name pictures in their own way. Of Visual Genome, which has no splits, there is training only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainers.scenes.asking import Balance, Question, questions
from trainers.scenes.official import Scenes, Written
from trainers.scenes.question_files import write_gqa, write_vqa
from trainers.scenes.scene import Scene
from trainers.scenes.sentence_files import write_coco_captions, write_karpathy, write_nlvr2, write_snli_ve
from trainers.scenes.thing_files import write_refcoco, write_vcr
from trainers.scenes.visual_genome_files import write_visual_genome

ASKED = 10  # questions of a picture: between VQA's five and GQA's dozens


def write_all(scenes: Scenes, root: Path) -> dict[str, Written]:
    """Write the annotations of all data sets to `root/annotations/NAME`, by name of data set; the pictures of COCO are
    there already."""
    asked = {split: _asked(of_split) for split, of_split in scenes.items()}
    annotations = root / "annotations"
    return {
        "vqav2": write_vqa(scenes, asked, annotations / "vqav2"),
        "gqa": write_gqa(scenes, asked, annotations / "gqa"),
        "coco_captions": write_coco_captions(scenes, annotations / "coco_captions"),
        "coco": write_karpathy(scenes, annotations / "coco", "coco"),
        "flickr30k": write_karpathy(scenes, annotations / "flickr30k", "flickr30k"),
        "snli_ve": write_snli_ve(scenes, annotations / "snli_ve"),
        "nlvr2": write_nlvr2(scenes, annotations / "nlvr2", root / "images"),
        "refcoco": write_refcoco(scenes, annotations / "refcoco", places=True),
        "refcoco+": write_refcoco(scenes, annotations / "refcoco+", places=False),
        "vcr": write_vcr(scenes, annotations / "vcr", root / "images"),
        "visual_genome": write_visual_genome(scenes["train"], asked["train"], annotations / "visual_genome"),
    }


def _asked(scenes: Sequence[Scene]) -> list[list[Question]]:
    balance = Balance()
    return [balance.choose(questions(scene), ASKED) for scene in scenes]
