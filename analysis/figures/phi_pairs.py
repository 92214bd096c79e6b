"""phi(i, j) between two runs' updates, gathered by pairs of arms: seed against seed, and method against method.

phi(i, j) = ||U_a^i^T U_b^j||_F^2 / min(i, j) of the first i and j singular vectors (Hu et al. 2021, section 7.2). The
baseline of every comparison is seed against seed of one method: 1 - phi is how far two updates differ, and a method
that differs from another by no more than its own seeds do has not been shown to differ.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import pandas as pd

from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.measured import SIDES, WHOLE, ordered, runs_of


class Level(NamedTuple):
    """phi of one pair of arms at one i = j."""

    phi: float
    low: float
    high: float
    """The least and greatest pair of runs."""
    null: float
    null_sd: float


class Block(NamedTuple):
    """Two arms (or one with itself) on one side: means over modules and over pairs of runs."""

    arm_a: str
    arm_b: str
    side: str
    equal_seeds: bool
    """Pairs of equal seeds, which may share their start, are never pooled with the others."""
    shared_start: bool
    ids: tuple[str, ...]
    pairs: int
    modules: int
    undefined: int
    """How many (pair, module) have no phi; then all means are NaN."""
    index: tuple[int, ...]
    """The i and the j that were written down, ascending: all, or a grid of them for a high rank."""
    phi: np.ndarray
    """(i, j) over `index`; NaN where any module of any pair has none."""
    null: np.ndarray
    """(i, j): what random subspaces have, the mean over modules of max(i, j) / d."""
    null_sd: np.ndarray
    """(i, j): the standard deviation of that mean, for independent modules."""
    per_pair: np.ndarray
    """phi at i = j: (pair, i), each pair's mean over modules."""

    @property
    def size(self) -> int:
        """The greatest i = j that every module of every pair has; 0 for none."""
        found = np.flatnonzero(np.isfinite(np.diagonal(self.phi)))
        return self.index[found[-1]] if found.size else 0

    def at(self, size: int) -> Level:
        """Everything at i = j = `size`; NaN where there is none."""
        if not 0 < size <= self.size or size not in self.index:
            return Level(*[math.nan] * 5)
        k = self.index.index(size)
        own = self.per_pair[:, k]
        return Level(*(float(v) for v in (self.phi[k, k], own.min(), own.max(), self.null[k, k], self.null_sd[k, k])))


class Cell(NamedTuple):
    """One block at i = j = `size`."""

    arm_a: str
    arm_b: str
    side: str
    equal_seeds: bool
    shared_start: bool
    size: int
    pairs: int
    modules: int
    undefined: int
    level: Level
    as_between_seeds: bool
    """Two methods of which some pair of runs differs (1 - phi) by no more than some seeds of one of them do: not a
    finding."""


def of_runs(frame: pd.DataFrame, choices: Sequence[Choice]) -> pd.DataFrame:
    """Whole updates of two chosen runs, turned so that the earlier arm of the plan comes first: `id_a`, `arm_a`,
    `seed_a`, `part_a`, the same of b, `equal` seeds, and the frame's other columns."""
    runs = runs_of(choices).drop_duplicates("id").set_index("id")
    kept = frame[frame["part"].isin(WHOLE) & frame["part_b"].isin(WHOLE)]
    kept = kept[kept["id"].isin(runs.index) & kept["id_b"].isin(runs.index)]
    rows = kept.rename(columns={"id": "id_a", "part": "part_a"}).astype({"module": "category", "kind": "category"})
    order = {choice.arm: number for number, choice in enumerate(choices)}
    number = runs["arm"].map(order)
    turned = (rows["id_a"].map(number) > rows["id_b"].map(number)).to_numpy()
    for one, two in (("i", "j"), ("id_a", "id_b"), ("part_a", "part_b")):
        rows[one], rows[two] = rows[one].where(~turned, rows[two]), rows[two].where(~turned, rows[one])
    for suffix in ("_a", "_b"):
        for name in ("arm", "seed"):
            rows[name + suffix] = rows["id" + suffix].map(runs[name])
    # Codes, not text: a study of 12 runs and 28 modules has a quarter of a million rows, in 300 blocks.
    codes = [pd.Categorical(rows[name], categories=runs.index).codes.astype(int) for name in ("id_a", "id_b")]
    return rows.assign(equal=rows["seed_a"] == rows["seed_b"], pair=codes[0] * len(runs) + codes[1])


def blocks(rows: pd.DataFrame, choices: Sequence[Choice], kind: str | None = None) -> list[Block]:
    """Every pair of arms that `of_runs` has, the earlier arm of the plan first; of one kind of module, or all."""
    rows = rows if kind is None else rows[rows["kind"] == kind]
    parts = dict(list(rows.groupby(["arm_a", "arm_b", "equal", "side"], sort=False)))
    keys = [(a.arm, b.arm, equal, side) for a, b in combinations_with_replacement(choices, 2)
            for equal in (False, True) for side in SIDES]  # fmt: skip
    return [_block(key, parts[key]) for key in keys if key in parts]


