"""The data sets by name: which files each split has, and who reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from storage.errors import did_you_mean
from trainers.data import (
    coco_captions,
    gqa,
    karpathy,
    nlvr2,
    refcoco,
    snli_ve,
    vcr,
    visual_genome,
    vqa,
    web_captions,
)
from trainers.data.base import Example, Split
from trainers.data.captions import Captions
from trainers.data.files import AS_PUBLISHED, DataError

OR = "|"  # between the names that a file may have

COCO_2014 = "train2014/COCO_train2014_000000000009.jpg and so on; key 9"
FLICKR30K = "flickr30k-images/1000092795.jpg; key 1000092795"


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set.

    about     what it is, and where it is published
    images    how its images lie below --images, and which key each has
    files     of each split, paths below the root, or below its folder named after the data set; OR between names
              that a file may have
    read      examples of a split from its files, in the order of `files`
    optional  splits without which the data set is complete
    """

    about: str
    images: str
    files: Mapping[str, tuple[str, ...]]
    read: Callable[[str, Sequence[Path]], Sequence[Example]]
    optional: frozenset[str] = frozenset()


_VQA = "v2_OpenEnded_mscoco_{}_questions.json"
_VQA_ANSWERS = "v2_mscoco_{}_annotations.json"
_KARPATHY = "Karpathy's splits for retrieval and captioning (cs.stanford.edu/people/karpathy/deepimagesent)"


def _refcoco(refs: str, splits: Sequence[str], name: str) -> DataSet:
    return DataSet(
        about=f"{name}: referring expressions, as the refer toolkit lays them out (github.com/lichengunc/refer)",
        images=COCO_2014,
        files=dict.fromkeys(splits, (refs, "instances.json")),
        read=refcoco.read,
    )


DATASETS: dict[str, DataSet] = {
    "coco_captions": DataSet(
        about="COCO captions of 2014 or 2017 (cocodataset.org)",
        images=f"{COCO_2014}; or those of 2017",
        files={
            split: (OR.join(f"captions_{split}{year}.json" for year in (2014, 2017)),) for split in ("train", "val")
        },
        read=coco_captions.read,
    ),
    "visual_genome": DataSet(
        about="Visual Genome's region descriptions as captions (homes.cs.washington.edu/~ranjay/visualgenome)",
        images="VG_100K/1.jpg and VG_100K_2/2.jpg; key 1",
        files={"train": ("region_descriptions.json",)},
        read=visual_genome.read_regions,
    ),
    "visual_genome_qa": DataSet(
        about="Visual Genome's questions (homes.cs.washington.edu/~ranjay/visualgenome)",
        images="VG_100K/1.jpg and VG_100K_2/2.jpg; key 1",
        files={"train": ("question_answers.json",)},
        read=visual_genome.read_questions,
    ),
    "conceptual_captions": DataSet(
        about="Conceptual Captions, as published (ai.google.com/research/ConceptualCaptions) or as ViLT lists it",
        images="as img2dataset stores the table's rows, 00000/000000012.jpg or tars; key 12, the row from 0. "
        "ViLT's list: folders as listed; the key is the path without extension",
        files={
            "train": ("Train_GCC-training.tsv|train_annot.json",),
            "val": ("Validation_GCC-1.1.0-Validation.tsv|val_annot.json",),
        },
        read=web_captions.read,
        optional=frozenset({"val"}),
    ),
    "sbu": DataSet(
        about="SBU captions, as published (www.cs.rice.edu/~vo9/sbucaptions) or as ViLT lists it",
        images="as img2dataset stores the lines' addresses, 00000/000000012.jpg or tars; key 12, the line from 0. "
        "ViLT's list: folders as listed; the key is the path without extension",
        files={"train": ("annot.json|SBU_captioned_photo_dataset_captions.txt",)},
        read=web_captions.read_sbu,
    ),
    "vqav2": DataSet(
        about="VQA v2 on COCO's images (visualqa.org)",
        images=f"{COCO_2014}; test2015 too",
        files={
            "train": (_VQA.format("train2014"), _VQA_ANSWERS.format("train2014")),
            "val": (_VQA.format("val2014"), _VQA_ANSWERS.format("val2014")),
            "test": (_VQA.format("test2015"),),
            "test-dev": (_VQA.format("test-dev2015"),),
        },
        read=vqa.read,
    ),
    "gqa": DataSet(
        about="GQA: balanced questions, all of them, and those to be submitted (cs.stanford.edu/people/dorarad/gqa)",
        images="images/2354786.jpg; key 2354786",
        files={
            **{split: (f"{split}_balanced_questions.json",) for split in ("train", "val", "testdev")},
            "train_all": ("train_all_questions",),
            "val_all": ("val_all_questions.json",),
            "test": ("submission_all_questions.json",),
        },
        read=gqa.read,
        optional=frozenset({"train_all", "val_all", "test"}),
    ),
    "nlvr2": DataSet(
        about="NLVR2 (github.com/lil-lab/nlvr/tree/master/nlvr2/data)",
        images="images/train/0/train-10171-0-img0.png, dev/dev-850-0-img0.png, test1/...; key dev-850-0-img0",
        files={split: (f"{split}.json",) for split in ("train", "dev", "test1")},
        read=nlvr2.read,
    ),
    "snli_ve": DataSet(
        about="SNLI-VE on Flickr30k's images (github.com/necla-ml/SNLI-VE)",
        images=FLICKR30K,
        files={split: (f"snli_ve_{split}.jsonl",) for split in ("train", "dev", "test")},
        read=snli_ve.read,
    ),
    "vcr": DataSet(
        about="VCR (visualcommonsense.com)",
        images="vcr1images/lsmdc_.../...@0.jpg with its .json beside it; key lsmdc_.../...@0, the path in vcr1images",
        files={split: (f"{split}.jsonl",) for split in ("train", "val", "test")},
        read=vcr.read,
    ),
    "refcoco": _refcoco("refs(unc).p", ("train", "val", "testA", "testB"), "RefCOCO"),
    "refcoco+": _refcoco("refs(unc).p", ("train", "val", "testA", "testB"), "RefCOCO+"),
    "refcocog": _refcoco("refs(umd).p", ("train", "val", "test"), "RefCOCOg, the split of UMD"),
    "coco": DataSet(
        about=f"COCO in {_KARPATHY}",
        images=COCO_2014,
        files=dict.fromkeys(("train", "restval", "val", "test"), ("dataset_coco.json",)),
        read=karpathy.read,
    ),
    "flickr30k": DataSet(
        about=f"Flickr30k in {_KARPATHY}",
        images=FLICKR30K,
        files=dict.fromkeys(("train", "val", "test"), ("dataset_flickr30k.json",)),
        read=karpathy.read,
    ),
}


