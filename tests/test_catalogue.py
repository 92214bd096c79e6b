"""docs/methods.md is what the presets and the axis values say; `make methods` writes it anew."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from ablora.config import catalogue
from ablora.method.attach import attach
from ablora.method.formula import Formula, formula, trained_in
from ablora.method.member import Member
from ablora.method.structure._base import Shape
from ablora.spec import AdapterSpec
from ablora.spectra.library import Library
from presets import every, method, names

ROOT = Path(__file__).parents[1]


def table(lines) -> dict[str, dict[str, str]]:
    """Rows by method, each by column."""
    head, _, *rows = (line.strip("|").split("|") for line in lines)
    assert all(len(row) == len(head) for row in rows), "a cell with a bar in it"
    found = [dict(zip(map(str.strip, head), map(str.strip, row))) for row in rows]
    return {row["method"].strip("`"): row for row in found}


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, str]]:
    return table(catalogue.low_rank([preset for preset in catalogue.presets() if "init" in preset.method]))


def test_the_document_is_what_the_code_says() -> None:
    assert (ROOT / "docs" / "methods.md").read_text(encoding="utf-8") == catalogue.text()


def test_every_preset_has_its_row(rows) -> None:
    others = table(catalogue.others([preset for preset in catalogue.presets() if "init" not in preset.method]))
    assert list(rows) == names()
    assert sorted([*rows, *others]) == every()
    for name, row in rows.items():
        assert all(row[column] for column in row), name
        assert row["equation"].startswith("`y = "), name
        assert row["what it is"] not in row["source"], name
    assert others["full"]["equation"] == "`W <- W - lr * step(dL/dW)`"


def test_a_row_says_how_it_counts_and_what_becomes_of_it(rows) -> None:
    lora, goat = rows["lora"], rows["goat"]
    assert (lora["on pico"], lora["trained"]) == ("583,680", "`r (m + n)`"), "28 modules of pico at rank 40"
    assert (lora["merges"], lora["PEFT"], goat["merges"], goat["PEFT"]) == ("yes", "yes", "no", "no")
    assert (goat["scaling"], goat["source"]) == ("`goat` (eta=1)", "Fan et al. 2025, arXiv:2502.16894")
    assert goat["differs"] == "[svd_segments](#svd_segments), [goat](#goat), [experts](#experts)"
    assert rows["hydralora"]["trained"] == "`r (m + n/4) + 4 n`"


def test_links_lead_to_headings() -> None:
    text = catalogue.text()
    headings = {line.strip("#` ").lower() for line in text.splitlines() if line.startswith("#")}
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= headings


@pytest.mark.parametrize("name", names())
def test_formulas_count_what_is_trained_in_modules_of_any_shape(name) -> None:
    chosen = method(name) if not hasattr(method(name).init, "calibration") else method("lora")
    found, rank = formula(chosen), 40
    spelt = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", str(found))
    for out_features, in_features in ((64, 48), (40, 96), (96, 40)):
        layer = nn.Linear(in_features, out_features, dtype=torch.float64)
        member = Member(chosen, rank, AdapterSpec(targets=("0",), compute_dtype="float64"), 0)
        (record,) = attach(nn.Sequential(layer), [member], Library(None)).records[0].values()
        at = {"m": out_features, "n": in_features, "r": rank}
        assert record.parameters == found.at(**at) == trained_in(chosen, Shape(out_features, in_features, rank))
        assert eval(spelt, {}, at) == record.parameters


@pytest.mark.parametrize(
    ("per_rank", "fixed", "written"),
    [
        ((1, 1, 0), (0, 0, 0), "r (m + n)"),
        ((1, 1, 1), (0, 0, 0), "r (m + n + 1)"),
        ((1, 0, 0), (0, 9, 1), "r m + 9 n + 1"),
        ((0, 0, 1), (1, 0, 0), "r + m"),
        ((0, 0, 2), (0, 0, 3), "r 2 + 3"),
        ((1, Fraction(3, 4), 0), (0, 4, 0), "r (m + 3 n/4) + 4 n"),
        ((0, 0, 0), (0, 0, 0), "0"),
    ],
)
def test_a_formula_is_written_as_one_would(per_rank, fixed, written) -> None:
    assert str(Formula(tuple(map(Fraction, per_rank)), tuple(map(Fraction, fixed)))) == written


@pytest.mark.parametrize(
    ("header", "about", "source"),
    [
        ("LoRA: a random A. Hu et al. 2021, arXiv:2106.09685", "a random A", "Hu et al. 2021, arXiv:2106.09685"),
        ("A: b. c. Liu and Luo 2024, arXiv:1 part 2", "b. c", "Liu and Luo 2024, arXiv:1 part 2"),
        ("The middle: a control. sufenlp/MiLoRA svd.py, mode mid", "a control", "sufenlp/MiLoRA svd.py, mode mid"),
        ("GOAT at s = alpha / r_e, as is. arXiv:2502.16894", "GOAT at s = alpha / r_e, as is", "arXiv:2502.16894"),
        ("Full fine-tuning: every weight", "every weight", ""),
    ],
)
def test_a_header_ends_with_its_reference(header, about, source) -> None:
    assert catalogue.divided(header) == (about, source)
