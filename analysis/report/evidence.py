"""Everything that a report is made of, read once: the study's runs, the chosen rates, the compared results."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ablora.store import atomic
from ablora.store.atomic import Corrupted
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora_analysis import table
from ablora_analysis.figures import arms, result_table, style
from ablora_analysis.figures.arms import Choice
from ablora_analysis.figures.result_table import ResultTable
from ablora_analysis.figures.study import chosen_items


class Evidence(NamedTuple):
    """A study as a report sees it. A file that cannot be read is in `problems`; the rest is shown all the same."""

    roots: Roots
    name: str
    runs: pd.DataFrame
    """One row per run: the columns of `arms.prepare`, `why` of its cells, and those of `table.costs`."""
    prepared: pd.DataFrame
    choices: Sequence[Choice]
    result: ResultTable
    looks: Mapping[str, style.Look]
    starts: Mapping[str, list[dict[str, Any]]]
    """By run: where it ran, from env.json."""
    plan: Mapping[str, Any]
    """plan.json; empty where there is none."""
    problems: list[Corrupted]

    @property
    def folder(self) -> Path:
        return self.roots.studies / self.name


def read(roots: Roots, study: str, stale: Callable[[RunFolder], bool] = RunFolder.is_stale) -> Evidence:
    """Read a study that has a manifest; it need not have a finished run."""
    rows, problems = table.read_rows(roots, study, stale)
    prepared = arms.prepare(table.cells(roots, study, rows))
    choices = arms.choose(prepared)
    metrics = result_table.shown_metrics(prepared)
    finished = any(choice.ids for choice in choices)
    items = _try(lambda: chosen_items(roots, choices, metrics), {}, problems) if finished else {}
    result = result_table.points(prepared, choices, items)
    runs = prepared.drop_duplicates("id").set_index("id", drop=False)
    costs = [_try(lambda run=run: table.costs(roots, [run]), pd.DataFrame({"id": [run]}), problems) for run in runs.id]
    runs = runs.join(pd.concat(costs).set_index("id")) if costs else runs
    starts = {run: _try(lambda run=run: _starts(folder_of(roots, run)), [], problems) for run in runs.id}
    plan_path = roots.studies / study / "plan.json"
    plan = _try(lambda: atomic.read_json(plan_path), {}, problems) if plan_path.exists() else {}
    looks = style.looks(prepared["arm"])
    return Evidence(roots, study, runs.assign(why=runs.id.map(_why(roots, study))), prepared, choices, result, looks,
                    starts, plan if isinstance(plan, Mapping) else {}, problems)  # fmt: skip


def _why(roots: Roots, study: str) -> dict[str, str]:
    """By run: for what it was planned; a run may serve two ends."""
    found: dict[str, dict[str, None]] = {}
    for cell in table.manifest(roots, study):
        found.setdefault(cell["id"], {})[str(cell.get("why", ""))] = None
    return {run: ", ".join(words) for run, words in found.items()}


def _starts(folder: RunFolder) -> list[dict[str, Any]]:
    if not folder.env.exists():
        return []
    found = atomic.read_json(folder.env)
    if not isinstance(found, dict) or not isinstance(found.get("starts"), list):
        raise Corrupted(str(folder.env), type(found).__name__, "an environment with its starts")
    return [start for start in found["starts"] if isinstance(start, dict)]


def _try(read_it: Callable[[], Any], otherwise: Any, problems: list[Corrupted]) -> Any:
    """What a file holds; a file that is damaged is noted and `otherwise` stands for it."""
    try:
        return read_it()
    except Corrupted as problem:
        problems.append(problem)
    except (KeyError, TypeError, AttributeError, UnicodeError) as error:
        problems.append(Corrupted("records of a run", repr(error), "lines with the fields of their contract"))
    return otherwise


def state_of(row: pd.Series) -> str:
    """One word for where a run stands; diverged is apart from other failures, because it is a result."""
    if not pd.isna(row["problem"]):
        return "unreadable"
    if row["state"] in ("done", "failed") and not pd.isna(row["stale"]) and row["stale"]:
        return "stale"
    if row["state"] == "failed" and row["failure_class"] == "diverged":
        return "diverged"
    return str(row["state"])