def load(name: str, split: str, root: str | Path) -> Split:
    """Read a split, or several with + between them, such as "train+val".

    Args:
        name: of the data set, out of DATASETS.
        root: the folder of its annotations, or the one above a folder that is named after it.

    Raises:
        DataError: the name or the split is unknown, or a file is absent or of another format.
    """
    known = data_set(name)
    parts = [_read(known, part, _paths(name, part, Path(root))) for part in split.split("+")]
    return Split(name, split, _joined(parts))


def _read(known: DataSet, split: str, paths: Sequence[Path]) -> Sequence[Example]:
    examples = known.read(split, paths)
    if not len(examples):
        raise DataError(f"{paths[0]} has no examples of the split {split!r}; wanted {known.about}. {AS_PUBLISHED}")
    return examples


def _joined(parts: Sequence[Sequence[Example]]) -> Sequence[Example]:
    if len(parts) == 1:
        return parts[0]
    captions = [part for part in parts if isinstance(part, Captions)]
    return Captions.joined(captions) if len(captions) == len(parts) else Joined(parts)


class Joined(Sequence[Example]):
    """Sequences of examples end to end."""

    def __init__(self, parts: Sequence[Sequence[Example]]) -> None:
        self.parts = [part for part in parts if len(part)]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, at: int) -> Example: ...

    @overload
    def __getitem__(self, at: slice) -> list[Example]: ...

    def __getitem__(self, at: int | slice) -> Example | list[Example]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        left = at + len(self) if at < 0 else at
        for part in self.parts:
            if 0 <= left < len(part):
                return part[left]
            left -= len(part)
        raise IndexError(f"{at} is not among {len(self):,} examples")

    def __iter__(self) -> Iterator[Example]:
        for part in self.parts:
            yield from part


def data_set(name: str) -> DataSet:
    """The data set of a name; raises DataError where there is none."""
    if name not in DATASETS:
        near = did_you_mean(name, DATASETS)
        raise DataError(f"there is no data set {name!r}; choose from {', '.join(DATASETS)}{near}")
    return DATASETS[name]


def find(name: str, file: str, root: Path) -> Path | None:
    """Where one of a data set's files lies, under the first of its names that is there; None if it is not."""
    places = (folder / each for folder in (root / name, root) for each in file.split(OR))
    return next((place for place in places if place.exists()), None)


def _paths(name: str, split: str, root: Path) -> list[Path]:
    files = data_set(name).files
    if split not in files:
        raise DataError(f"{name} has no split {split!r}; choose from {', '.join(files)}.")
    found = {file: find(name, file, root) for file in files[split]}
    missing = [" or ".join(file.split(OR)) for file, path in found.items() if path is None]
    if missing:
        raise DataError(
            f"{root} lacks {', '.join(missing)} of {name} ({split}). {AS_PUBLISHED}"
            if root.is_dir()
            else f"there is no folder {root}; wanted the annotations of {name}. Name them with --annotations or --root."
        )
    return [path for path in found.values() if path]
