"""How far each run of a study is, read from the ends of its files: step, loss, tokens per second, time left."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablora.dispatch.queue import Queue
from ablora.store import atomic
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, State, folder_of
from ablora.study.manifest import Row
from ablora.study.status import Standing, as_wanted, pruned, standing

TAIL = 8192
"""Bytes read from the end of a file: 30 to 80 records."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One run at one moment; None is what its files do not say yet."""

    id: str
    cell: str
    state: State
    detail: str
    """The class of a failure; what SLURM says of a run that waits or was lost."""
    step: int | None = None
    steps: int | None = None
    loss_nats: float | None = None
    tokens_per_s: float | None = None
    step_s: float | None = None
    """Seconds per step over the last records, evaluations between them included."""
    wall_s: float | None = None
    """Seconds since the process that runs it (or last did) began with it."""

    @property
    def left_s(self) -> float | None:
        """Until its last step; the evaluation at the end comes on top."""
        if self.state != "running" or self.step is None or self.steps is None or self.step_s is None:
            return None
        return (self.steps - self.step) * self.step_s


class Watcher:
    """Reads a study again and again; what cannot change any more is read once (1,000 runs: see tests)."""

    def __init__(self, roots: Roots, rows: Sequence[Row], queue: Queue | None = None):
        self.queue = queue
        self.cells = named(rows)
        self.folders = {run: folder_of(roots, run) for run in self.cells}
        self._given_up = pruned(rows)
        self._steps: dict[str, int | None] = {}
        self._ended: dict[str, tuple[int, Seen]] = {}

    def look(self) -> list[Seen]:
        """Every run once, in the manifest's order."""
        if self.queue is not None:
            self.queue.look()
        return [self._look_at(run, folder) for run, folder in self.folders.items()]

    def _look_at(self, run: str, folder: RunFolder) -> Seen:
        found = as_wanted(standing(folder, self.queue), run in self._given_up)
        stamp = _stamp(folder.result) if found.state == "done" else None
        if stamp is not None and run in self._ended and self._ended[run][0] == stamp:
            return self._ended[run][1]
        seen = self._read(run, folder, found)
        if stamp is not None:
            self._ended[run] = (stamp, seen)
        return seen

    def _read(self, run: str, folder: RunFolder, found: Standing) -> Seen:
        if self._steps.get(run) is None:
            self._steps[run] = _max_steps(folder)
        detail = found.detail if found.state in ("failed", "queued") or (self.queue and found.state == "lost") else ""
        seen = Seen(run, self.cells[run], found.state, detail, steps=self._steps[run])
        training = [record for record in tail(folder.metrics) if record.get("kind") == "train"]
        timing = tail(folder.timing)
        last = training[-1] if training else {}
        timed = timing[-1] if timing else {}
        return Seen(
            seen.id, seen.cell, seen.state, seen.detail, last.get("step"), seen.steps, last.get("loss_nats"),
            timed.get("tokens_per_s"), _step_s(timing), timed.get("wall_s"),
        )  # fmt: skip


def named(rows: Sequence[Row]) -> dict[str, str]:
    """By run id, its first cell in few words: the method, then each other axis that varies, by the last part of its
    key; two axes with the same last part keep their whole keys."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.labels.items():
            values.setdefault(key, set()).add(str(value))
    axes = [key for key, found in values.items() if len(found) > 1 and key != "method"]
    last = {key: key.replace("/", ".").rpartition(".")[2] for key in axes}
    short = {key: name if list(last.values()).count(name) == 1 else key for key, name in last.items()}
    out: dict[str, str] = {}
    for row in rows:
        words = [f"{short[key]}={value}" for key, value in row.labels.items() if key in short]
        out.setdefault(row.id, " ".join([row.method, *words]))
    return out


def tail(path: Path) -> list[dict[str, Any]]:
    """The last whole records of a file of lines; a torn or cut one is left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            found = file.read().split(b"\n")[:-1]
    except OSError:
        return []
    out = []
    for line in found:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            out.append(record)
    return out


def _step_s(timing: Sequence[Mapping[str, Any]]) -> float | None:
    """Between the first and the last of the records that one process wrote: its clock only runs forward."""
    pairs = [(record["step"], record["wall_s"]) for record in timing if {"step", "wall_s"} <= record.keys()]
    begin = max((i for i in range(1, len(pairs)) if pairs[i][1] < pairs[i - 1][1]), default=0)
    if len(pairs) - begin < 2 or pairs[-1][0] == pairs[begin][0]:
        return None
    return (pairs[-1][1] - pairs[begin][1]) / (pairs[-1][0] - pairs[begin][0])


def study_left_s(seen: Sequence[Seen]) -> float | None:
    """Until the study is through, if as many runs at a time go on as now: all open steps at the mean seconds per step
    of finished runs (evaluations included), or of the running ones while none has finished. None where nothing runs."""
    running = [run for run in seen if run.state == "running"]
    paces = [run.wall_s / run.steps for run in seen if run.state == "done" and run.wall_s and run.steps]
    paces = paces or [run.step_s for run in running if run.step_s is not None]
    if not running or not paces:
        return None
    open_steps = sum(
        (run.steps or 0) - (run.step or 0) for run in seen if run.state in ("running", "queued", "planned")
    )
    return open_steps * sum(paces) / len(paces) / len(running)


def _max_steps(folder: RunFolder) -> int | None:
    try:
        return int(folder.read_tree()["train"]["max_steps"])
    except (OSError, KeyError, TypeError, ValueError, atomic.Corrupted):
        return None


def _stamp(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
