"""How often the intervals of `ablora_analysis.stats` cover, simulated; the numbers of docs/statistics.md.

    python tests/analysis/calibration.py        prints its tables (about three minutes on one core)

A paired difference at seed s and item i is a_s + b_i + e_si with e of variance 1; `ratio` is the variance of a to that
of the mean of e over the items, `interaction` the variance of b. The true mean is the mean of b over the items for the
primary interval, and 0 for new items.
"""

from collections.abc import Iterator
from itertools import chain, product
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ablora_analysis import stats
from ablora_analysis.stats.bootstrap import SEEDS as BOOTSTRAP_SEEDS
from ablora_analysis.stats.bootstrap import of_table
from ablora_analysis.stats.crossed import components, linearised, new_items_half_width
from ablora_analysis.stats.intervals import half_width
from ablora_analysis.stats.paired import p_value

SEEDS, RATIOS, INTERACTIONS = (3, 5, 10), (0.1, 1.0, 10.0), (0.0, 1.0)
GRID = tuple(product(SEEDS, RATIOS, INTERACTIONS))
SHAPES = ("laplace", "weighted", "right or wrong")


class Covered(NamedTuple):
    """Shares of the simulated studies."""

    primary: float
    """The interval over seeds holds the mean over these items."""
    rejected: float
    """p < 0.05 where that mean is zero."""
    new_items: float
    """The crossed interval holds the mean over all items."""
    primary_on_new: float
    """The interval over seeds holds the mean over all items, of which it does not speak."""


class Tables(NamedTuple):
    """Simulated studies: differences [studies, seeds, items], weights [studies, items], true means on these items
    [studies] and on all."""

    value: np.ndarray
    weight: np.ndarray
    here: np.ndarray
    everywhere: float


def normal(seeds: int, ratio: float, interaction: float, studies: int, items: int, rng: np.random.Generator) -> Tables:
    a = rng.normal(0, np.sqrt(ratio / items), (studies, seeds, 1))
    b = rng.normal(0, np.sqrt(interaction), (studies, 1, items))
    value = a + b + rng.normal(size=(studies, seeds, items))
    return Tables(value, np.ones((studies, items)), b.mean((1, 2)), 0.0)


def shaped(shape: str, seeds: int, studies: int, items: int, rng: np.random.Generator) -> Tables:
    """What real metrics look like: heavy tails of seeds and items, sums weighted by answer tokens, right or wrong."""
    ones = np.ones((studies, items))
    b = rng.laplace(size=(studies, 1, items))
    if shape == "laplace":
        value = rng.laplace(0, np.sqrt(1 / items), (studies, seeds, 1)) + b + rng.laplace(size=(studies, seeds, items))
        return Tables(value, ones, b.mean((1, 2)), 0.0)
    if shape == "weighted":
        weight = 1.0 + rng.geometric(0.1, (studies, items))
        value = rng.normal(0, 0.2, (studies, seeds, 1)) + b + rng.laplace(size=(studies, seeds, items))
        here = (b[:, 0] * weight).sum(-1) / weight.sum(-1)
        return Tables(value * weight[:, None], weight, here, 0.0)
    easy = rng.uniform(0.25, 0.75, (2, studies, 1, items))
    shift = rng.normal(0, 0.05, (2, studies, seeds, 1)).clip(-0.25, 0.25)
    first, second = (rng.random((2, studies, seeds, items)) < easy + shift).astype(float)
    return Tables(first - second, ones, (easy[0] - easy[1]).mean((1, 2)), 0.0)


def covered(tables: Tables, level: float = 0.95) -> Covered:
    """From the functions that the tables and figures call."""
    y = linearised(tables.value, tables.weight)
    per_seed = y.mean(-1)
    mean, half = per_seed.mean(-1), half_width(per_seed, level)
    wide = new_items_half_width(y, components(y), level)
    rejected = p_value(per_seed - tables.here[:, None]) < 1 - level
    new = np.abs(mean - tables.everywhere)
    return Covered(*(float(x.mean()) for x in (np.abs(mean - tables.here) <= half, rejected, new <= wide, new <= half)))


def bootstrap_covers(
    seeds: int, ratio: float, interaction: float, studies: int, items: int, rng: np.random.Generator
) -> float:
    """Also below the seeds from which it is offered."""
    tables = normal(seeds, ratio, interaction, studies, items, rng)
    found = [of_table(value, np.ones(items), 0.95, 1000, rng) for value in tables.value]
    return float(np.mean([f.low <= 0 <= f.high for f in found]))


