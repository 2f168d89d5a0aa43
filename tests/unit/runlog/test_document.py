"""docs/tables.md is what the schema says."""

from __future__ import annotations

from pathlib import Path

from trainscope.runlog.document import markdown
from trainscope.runlog.tables import TABLES

PAGE = Path(__file__).parents[3] / "docs" / "tables.md"


def test_the_page_is_made_from_the_schema() -> None:
    """If it fails: python -m trainscope.runlog.document > docs/tables.md"""
    assert PAGE.read_text(encoding="utf-8") == markdown()


def test_every_column_has_a_meaning_and_a_row() -> None:
    page = markdown()
    for table in TABLES.values():
        section = page.partition(f"\n## {table.name}\n")[2].partition("\n## ")[0]
        for column in table.columns:
            assert len(column.meaning) > 3
            assert f"| `{column.name}` |" in section
