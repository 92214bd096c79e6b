"""What a study will be able to say, told before any of it is run."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from ablora.store.lines import dumps
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder
from ablora_analysis import stats, table
from ablora_analysis.figures import arms
from ablora_analysis.figures.arms import CONFIRM
from ablora_analysis.stats import DesignPower
from ablora_analysis.table import LABEL

_Key = tuple[str, str]
"""Setting and data set."""


def lines(
    roots: Roots,
    study: str,
    cells: Sequence[Mapping[str, Any]],
    stale: Callable[[RunFolder], bool] = RunFolder.is_stale,
) -> Iterator[str]:
    """Lines of text: for each data set and setting what its seeds and comparisons can show, in standard deviations of
    the per-seed differences; and in each metric's unit where runs of the study are done.

    `cells` are the manifest's records, or those that will be. Where any of them confirms, only these count.
    """
    seeds = _seeds(arms.prepare(_frame(cells)))
    designs = {key: _design(own) for key, own in seeds.items()}
    said: dict[str, list[_Key]] = {}
    for key, own in seeds.items():
        said.setdefault(_said(own, designs[key]), []).append(key)
    for words, keys in said.items():
        named = "; ".join(arms.panel_title(*key) for key in keys)
        where = f" ({named})" if len(said) > 1 else f" (each of {len(keys)} tables)" if len(keys) > 1 else ""
        yield f"statistics{where}: {words}"
    yield from _in_units(roots, study, designs, stale)


def sentence(design: DesignPower) -> str:
    """What a number of seeds and comparisons can show, or what they will not be able to say."""
    counted = f"{_of(design.seeds, 'seed')}, {_of(design.comparisons, 'comparison')}"
    if design.seeds == 1:
        return (f"{counted}: intervals over the items of that seed alone; it will not say what another seed would "
                "give, nor which method is best (from 3 seeds on)")  # fmt: skip
    if design.seeds == 2:
        return f"{counted}: a range and no test; it will not say which method is best or tied with it (from 3 seeds on)"
    level = f"0.05/{design.comparisons}" if design.comparisons > 1 else "0.05"
    return (f"{counted}: smallest detectable difference {design.detectable_sd:.2g} sd of the per-seed differences "
            f"(80 % power, alpha {level}); a permutation test could give p >= {design.smallest_p:.2g}")  # fmt: skip


def _frame(cells: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Planned cells with the columns that `arms.prepare` reads, from their labels alone."""
    rows = []
    for cell in cells:
        labels = {axis: value if isinstance(value, str) else dumps(value) for axis, value in cell["labels"].items()}
        own = {axis: labels.get(axis, "") for axis in ("dataset", "model", "seed")}
        own |= {"id": cell["id"], "method": cell["method"], "why": cell.get("why", "grid"), "state": "planned"}
        rows.append(own | {"problem": None, "stale": None} | {LABEL + axis: value for axis, value in labels.items()})
    return pd.DataFrame(rows)


def _seeds(planned: pd.DataFrame) -> dict[_Key, list[frozenset[str]]]:
    """The reported seeds of each arm, by setting and data set."""
    confirming = planned[planned["why"] == CONFIRM]
    found: dict[_Key, list[frozenset[str]]] = {}
    reported = planned if confirming.empty else confirming
    for (setting, dataset, _), part in reported.groupby(["setting", "dataset", "arm"], sort=False):
        found.setdefault((str(setting), str(dataset)), []).append(frozenset(part["seed"]))
    return found


def _design(seeds: Sequence[frozenset[str]]) -> DesignPower | None:
    """Of the fewest seeds that any two arms share, by which they are paired; None where nothing is paired."""
    shared = min((len(a & b) for a, b in combinations(seeds, 2)), default=0)
    return stats.design_power(shared, len(seeds) - 1) if shared else None


def _said(seeds: Sequence[frozenset[str]], design: DesignPower | None) -> str:
    if design is not None:
        return sentence(design)
    if len(seeds) == 1:
        return f"{_of(len(seeds[0]), 'seed')} of one method: nothing to compare it with"
    return "some methods share no seed: they cannot be paired, and will not be compared"


def _of(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _in_units(
    roots: Roots, study: str, designs: Mapping[_Key, DesignPower | None], stale: Callable[[RunFolder], bool]
) -> Iterator[str]:
    """The planned seeds' detectable difference in a metric's unit, by the spread of two or more that are done."""
    if not (roots.studies / study / "manifest.jsonl").exists():
        return
    from ablora_analysis.figures import result_table  # matplotlib, which a plan mostly does without

    runs, _ = table.read_rows(roots, study, stale)
    prepared = arms.prepare(table.cells(roots, study, runs))
    for panel in result_table.points(prepared, arms.choose(prepared), {}).panels:
        # A data set that is not swept has no label: the plan does not name it.
        design = designs.get((panel.setting, panel.dataset)) or designs.get((panel.setting, ""))
        pairs = [cell.to_best for cell in panel.cells if cell.to_best and cell.to_best.seeds > 1]
        if design is None or not pairs or not math.isfinite(design.detectable_sd):
            continue
        sd = math.sqrt(sum(pair.sd**2 for pair in pairs) / len(pairs))
        where = arms.panel_title(panel.setting, panel.dataset)
        yield (f"  {where}: {design.detectable_sd * sd:.2g} {panel.metric}, by the spread of "
               f"{_of(min(pair.seeds for pair in pairs), 'finished seed')}")  # fmt: skip
