"""The table of all runs, whatever became of them."""

from typing import Any, cast

import pandas as pd

from ablora_analysis.figures import result_table, style
from ablora_analysis.figures.arms import selection_metric
from ablora_analysis.report import numbers
from ablora_analysis.report.evidence import Evidence, state_of
from ablora_analysis.report.grid import Column, Entry, Line, controls, grid, text
from ablora_analysis.report.html import Html, join, tag
from ablora_analysis.report.marks import swatch

NAME = "all"
TONE = {"done": "good", "diverged": "bad", "failed": "bad", "unreadable": "bad", "lost": "bad", "stale": "warn"}


def all_runs(evidence: Evidence, messages: dict[str, str]) -> Html:
    """Controls and table; `messages` has by run why it failed, its first line."""
    frame = evidence.runs
    metrics = shown(evidence)
    keys = [key for key in ("dataset", "setting", "why") if frame[key].nunique() > 1]
    columns = [
        Column("run"), Column("state"), Column("arm"), *(Column({"dataset": "data set"}.get(k, k)) for k in keys),
        Column("lr", True, "learning rate"), Column("seed", True), Column("step", True, "the last step"),
        *(Column(style.axis_title(metric), True) for metric in metrics),
    ]  # fmt: skip
    lines = [_line(evidence, row, metrics, keys, messages.get(str(row["id"]), "")) for _, row in frame.iterrows()]
    states = list(dict.fromkeys(value for line in lines for key, value in line.facets if key == "state"))
    filters = [
        ("method", "method", sorted(set(frame["method"]))), ("state", "state", sorted(states)),
        ("dataset", "data set", sorted(set(frame["dataset"]) - {""})),
        ("setting", "setting", sorted(set(frame["setting"]) - {""})), ("why", "why", sorted(set(frame["why"]))),
    ]  # fmt: skip
    return join(controls(NAME, filters, "id, arm, class, message"), grid(NAME, "All runs", columns, lines))


def shown(evidence: Evidence) -> list[str]:
    """The metrics that have a column; all of them are in a run's drawer."""
    found = result_table.shown_metrics(evidence.prepared)
    chosen = selection_metric(evidence.prepared)
    return [*found, *([chosen] if chosen and chosen not in found else [])]


def _line(evidence: Evidence, row: pd.Series, metrics: list[str], keys: list[str], message: str) -> Line:
    state, run = state_of(row), str(row["id"])
    kind = "" if pd.isna(row["failure_class"]) or state != "failed" else f" · {row['failure_class']}"
    badge = tag("span", state + kind, class_=f"badge {TONE.get(state, '')}")
    failed = tag("small", tag("bdi", message), class_="message") if message else None
    entries = [
        Entry(tag("button", run, type="button", class_="open"), run),
        Entry(join(badge, failed), state),
        Entry(join(swatch(evidence.looks[row["arm"]]), tag("bdi", row["arm"])), row["arm"]),
        *(text(row[key]) for key in keys),
        Entry(tag("span", "" if pd.isna(row["lr"]) else f"{row['lr']:g}"), row["lr"]),
        Entry(tag("span", numbers.whole(row["seed"])), _int(row["seed"])),
        Entry(tag("span", numbers.whole(row["step"])), _int(row["step"])),
        *(Entry(tag("span", numbers.number(row[metric])), row[metric]) for metric in metrics),
    ]
    facets = [(key, str(row[key])) for key in ("method", "dataset", "setting", "why") if row[key]]
    return Line(tuple(entries), (*facets, ("state", state)), run, quiet=state in ("planned", "pruned", "stale"))


def _int(value: object) -> int | None:
    return None if numbers.missing(value) else int(cast(Any, value))
