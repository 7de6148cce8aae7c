"""Sentences in the official files of COCO captions, Karpathy's splits, SNLI-VE and NLVR2."""

from __future__ import annotations

from pathlib import Path

from trainers.data.files import write_json, write_json_lines
from trainers.scenes.official import PARTS, SPLITS, Scenes, Written, coco_image, coco_path, image_id, linked
from trainers.scenes.saying import LABELS, captions, hypothesis, statements

STATEMENTS = 8  # about two pairs of pictures


def write_coco_captions(scenes: Scenes, folder: Path) -> Written:
    counts = {}
    for split in ("train", "val"):
        rows = [
            {"image_id": image_id(scene), "id": image_id(scene) * 10 + at, "caption": said}
            for scene in scenes[split]
            for at, said in enumerate(captions(scene))
        ]
        images = [coco_image(scene, split) for scene in scenes[split]]
        write_json(
            folder / f"captions_{PARTS[split]}.json",
            {"info": {}, "licenses": [], "images": images, "annotations": rows},
        )
        counts[split] = len(rows)
    return Written(counts)


def write_karpathy(scenes: Scenes, folder: Path, name: str) -> Written:
    rows = []
    for split in SPLITS:
        for scene in scenes[split]:
            number, said = image_id(scene), captions(scene)
            path = coco_path(scene, split).split("/")
            own = {"filepath": path[0], "filename": path[1], "cocoid": number}
            sentences = [
                {"raw": text, "tokens": _tokens(text), "imgid": scene.number, "sentid": number * 10 + at}
                for at, text in enumerate(said)
            ]
            # COCO's training takes "restval" as well, which wants to be there
            of = "restval" if name == "coco" and split == "train" and scene.number % 4 == 3 else split
            row = {"imgid": scene.number, "split": of, "sentids": [each["sentid"] for each in sentences]}
            row |= {"sentences": sentences}
            rows.append({**own, **row} if name == "coco" else {"filename": f"{number}.jpg", **row})
    write_json(folder / f"dataset_{name}.json", {"images": rows, "dataset": name})
    return Written({split: len(scenes[split]) for split in SPLITS})


def _tokens(text: str) -> list[str]:
    return text.lower().replace(",", "").rstrip(".").split()


def write_snli_ve(scenes: Scenes, folder: Path) -> Written:
    counts = {}
    for name, split in {"train": "train", "dev": "val", "test": "test"}.items():
        rows = []
        for scene in scenes[split]:
            key, premise = str(image_id(scene)), captions(scene)[0]
            said = {label: hypothesis(scene, label) for label in LABELS}
            rows += [
                {
                    "Flickr30K_ID": key,
                    "captionID": f"{key}.jpg#0",
                    "pairID": f"{key}.jpg#0r1{label[0]}",
                    "gold_label": label,
                    "annotator_labels": [label],
                    "sentence1": premise,
                    "sentence2": text,
                }
                for label, text in said.items()
                if text is not None and None not in said.values()
            ]
        write_json_lines(folder / f"snli_ve_{name}.jsonl", rows)
        counts[name] = len(rows)
    return Written(counts)


def write_nlvr2(scenes: Scenes, folder: Path, images: Path) -> Written:
    """Two pairs a sentence, of which one is right; four scenes, and STATEMENTS sentences, each."""
    counts = {}
    for name, split in {"train": "train", "dev": "val", "test1": "test"}.items():
        rows = []
        for number in range(len(scenes[split]) // 4):
            four = scenes[split][4 * number : 4 * number + 4]
            pairs = ((four[0], four[1]), (four[2], four[3]))
            for at, pair in enumerate(pairs):
                for side, scene in enumerate(pair):
                    source, picture = images / "coco" / coco_path(scene, split), f"{name}-{number}-{at}-img{side}.png"
                    linked(source, images / "nlvr2" / "images" / _nlvr2_folder(name, number) / picture)
            more: dict[str, object] = {"left_url": "", "right_url": "", "writer": "0", "synset": "", "query": ""}
            more |= {"directory": number % 100} if name == "train" else {}
            rows += [
                {"identifier": f"{name}-{number}-{at}-{nth}", "sentence": said, "label": str(of == (at == 0)), **more}
                for nth, (said, of) in enumerate(statements(*pairs, STATEMENTS))
                for at in range(len(pairs))
            ]
        write_json_lines(folder / f"{name}.json", rows)
        counts[name] = len(rows)
    return Written(counts)


def _nlvr2_folder(name: str, number: int) -> str:
    return f"train/{number % 100}" if name == "train" else name
