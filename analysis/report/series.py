"""What the interactive plots draw: curves over steps, thinned evenly, and the looks of the arms."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ablora.store.atomic import Corrupted
from ablora_analysis import table
from ablora_analysis.figures import style
from ablora_analysis.report.evidence import Evidence
from ablora_analysis.report.marks import SYMBOLS

POINTS = 300_000
"""Of all curves together; a curve keeps 20 to 200 points."""
_NOT_DRAWN = {"answer_tokens"}


def looks(evidence: Evidence) -> dict[str, dict[str, str]]:
    """By arm: its colour and marker as in every figure, by plotly's names."""
    return {arm: {"colour": look.colour, "symbol": SYMBOLS.get(look.marker, "circle")}
            for arm, look in evidence.looks.items()}  # fmt: skip


def curves(evidence: Evidence) -> dict[str, Any]:
    """`runs`: by run and metric [place of its steps, values, how many it recorded]; `steps`: the distinct ones."""
    found = {run: _read(evidence, run) for run in evidence.runs.id}
    number = max(1, sum(part["metric"].nunique() for part in found.values()))
    most = max(20, min(200, POINTS // number))
    steps: dict[tuple[int, ...], int] = {}
    runs: dict[str, dict[str, list[Any]]] = {}
    for run, frame in found.items():
        for metric, part in frame.groupby("metric", sort=True):
            part = part.drop_duplicates("step", keep="last")
            kept = thinned(len(part), most)
            own = tuple(int(step) for step in part["step"].iloc[kept])
            values = [None if pd.isna(v) else float(f"{v:.5g}") for v in part["value"].iloc[kept]]
            place = steps.setdefault(own, len(steps))
            runs.setdefault(run, {})[str(metric)] = [place, values, len(part)]
    metrics = sorted({metric for own in runs.values() for metric in own})
    titles = {metric: style.axis_title(metric) for metric in metrics}
    return {"steps": [list(own) for own in steps], "runs": runs, "titles": titles, "most": most}


def _read(evidence: Evidence, run: str) -> pd.DataFrame:
    try:
        frame = table.curves(evidence.roots, [run])
    except Corrupted as problem:
        evidence.problems.append(problem)
        frame = pd.DataFrame({"metric": [], "step": [], "value": []})
    return frame[~frame["metric"].isin(_NOT_DRAWN)]


def thinned(num: int, most: int) -> list[int]:
    """Which of `num` points to keep: all, or `most` evenly spaced ones with the first and the last among them."""
    if num <= most:
        return list(range(num))
    return sorted({round(i * (num - 1) / (most - 1)) for i in range(most)})


def last_steps(series: dict[str, Any]) -> dict[str, int]:
    """By run: the last step that it recorded."""
    steps: Sequence[list[int]] = series["steps"]
    return {run: max((steps[place][-1] for place, *_ in own.values() if steps[place]), default=0)
            for run, own in series["runs"].items()}  # fmt: skip
