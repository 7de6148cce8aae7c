"""Every data set out of its official files: the tiny ones of `tests.official_files`, and real samples."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources import SourceConfig, open_source
from tests.official_files import (
    COLOURS,
    SIDE,
    SNLI_LABELS,
    WRITERS,
    Files,
    captions_of,
    colour_of,
    write_conceptual_captions_vilt,
    write_gqa,
    write_nlvr2,
    write_refcoco,
    write_vcr,
    write_visual_genome,
    write_vqa,
)
from trainers.data import DATASETS, DataError, load
from trainers.data.files import write_json
from trainers.data.karpathy import one_a_text
from trainers.data.keys import matched, present
from trainers.data.nlvr2 import sentence_of
from trainers.data.refcoco import read_proposals
from trainers.data.snli_ve import LABELS
from trainers.data.vcr import check_metadata, read_metadata

N = 6
EXAMPLES = {  # of the first split, for N pictures
    **dict.fromkeys(DATASETS, N),
    **dict.fromkeys(("coco_captions", "visual_genome", "vqav2", "gqa"), 2 * N),
    "snli_ve": 3 * N,
    "coco": 2 * N,  # train and restval
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), 4 * N),
}
LAYOUTS = {"vqav2": "coco", "coco": "coco", "coco_captions": "coco", "refcoco+": "coco", "visual_genome": "vg"}
LAYOUTS |= {"snli_ve": "flickr30k", "flickr30k": "flickr30k"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    return {name: write(tmp_path_factory.mktemp("set"), N) for name, write in WRITERS.items()}


def source_keys(files: Files, name: str, layout: str | None = None) -> list[str]:
    folder = files.images / "train" if name == "conceptual_captions" else files.images
    return [ref.key for ref in open_source(SourceConfig(images=str(folder), layout=layout)).list().refs]  # type: ignore[arg-type]


# The tiny ones


def test_all_have_a_writer() -> None:
    assert WRITERS.keys() == DATASETS.keys()


@pytest.mark.parametrize("name", DATASETS)
def test_ids_are_unique_and_every_image_is_there(written: dict[str, Files], name: str) -> None:
    split = load(name, "train", written[name].annotations)
    ids = [example.id for example in split.examples]
    assert len(ids) == EXAMPLES[name] == len(set(ids))
    assert all(text for example in split.examples for text in example.texts)
    assert matched(split.images(), source_keys(written[name], name)).keys() == set(split.images())


@pytest.mark.parametrize("name", LAYOUTS)
def test_keys_are_those_of_the_source_of_that_layout(written: dict[str, Files], name: str) -> None:
    keys = {key for split in DATASETS[name].files for key in load(name, split, written[name].annotations).images()}
    assert keys == set(source_keys(written[name], name, LAYOUTS[name]))


def test_rows_of_conceptual_captions_are_numbered_as_the_source_numbers_them(written: dict[str, Files]) -> None:
    files = written["conceptual_captions"]
    table = files.annotations / "Train_GCC-training.tsv"
    split = load("conceptual_captions", "train", files.annotations)
    text = table.read_text(encoding="utf-8").replace("https://example.org/", f"file://{files.images}/")
    table.with_name("here.tsv").write_text(text, encoding="utf-8")
    source = open_source(SourceConfig(images=str(table), layout="cc3m"))
    assert [ref.key for ref in source.find(False)] == split.images()  # type: ignore[attr-defined]
    assert split.examples[5].texts == (f"a {colour_of(5)} square .",)


def test_the_list_of_vilt_names_paths(tmp_path: Path) -> None:
    files = write_conceptual_captions_vilt(tmp_path, 3)
    split = load("conceptual_captions", "val", files.annotations)
    assert split.images() == source_keys(Files(files.annotations, files.images), "")[3:]


def test_vqa(tmp_path: Path) -> None:
    root = write_vqa(tmp_path, 2).annotations
    example = load("vqav2", "train", root).examples[0]
    assert (example.id, example.images, example.texts) == ("1000", ("1",), ("What color is it?",))
    assert example.truth["answers"] == ("red",) * 7 + ("thing", "picture", "a red")
    assert example.truth["scores"] == {"red": 1.0, "thing": 0.3, "picture": 0.3, "a red": 0.3}
    assert (example.truth["answer_type"], example.truth["question_type"]) == ("other", "what color is")
    assert example.truth["multiple_choice_answer"] == "red"
    test = load("vqav2", "test", root)
    assert len(test.examples) == 4 and not any(example.truth for example in test.examples)


def test_several_splits_are_read_as_one(tmp_path: Path) -> None:
    root = write_vqa(tmp_path, 2).annotations
    both = load("vqav2", "train+val", root)
    train, val = (list(load("vqav2", name, root).examples) for name in ("train", "val"))
    assert list(both.examples) == train + val == [both.examples[at] for at in range(8)]
    assert both.examples[-1] == val[-1] and both.examples[3:5] == [train[3], val[0]] and len(both.examples) == 8
    with pytest.raises(IndexError, match="8 is not among 8 examples"):
        both.examples[8]


def test_gqa(tmp_path: Path) -> None:
    root = write_gqa(tmp_path, 2).annotations
    open_one, binary = load("gqa", "testdev", root).examples[:2]
    assert open_one.images == ("2354790",) and open_one.texts == ("What color is it?",)
    assert open_one.truth == {"answer": "red", "scores": {"red": 1.0}, "structural": "query", "balanced": True}
    assert binary.truth["structural"] == "verify" and binary.truth["answer"] == "no"


def test_gqa_in_parts_is_read_in_order_of_their_numbers(tmp_path: Path) -> None:
    question = {"question": "What?", "imageId": "1"}
    for part in (0, 2, 10):
        write_json(tmp_path / f"train_all_questions/train_all_questions_{part}.json", {f"q{part}": question})
    split = load("gqa", "train_all", tmp_path)
    assert [example.id for example in split.examples] == ["q0", "q2", "q10"]
    assert split.examples[0].truth == {}


def test_nlvr2(tmp_path: Path) -> None:
    first, second = load("nlvr2", "dev", write_nlvr2(tmp_path, 2).annotations).examples
    assert first.images == ("dev-1-0-img0", "dev-1-0-img1") and second.images[0] == "dev-1-1-img0"
    assert (first.truth, second.truth) == ({"label": True}, {"label": False})
    assert first.texts == second.texts and sentence_of(first.id) == sentence_of(second.id) == "dev-1-0"


def test_snli_ve_knows_the_label_and_not_the_premise(written: dict[str, Files]) -> None:
    examples = load("snli_ve", "dev", written["snli_ve"].annotations).examples[:3]
    assert [LABELS[example.truth["label"]] for example in examples] == list(SNLI_LABELS)
    assert examples[1].texts == ("It is heavy.",)


def test_vcr(tmp_path: Path) -> None:
    files = write_vcr(tmp_path, 4)
    example = load("vcr", "val", files.annotations).examples[2]
    truth = example.truth
    assert example.texts[0] == "What color is person 0 ?" and len(example.texts) == 9
    assert truth["tokens"][0] == ("What", "color", "is", (0,), "?")
    assert truth["tokens"][1 + truth["answer"]] == ((0,), "is", colour_of(6), ".")
    assert example.texts[5 + truth["rationale"]] == f"I see person 0 and person 0 and cup 1 which is {colour_of(6)} ."
    metadata = read_metadata(files.images / truth["metadata"])
    assert metadata.boxes.tolist() == [[4, 16, 30, 42], [34, 20, 60, 46]] and metadata.size == (SIDE, SIDE)
    assert metadata.segms[1][0].tolist()[0] == [34, 20] and metadata.scores.tolist() == [np.float32(0.9)] * 2
    check_metadata(example, metadata)
    test = load("vcr", "test", files.annotations).examples[0]
    assert "answer" not in test.truth and test.truth["objects"] == ("person", "cup")
    with pytest.raises(DataError, match="names 2 objects"):
        check_metadata(test, read_metadata(_with_names(files.images / truth["metadata"], ["dog", "cup"])))


def _with_names(path: Path, names: list[str]) -> Path:
    content = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**content, "names": names})
    return path


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_refcoco(tmp_path: Path, name: str) -> None:
    files = write_refcoco(tmp_path, 2, name)
    split = "test" if name == "refcocog" else "testB"
    first, _, third, _ = load(name, split, files.annotations).examples[:4]
    assert first.truth["box"].tolist() == [4, 16, 30, 42] and third.truth["box"].tolist() == [34, 20, 60, 46]
    assert first.truth["candidates"].tolist() == [[4, 16, 30, 42], [34, 20, 60, 46]]
    assert first.truth["candidates"] is third.truth["candidates"]
    assert first.truth["size"] == (SIDE, SIDE) and first.texts[0].split()[0] in COLOURS
    found = read_proposals(files.annotations / name / "proposal/res101_coco_minus_refer_notime_dets.json")
    assert found[first.images[0]].tolist() == [[1, 1, 61, 9], [5, 17, 31, 43], [35, 21, 61, 47]]


def test_karpathy(written: dict[str, Files]) -> None:
    root = written["coco"].annotations
    train, restval = load("coco", "train", root), load("coco", "restval", root)
    assert list(train.examples[-N:]) == list(restval.examples)
    assert train.examples[0].id == "1" and train.examples[0].texts == tuple(captions_of(0))
    single = one_a_text(restval)
    assert [example.id for example in single.examples[:3]] == [f"{N + 1}#0", f"{N + 1}#1", f"{N + 2}#0"]
    assert [example.texts for example in single.examples[:2]] == [(text,) for text in captions_of(N)]


def test_visual_genome(tmp_path: Path) -> None:
    root = write_visual_genome(tmp_path, 2).annotations
    asked = load("visual_genome_qa", "train", root).examples[1]
    assert asked.images == ("2",) and asked.truth == {"answer": "Green.", "scores": {"green": 1.0}}
    assert [example.texts[0] for example in load("visual_genome", "train", root).examples[:2]] == [
        "red circle",
        "red thing",
    ]


def test_sbu_as_published_needs_as_many_addresses(tmp_path: Path) -> None:
    captions = tmp_path / "SBU_captioned_photo_dataset_captions.txt"
    captions.write_text("a cat\na dog\n", encoding="utf-8")
    addresses = tmp_path / "SBU_captioned_photo_dataset_urls.txt"
    addresses.write_text("http://a/1.jpg\nhttp://a/2.jpg\n", encoding="utf-8")
    [first, second] = load("sbu", "train", tmp_path).examples
    assert (first.id, second.images, second.texts) == ("0", ("1",), ("a dog",))
    addresses.write_text("http://a/1.jpg\n", encoding="utf-8")
    with pytest.raises(DataError, match="has 2 lines, .* 1"):
        load("sbu", "train", tmp_path)


def test_examples_without_an_image_can_be_left_out(written: dict[str, Files]) -> None:
    split = load("conceptual_captions", "train", written["conceptual_captions"].annotations)
    kept = present(split, ["00000/000000001", "00000/000000004"])
    assert kept.images() == ["1", "4"] and kept.examples[1].texts == split.examples[4].texts
    pairs = load("nlvr2", "train", written["nlvr2"].annotations)
    assert len(present(pairs, pairs.images()[:3]).examples) == 1


# Real samples


def sample(shared: Path, tmp_path: Path, **files: str) -> Path:
    """Files of the shared samples under the names that a data set has, which are given as `a__b` for `a.b`."""
    for name, source in files.items():
        shutil.copyfile(shared / "data/annotations" / source, tmp_path / name.replace("__", "."))
    return tmp_path


REAL = {
    ("vqav2", "train"): (
        "v2_OpenEnded_mscoco_train2014_questions__json=vqav2/OpenEnded_mscoco_train2014_subset_questions.json "
        "v2_mscoco_train2014_annotations__json=vqav2/mscoco_train2014_subset_annotations.json"
    ),
    ("gqa", "testdev"): "testdev_balanced_questions__json=gqa/testdev_balanced_questions_subset.json",
    ("nlvr2", "dev"): "dev__json=nlvr2/dev_subset.json",
    ("snli_ve", "dev"): "snli_ve_dev__jsonl=snli_ve/snli_ve_sample_pairs.jsonl",
    ("snli_ve", "test"): "snli_ve_test__jsonl=snli_ve/xvnli_en_test_subset.jsonl",
    ("vcr", "val"): "val__jsonl=vcr/val_subset.jsonl",
    ("visual_genome", "train"): "region_descriptions__json=visual_genome/region_descriptions.json",
    ("visual_genome_qa", "train"): "question_answers__json=visual_genome/question_answers.json",
    ("conceptual_captions", "val"): (
        "Validation_GCC-1__1__0-Validation__tsv=conceptual_captions/Validation_GCC-1.1.0_subset.tsv"
    ),
    ("coco_captions", "val"): "captions_val2017__json=coco_captions/captions_val2017_subset.json",
    ("flickr30k", "test"): "dataset_flickr30k__json=flickr8k_karpathy/dataset_flickr8k_subset.json",
}
REAL_COUNTS = {"conceptual_captions": 200, "flickr30k": 20}
REPEATED = {"vcr": 4}  # lines that this sample has twice


@pytest.mark.parametrize(("name", "split"), REAL)
def test_real_samples_are_read(shared: Path, tmp_path: Path, name: str, split: str) -> None:
    files = dict(pair.split("=") for pair in REAL[name, split].split())
    examples = load(name, split, sample(shared, tmp_path, **files)).examples
    assert len(examples) == REAL_COUNTS.get(name, len(examples)) and len(examples) > 10
    assert len({example.id for example in examples}) == len(examples) - REPEATED.get(name, 0)
    assert all(example.images and all(example.texts) for example in examples)


def test_real_images_are_found_by_their_keys(shared: Path, tmp_path: Path) -> None:
    root = sample(shared, tmp_path, dev__json="nlvr2/dev_subset.json")
    there = open_source(SourceConfig(images=str(shared / "data/annotations/nlvr2/images"))).list().refs
    split = load("nlvr2", "dev", root)
    assert len(present(split, [ref.key for ref in there]).examples) >= 4


def test_real_vcr_metadata(shared: Path, tmp_path: Path) -> None:
    root = sample(shared, tmp_path, val__jsonl="vcr/val_1_with_metadata.jsonl")
    [example] = load("vcr", "val", root).examples
    metadata = read_metadata(shared / "data/annotations/vcr/vcr1images" / example.truth["metadata"])
    check_metadata(example, metadata)
    assert metadata.boxes.shape == (6, 4) and len(metadata.segms) == 6
    assert example.texts[0] == "Does person 0 live in this house ?"


def test_a_real_ref_as_python_2_pickled_it(shared: Path, tmp_path: Path) -> None:
    record = json.loads((shared / "data/annotations/refcoco/native_record_example.json").read_text(encoding="utf-8"))
    [ref], [annotation], [image] = record["refs"], record["instances"]["annotations"], record["instances"]["images"]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([ref], protocol=0))
    write_json(tmp_path / "instances.json", record["instances"])
    with pytest.raises(DataError, match="entry 0 .*has no annotation 1719310 of the image 581857"):
        load("refcoco", "train", tmp_path)
    ids = {"id": ref["ann_id"], "image_id": ref["image_id"]}
    write_json(
        tmp_path / "instances.json",
        {"images": [{**image, "id": ref["image_id"]}], "annotations": [{**annotation, **ids}]},
    )
    examples = load("refcoco", "train", tmp_path).examples
    assert [example.texts[0] for example in examples] == [sentence["sent"] for sentence in ref["sentences"]]
    x, y, width, height = annotation["bbox"]
    np.testing.assert_allclose(examples[0].truth["box"], [x, y, x + width, y + height], rtol=1e-6)
