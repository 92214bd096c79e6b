"""Nominal 95 % intervals cover 93 to 97 %, and a test at 0.05 rejects in as many: simulated, and as documented."""

import re
from pathlib import Path

import calibration
import numpy as np
import pytest

DOCUMENT = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text()


@pytest.mark.parametrize(("seeds", "ratio", "interaction"), calibration.GRID)
def test_intervals_cover_and_tests_are_nominal(seeds: int, ratio: float, interaction: float) -> None:
    """6000 studies: the Monte-Carlo standard error is 0.0028, so a method that covers 0.95 leaves 0.93-0.97 once in
    10^12, and one that covers 0.92 stays within it once in 5000."""
    rng = np.random.default_rng([seeds, int(10 * ratio), int(interaction)])
    found = calibration.covered(calibration.normal(seeds, ratio, interaction, 6000, 20, rng))
    assert 0.93 < found.primary < 0.97
    assert 0.03 < found.rejected < 0.07
    assert 0.93 < found.new_items < 0.97
    if interaction and ratio < 1:
        assert found.primary_on_new < 0.9, "the interval on these items does not speak of others"


@pytest.mark.parametrize("shape", calibration.SHAPES)
def test_they_cover_with_tails_weights_and_right_or_wrong_answers(shape: str) -> None:
    found = calibration.covered(calibration.shaped(shape, 3, 6000, 20, np.random.default_rng(5)))
    assert 0.93 < found.primary < 0.975
    assert 0.93 < found.new_items < 0.98


def test_the_document_says_what_covers() -> None:
    rows = re.findall(r"^\| (?:3|5|10) \| [^|]+ \| [01] \| ((?:[\d.]+ \| ){3}[\d.]+) \|$", DOCUMENT, re.M)
    shares = np.array([[float(x) for x in row.split(" | ")] for row in rows])
    assert shares.shape == (len(calibration.GRID) + 3 * len(calibration.SHAPES), 4)
    assert shares[:, [0, 2]].min() > 0.93
    assert shares[:, [0, 2]].max() < 0.97


@pytest.mark.slow
def test_the_document_has_the_numbers_that_the_program_prints() -> None:
    printed = [
        line for line in "\n".join((*calibration.design(), *calibration.report())).splitlines() if line.startswith("|")
    ]
    assert not [line for line in printed if line not in DOCUMENT.splitlines()]