def ties_of_equals(methods: int, seeds: int, studies: int, rng: np.random.Generator) -> tuple[float, float]:
    """Of studies whose methods are equal: how many call any of them worse, and how many call the first so."""
    found = []
    for _ in range(studies):
        value = rng.normal(size=(methods, seeds)) + rng.normal(size=seeds)
        scores = {
            str(m): pd.DataFrame({"seed": range(seeds), "item": "run", "value": value[m]}) for m in range(methods)
        }
        ties = stats.tied_with_best(scores, lower_is_better=True)
        found.append((len(ties.tied) < methods - 1, "0" not in (ties.best, *ties.tied)))
    any_worse, first_worse = np.mean(found, axis=0)
    return float(any_worse), float(first_worse)


def rules_not_taken(methods: int, seeds: int, studies: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """The same of Hsu's (1984) comparisons with the best, one-sided paired t with Bonferroni's bound; and how many of
    the studies call any method worse than the best by tests of all pairs, with Bonferroni's bound."""
    value = rng.normal(size=(studies, methods, seeds))
    d = value[:, :, None] - value[:, None]
    with np.errstate(invalid="ignore"):
        t = d.mean(-1) / (d.std(-1, ddof=1) / np.sqrt(seeds))  # [studies, method, other]: high is worse; NaN for itself
    p = student.sf(t, seeds - 1)
    worse = np.nanmin(p, -1) < 0.05 / (methods - 1)
    best = value.mean(-1).argmin(-1)
    against_best = 2 * np.nanmin(p[np.arange(studies), :, best], -1)
    pairs = methods * (methods - 1) / 2
    return float(worse.any(-1).mean()), float(worse[:, 0].mean()), float((against_best < 0.05 / pairs).mean())


def report(studies: int = 20_000, items: int = 60) -> Iterator[str]:
    """The tables as Markdown."""
    error = np.sqrt(0.95 * 0.05 / studies)
    yield f"{studies} studies of {items} items in each row; Monte-Carlo standard error {error:.4f}.\n"
    yield "| seeds | ratio | interaction | primary covers | p < 0.05 | new items: covers | primary, of new items |"
    yield "|---:|---:|---:|---:|---:|---:|---:|"
    for cell in GRID:
        c = _many(studies, lambda n, rng, cell=cell: normal(*cell, n, items, rng))
        yield f"| {cell[0]} | {cell[1]:g} | {cell[2]:g} | " + " | ".join(f"{x:.3f}" for x in c) + " |"
    for shape, seeds in product(SHAPES, SEEDS):
        c = _many(studies, lambda n, rng, shape=shape, seeds=seeds: shaped(shape, seeds, n, items, rng))
        yield f"| {seeds} | {shape} | 1 | " + " | ".join(f"{x:.3f}" for x in c) + " |"
    num = 1000
    yield f"\n{num} studies of {items} items in each row; standard error 0.007.\n"
    yield "| seeds | ratio | interaction | bootstrap covers |"
    yield "|---:|---:|---:|---:|"
    for cell in [(3, 10.0, 0.0), (5, 10.0, 0.0), *product((BOOTSTRAP_SEEDS,), RATIOS, INTERACTIONS)]:
        share = bootstrap_covers(*cell, num, items, np.random.default_rng(2))
        yield f"| {cell[0]} | {cell[1]:g} | {cell[2]:g} | {share:.3f} |"
    num = 4000
    yield f"\n{num} studies of equal methods in each row; standard error 0.004 (0.006 for shares of 0.2).\n"
    yield "| methods | seeds | any called worse | a given one | Hsu: any | Hsu: a given one | all pairs: any |"
    yield "|---:|---:|---:|---:|---:|---:|---:|"
    for methods, seeds in product((2, 4, 8), SEEDS):
        shares = ties_of_equals(methods, seeds, num, np.random.default_rng(3))
        shares += rules_not_taken(methods, seeds, num, np.random.default_rng(4))
        yield f"| {methods} | {seeds} | " + " | ".join(f"{share:.3f}" for share in shares) + " |"


def design() -> Iterator[str]:
    """What numbers of seeds and comparisons can show."""
    yield "| seeds | 1 comparison | 3 comparisons | 7 comparisons | smallest permutation p |"
    yield "|---:|---:|---:|---:|---:|"
    for seeds in (3, 4, 5, 6, 7, 8, 10, 15, 20):
        found = [stats.design_power(seeds, comparisons).detectable_sd for comparisons in (1, 3, 7)]
        yield f"| {seeds} | " + " | ".join(f"{sd:.2f}" for sd in found) + f" | {stats.smallest_p(seeds):.2g} |"


def _many(studies: int, draw, at_once: int = 4000) -> Covered:
    rng = np.random.default_rng(1)
    parts = [covered(draw(at_once, rng)) for _ in range(studies // at_once)]
    return Covered(*np.mean(parts, axis=0))


if __name__ == "__main__":
    for line in chain(design(), [""], report()):
        print(line, flush=True)
