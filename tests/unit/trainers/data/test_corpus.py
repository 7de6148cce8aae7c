"""Plain text by line, and data of a single modality."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainers.data import corpus
from trainers.data.corpus import Corpus, CorpusError
from trainers.data.probes import ProbeDataError, read_glue, read_image_folder


def test_lines_of_several_files_are_read_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK", 5)
    (tmp_path / "a.doc").write_text("one line\n\n  two \nthree", encoding="utf-8")
    (tmp_path / "b.doc").write_text("väter\n", encoding="utf-8")
    found = Corpus(tmp_path / "a.doc", tmp_path / "b.doc")
    assert list(found) == ["one line", "two", "three", "väter"] and found[-1] == "väter"
    with pytest.raises(IndexError):
        found[4]


def test_a_corpus_that_is_not_there_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="cannot be read .*; wanted text with one document a line"):
        Corpus(tmp_path / "no.doc")
    (tmp_path / "empty.doc").touch()
    with pytest.raises(CorpusError, match="cannot be read"):
        Corpus(tmp_path / "empty.doc")


def test_images_have_the_class_of_their_folder(tmp_path: Path) -> None:
    for name in ("train/cat/1.png", "train/cat/2.jpg", "train/ape/1.png", "train/ape/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = read_image_folder(tmp_path, "train")
    labels = {each.id: each.truth["label"] for each in found.examples}
    assert labels == {"train/ape/1": 0, "train/cat/1": 1, "train/cat/2": 1}
    with pytest.raises(ProbeDataError, match="has no images; wanted one folder a class"):
        read_image_folder(tmp_path, "test")


def test_glue_tables_are_read_by_their_columns(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text('sentence\tlabel\na "fine film\t1\nno\t0\n', encoding="utf-8")
    found = read_glue(tmp_path, "sst2", "dev")
    assert [(each.texts, each.truth) for each in found.examples] == [
        (('a "fine film',), {"label": 1}),
        (("no",), {"label": 0}),
    ]
    (tmp_path / "cola.tsv").write_text("gj04\t1\t\tOur friends.\ngj04\t0\t*\tThem.\n", encoding="utf-8")
    assert [each.truth["label"] for each in read_glue(tmp_path, "cola", "cola").examples] == [1, 0]
    (tmp_path / "rte.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n", encoding="utf-8")
    assert read_glue(tmp_path, "rte", "rte").examples[0].texts == ("a", "b")


def test_other_tables_are_told(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text("text\tlabel\nx\t1\n", encoding="utf-8")
    with pytest.raises(ProbeDataError, match="row 1: 'sentence'; wanted the columns sentence, label"):
        read_glue(tmp_path, "sst2", "dev")
    with pytest.raises(ProbeDataError, match="cannot be read"):
        read_glue(tmp_path, "sst2", "test")
    with pytest.raises(ProbeDataError, match="GLUE task 'x' is not known"):
        read_glue(tmp_path, "x", "dev")
