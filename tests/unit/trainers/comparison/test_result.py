"""A cell's row on disk: whole or not at all, and typed columns that are all explained."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.trainers.comparison.cells import cached, result
from trainers.comparison.result import SCHEMA, CellResult, save, saved, write_table

DOCS = Path(__file__).parents[4] / "docs" / "comparison.md"


def test_a_row_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    assert saved(tmp_path / "cell") is None
    row = cached(score=61.25)
    save(row, tmp_path / "cell")
    found = saved(tmp_path / "cell")
    assert found is not None
    assert (found.cell, found.score, found.scores) == (row.cell, 61.25, row.scores)
    assert list(found.curve) == list(row.curve) and tuple(found.specs) == row.specs


def test_a_row_that_was_not_written_to_its_end_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        save(result(score=float("nan")), tmp_path)
    assert saved(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", '{"cell": ', "[1, 2]", '{"score": "abc"}', '{"of another version": 1}'])
def test_a_file_that_holds_no_row_is_set_aside_and_its_cell_is_not_finished(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(result(), tmp_path)
    (tmp_path / "result.json").write_text(content)
    assert saved(tmp_path) is None and (tmp_path / "result.damaged").read_text() == content
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "result.json holds no result (" in told and "result.damaged now" in told
    save(result(), tmp_path)
    assert saved(tmp_path) is not None


def test_the_table_is_typed_whatever_cells_lack(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    write_table([cached(), result(), CellResult("x", "ViLT, pixels", error="it broke")], path)
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    assert table.schema.field("score").type == pa.float64() and table.schema.field("seed").type == pa.int64()
    rows = table.to_pylist()
    assert dict(rows[0]["scores"]) == {"accuracy": 50.0, "yes/no": 60.0}
    assert rows[0]["curve"][1] == {"step": 20, "loss": None, "score": 45.0}
    assert (rows[2]["error"], rows[2]["score"], rows[2]["specs"]) == ("it broke", None, [])
    assert [each.name for each in tmp_path.iterdir()] == ["results.parquet"]


def test_every_column_is_explained_in_the_file_and_in_the_docs() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert SCHEMA.names == [each.name for each in fields(CellResult)]
    for field in SCHEMA:
        about = field.metadata[b"about"].decode()
        assert f"| `{field.name}` | {about} |" in text, field.name


def test_the_cost_is_all_work_before_the_first_answer() -> None:
    assert cached(pretraining_hours=1.0).cost_hours == 0.25 + 1.0 + 0.5
    assert result(extraction_hours=None).cost_hours is None