def _block(key: tuple[str, str, bool, str], rows: pd.DataFrame) -> Block:
    a, b, equal, side = key
    module = rows["module"].cat.codes.to_numpy()
    _, first, pair = np.unique(rows["pair"], return_index=True, return_inverse=True)
    runs = rows[["id_a", "id_b"]].iloc[first].to_numpy(dtype=object)
    named, group = np.unique(pair * (int(module.max()) + 1) + module, return_inverse=True)
    pair_of = named // (int(module.max()) + 1)
    defined = rows["phi"].notna().to_numpy()
    i, j, phi, null = (rows[name].to_numpy(dtype=float)[defined] for name in ("i", "j", "phi", "null"))
    index = np.unique([i, j])
    full, own_null = np.full((2, len(named), len(index), len(index)), np.nan)
    place = group[defined], np.searchsorted(index, i), np.searchsorted(index, j)
    full[place], own_null[place] = phi, null
    i, j = index[:, None], index[None]
    mean, mean_null = full.mean(axis=0), own_null.mean(axis=0)
    null_sd = np.sqrt((random_sd(i, j, np.maximum(i, j) / own_null) ** 2).mean(axis=0) / len(np.unique(module)))
    if a == b:  # which seed comes first means nothing
        mean = (mean + mean.T) / 2
    diagonal = np.diagonal(full, axis1=1, axis2=2)
    per_pair = np.stack([diagonal[pair_of == one].mean(axis=0) for one in range(len(runs))])
    undefined = len(named) - len(np.unique(place[0]))
    return Block(
        a, b, side, equal, bool(rows["shared_start"].any()), tuple(sorted(set(runs.ravel()))), len(runs),
        len(np.unique(module)), undefined, tuple(map(int, index)), mean, mean_null, null_sd, per_pair,
    )  # fmt: skip


def random_sd(i: np.ndarray, j: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Standard deviation of phi(i, j) of two independent random subspaces of R^d.

    Var tr(P Q) = 2 i (d - i) j (d - j) / (d^2 (d - 1) (d + 2)) for projectors P, Q of ranks i, j: their traceless parts
    have squared norms i (d - i) / d and j (d - j) / d and lie in one irreducible space of (d - 1) (d + 2) / 2
    dimensions, over which a rotation spreads them evenly (Schur); phi = tr(P Q) / min(i, j).
    """
    return np.sqrt(2 * i * (d - i) * j * (d - j) / (d**2 * (d - 1) * (d + 2))) / np.minimum(i, j)


def cells(found: Sequence[Block]) -> list[Cell]:
    """Each block at its greatest i = j, and whether it differs as little as seeds do."""
    seeds = {(block.arm_a, block.side): block for block in found if block.arm_a == block.arm_b}
    return [_cell(block, [seeds.get((arm, block.side)) for arm in (block.arm_a, block.arm_b)]) for block in found]


def _cell(block: Block, baselines: Sequence[Block | None]) -> Cell:
    level = block.at(block.size)
    between_methods = block.arm_a != block.arm_b and not block.equal_seeds
    as_seeds = between_methods and any(level.high >= b.at(block.size).low for b in baselines if b is not None)
    return Cell(block.arm_a, block.arm_b, block.side, block.equal_seeds, block.shared_start, block.size, block.pairs,
                block.modules, block.undefined, level, as_seeds)  # fmt: skip


def shown(found: Sequence[Block]) -> list[tuple[Block, ...]]:
    """What is worth a full map, each with its sides: seed against seed of every arm, the least and the most alike two
    arms (mean over sides, unequal seeds), and the most alike two that share their start."""
    by_key: dict[tuple[str, str, bool], list[Block]] = {}
    for block in found:
        if block.size:
            by_key.setdefault((block.arm_a, block.arm_b, block.equal_seeds), []).append(block)
    likeness = {key: sum(b.at(b.size).phi for b in own) / len(own) for key, own in by_key.items()}
    return [tuple(by_key[key]) for key in dict.fromkeys(_keys(by_key, likeness))]


def _keys(
    by_key: dict[tuple[str, str, bool], list[Block]], likeness: dict[tuple[str, str, bool], float]
) -> Iterator[tuple[str, str, bool]]:
    yield from (key for key in by_key if key[0] == key[1])
    others = [key for key in by_key if key[0] != key[1]]
    if unequal := [key for key in others if not key[2]]:
        yield min(unequal, key=lambda key: likeness[key])
        yield max(unequal, key=lambda key: likeness[key])
    if sharing := [key for key in others if key[2] and by_key[key][0].shared_start]:
        yield max(sharing, key=lambda key: likeness[key])


def frame(found: Sequence[Block], rows: pd.DataFrame, choices: Sequence[Choice]) -> pd.DataFrame:
    """Every cell, over all modules (`kind` all, of `found`) and for each kind of module."""
    by_kind = {"all": found} | {kind: blocks(rows, choices, kind) for kind in ordered(rows["kind"].unique())}
    return pd.DataFrame([
        {"kind": kind, **{k: v for k, v in cell._asdict().items() if k != "level"}, **cell.level._asdict()}
        for kind, own in by_kind.items() for cell in cells(own)
    ])  # fmt: skip
