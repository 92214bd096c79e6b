"""docs/methods.md is what the presets and the axis values say; `make methods` writes it anew."""

from pathlib import Path

from ablora.config import catalogue
from presets import every

ROOT = Path(__file__).parents[1]


def test_the_document_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == catalogue.text()


def test_every_preset_has_its_row_and_its_count() -> None:
    rows = {row.split("`")[1]: row for row in catalogue.rows() if row.startswith("| `")}
    assert list(rows) == every()
    assert "| 583,680 | yes |" in rows["lora"], "28 modules of pico at rank 40"
    assert "| no |" in rows["goat"]
