"""Folders as data sets publish them: official ids as keys, the rest passed over."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.sources import SourceError
from tests.unit.pipeline.sources.helpers import bytes_by_key, keys_of, put, source_of, tar_of

COCO_MINI = Path(__file__).parents[5] / "shared/data/detection/coco_mini"


@pytest.mark.parametrize(
    ("layout", "names", "keys", "passed_over"),
    [
        (
            "coco",
            ["train2014/COCO_train2014_000000000009.jpg", "images/val2014/COCO_val2014_000000000042.jpg", "a.jpg"],
            {"9", "42"},
            1,
        ),
        ("coco", ["val2017/000000039769.jpg", "9.jpg", "annotations/x.json", "000000000000.jpg"], {"39769", "0"}, 2),
        ("vg", ["VG_100K/1.jpg", "images/VG_100K_2/2410000.jpg", "VG_100K/x.jpg", "3.jpg"], {"1", "2410000"}, 2),
        ("flickr30k", ["flickr30k-images/1000092795.jpg", "results.csv"], {"1000092795"}, 1),
        (
            "cc3m",
            ["00000/000000012.jpg", "00331/003310001.webp", "00000/000000012.json"],
            {"000000012", "003310001"},
            1,
        ),
    ],
)
def test_keys_are_the_official_ids(
    tmp_path: Path, layout: str, names: list[str], keys: set[str], passed_over: int
) -> None:
    listing = source_of(put(tmp_path, *names), layout=layout).list()
    assert {ref.key for ref in listing.refs} == keys
    assert listing.passed_over == passed_over
    assert {source_of(tmp_path, layout=layout).read(ref.uri).decode() for ref in listing.refs} <= set(names)


def test_the_root_may_be_the_innermost_folder(tmp_path: Path) -> None:
    put(tmp_path, "VG_100K/5.jpg", "00007/000070001.jpg")
    assert keys_of(tmp_path / "VG_100K", layout="vg") == ["5"]
    assert keys_of(tmp_path / "00007", layout="cc3m") == ["000070001"]


def test_cc3m_tars(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"0000{number}.tar").write_bytes(tar_of(f"0000{number}0000.jpg", f"0000{number}0000.json"))
    put(tmp_path, "00000_stats.json", "00000.parquet")
    source = source_of(tmp_path, layout="cc3m")
    assert bytes_by_key(source) == {"000000000": b"000000000.jpg", "000010000": b"000010000.jpg"}


def test_cc3m_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.sources.files.read_address", lambda *_: b"x")
    table = tmp_path / "Train_GCC-training.tsv"
    table.write_text(
        "a\u2028cat\thttps://host/1.jpg\na dog\thttp://host/2?x=1\nno\thttps://host/skip.gif\n", newline=""
    )
    listing = source_of(table, layout="cc3m", exclude="*.gif").list()
    assert [(ref.key, ref.uri) for ref in listing.refs] == [("0", "https://host/1.jpg"), ("1", "http://host/2?x=1")]
    assert listing.passed_over == 1
    table.write_text("a cat\tnowhere\n")
    with pytest.raises(SourceError, match="line 1 is .*wanted a table of caption, tab, address"):
        source_of(table, layout="cc3m").list()


def test_nothing_of_a_layout_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match="holds no images; 1 files passed over .1 not as vg names its images"
    ) as caught:
        source_of(put(tmp_path, "a.jpg"), layout="vg").list()
    assert "\n" not in str(caught.value)


def test_coco_of_both_years_clashes(tmp_path: Path) -> None:
    put(tmp_path, "train2014/COCO_train2014_000000000009.jpg", "train2017/000000000009.jpg")
    with pytest.raises(SourceError, match="same key '9'.*leave one out with --exclude"):
        source_of(tmp_path, layout="coco").list()
    assert keys_of(tmp_path, layout="coco", exclude="train2014/*") == ["9"]


@pytest.mark.skipif(not COCO_MINI.exists(), reason="the real COCO sample is not beside this checkout (../shared)")
def test_the_layout_names_images_as_the_annotations_do() -> None:
    annotations = COCO_MINI / "annotations/instances_val2017.json"
    listed = keys_of(annotations, image_root=str(COCO_MINI / "val2017"))
    assert set(keys_of(COCO_MINI, layout="coco")) >= set(listed)
