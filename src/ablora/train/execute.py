"""The life of a pack: from specifications in run folders to results in run folders, through any number of deaths."""

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ablora.evals._base import TEXT, Evaluation, Items, Outcome
from ablora.method.adapt import adapt
from ablora.method.adaptation import Adaptation
from ablora.models.base import Base, load
from ablora.spec import RunSpec, check, run_id
from ablora.store import atomic, lines
from ablora.store.claims import Claim, Fenced
from ablora.store.roots import Roots
from ablora.store.run_folder import SCHEMA, FailureClass, RunFolder, State, metric_name
from ablora.train import checkpoint
from ablora.train.calibration import calibrate
from ablora.train.data import items_of, left_out, train_data
from ablora.train.environment import append_environment, peak_rss_gib
from ablora.train.loop import Trained, train_step
from ablora.train.member import Diverged, RunState
from ablora.train.observe import Observer
from ablora.train.partial import forget, kept_on_disk
from ablora.train.reallocation import Reallocated, reallocate
from ablora.train.stop import StopFlag, Stopped, stop_flag

RANKS = "ranks"
"""What is kept on disk of a round of ablations is called so, between evaluations' by their tasks."""
Judge = Callable[[Sequence[RunFolder]], set[str]]
"""Of runs that have just been evaluated the ids of those that end there."""


def execute(
    pack: Sequence[RunFolder],
    claims: Sequence[Claim],
    roots: Roots,
    observers: Sequence[Observer],
    threads: int | None = None,
    most_examples: int | None = None,
    judge: Judge | None = None,
) -> None:
    """Train the runs of one pack to their results, going on from their checkpoints.

    A run that fails by itself (a loss or a metric that is no number, data that cannot be used) gets its failure.json
    and the others go on. Raises Stopped after SIGTERM or Ctrl-C, with checkpoints written; whatever else goes wrong is
    raised for the caller to record against every run of the pack that has no result. `most_examples` bounds the
    micro-batches of runs whose numbers do not depend on them. `judge` hears of runs that have been
    evaluated between, and says which end there: they keep their checkpoints and have no result.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    specs = [folder.read_spec() for folder in pack]
    for folder, spec in zip(pack, specs):
        _require_as_planned(folder, spec)
    base = _load(specs[0].model)
    check(all(spec.model == specs[0].model for spec in specs), "model", "several", "one base model within a pack")
    seen = calibrate(specs, base, roots.cache)
    adapted = adapt(base.model, specs, seen, roots.cache)
    try:
        job = _Job(base, adapted, observers, roots.cache, judge)
        job.start(pack, claims, specs, most_examples)
        with stop_flag() as flag:
            job.train(flag)
    finally:
        adapted.detach()


def _require_as_planned(folder: RunFolder, spec: RunSpec) -> None:
    """Refuse a run that would not be the one that its folder is named after."""
    today = run_id(spec)
    legal = (f"{folder.id}, as it was when the run was planned: since then the files of its model or data set, or a "
             "revision of the code, have changed; the command that planned it plans the run as it is now")  # fmt: skip
    check(today == folder.id, "id", today, legal)


@lru_cache(maxsize=1)
def _load(model: Any) -> Base:
    return load(model)


@dataclass(slots=True)
class _Spent:
    """What a run has cost in this process."""

    tokens: int = 0
    probe_s: float = 0.0
    probe_tokens: int = 0


class _Job:
    """A pack at work."""

    def __init__(
        self, base: Base, adapted: Adaptation, observers: Sequence[Observer], cache: Path, judge: Judge | None
    ):
        self.base, self.adapted, self.observers, self.cache, self.judge = base, adapted, observers, cache, judge
        self.runs: list[RunState] = []
        """Those that have not left, by their rows in the pack."""
        self.spent: dict[RunState, _Spent] = {}
        self._flag = StopFlag()
        self._began_s = time.monotonic()
        self._training_s = 0.0

    def start(
        self, pack: Sequence[RunFolder], claims: Sequence[Claim], specs: Sequence[RunSpec], most: int | None
    ) -> None:
        """Bring every run to where its checkpoint left it, and cut its records back to there."""
        for i, (folder, claim, spec) in enumerate(zip(pack, claims, specs)):
            data = train_data(spec, self.base, self.cache)
            run = RunState(i, folder, claim, spec, data, self.adapted, most)
            self.spent[run] = _Spent()
            if (saved := checkpoint.load(folder.checkpoint)) is not None:
                run.load(saved.tensors, saved.counters)
            self.runs.append(run)
            claim.fence()
            atomic.clear(folder.path)
            lines.keep(folder.metrics, lambda r, run=run: r["step"] <= _kept(run, r["kind"]))
            lines.keep(folder.timing, lambda r, run=run: r["step"] <= run.step)
            append_environment(folder)
            self._event(run, "running", step=run.step)
            for observer in self.observers:
                observer.started(folder, spec, run.step)

    def train(self, flag: StopFlag) -> None:
        """Steps, evaluations and checkpoints until every run has ended; each stops at the next batch it comes to."""
        self._flag = flag
        try:
            self._train()
        except Stopped:
            for run in self.runs:
                if run.active:
                    with suppress(Fenced):  # one that was taken over must not keep the others from being saved
                        self._checkpoint(run)
                        self._event(run, "preempted", step=run.step)
            raise

    def _train(self) -> None:
        self._reallocate(self.runs)
        self._evaluate([run for run in self.runs if run.evaluated < run.step and _evaluation_due(run)])
        while active := [r for r in self.runs if r.active and r.step < r.spec.train.max_steps]:
            before_s = time.monotonic()
            steps = train_step(self.base, self.adapted, self.runs, self._flag.pause)
            self._training_s += time.monotonic() - before_s
            for i, trained in steps.items():
                self._record_step(self.runs[i], trained)
            self._reallocate(self.runs)
            due = [run for run in active if run.active and _evaluation_due(run)]
            for run in active:
                if run.active and (run in due or run.step % run.spec.train.checkpoint_every == 0):
                    self._checkpoint(run)
            self._evaluate(due)
            self._end([run for run in active if run.active and run.step == run.spec.train.max_steps])
            self._leave()
            self._flag.pause()
        self._end([run for run in self.runs if run.active])

    def _leave(self) -> None:
        """Runs that have ended leave the pack, and cost nothing from here on."""
        staying = [run for run in self.runs if run.active]
        if 0 < len(staying) < len(self.runs):
            self.adapted.keep([run.index for run in staying])
            for i, run in enumerate(staying):
                run.move(i, self.adapted)
            self.runs = staying

    def _record_step(self, run: RunState, trained: Trained | Diverged) -> None:
        if isinstance(trained, Diverged):
            self._fail(run, "diverged", trained)
            return
        spent = self.spent[run]
        spent.tokens += trained.tokens
        train = run.spec.train
        if run.step % train.log_every == 0 or run.step == train.max_steps:
            record = {"kind": "train", "step": run.step, "loss_nats": trained.loss_nats, "lr": trained.lr}
            record |= {"grad_norm": trained.grad_norm, "answer_tokens": run.answer_tokens, **trained.stats}
            self._record(run, record)
            self._time(run)

    def _reallocate(self, runs: Sequence[RunState]) -> None:
        """Ranks that move after the step that was made last; a round that was stopped goes on at its variant."""
        for run in [run for run in runs if run.active and run.reallocation_due]:
            self._checkpoint(run)
            found = reallocate(self.base, self.adapted, run, kept_on_disk(self.runs, [run], RANKS, self._flag.pause))
            if isinstance(found, Diverged):
                self._fail(run, "diverged", found)
            else:
                self._record_move(run, found)
                self._checkpoint(run)
            forget(run, RANKS)

    def _record_move(self, run: RunState, found: Reallocated) -> None:
        spent = self.spent[run]
        spent.probe_s, spent.probe_tokens = spent.probe_s + found.seconds, spent.probe_tokens + found.tokens
        self._training_s += found.seconds
        record = {"kind": "ranks", "step": run.step, "moved": found.moved, "probe_loss_nats": found.loss_nats}
        self._record(run, record | found.ranks)

    def _evaluate(self, runs: Sequence[RunState]) -> None:
        """All tasks of the given runs; runs that share a task share its forward passes."""
        tasks = {name: task for run in runs for name, task in run.spec.eval.tasks.items()}
        for name in tasks:
            with_task = [run for run in runs if run.active and name in run.spec.eval.tasks]
            if with_task:
                self._evaluate_task(name, with_task)
        for run in runs:
            run.evaluated = run.step
            for name in run.spec.eval.tasks:
                forget(run, name)
            if run.active:
                self._checkpoint(run)
        self._judge([run for run in runs if run.active and 0 < run.step < run.spec.train.max_steps])

    def _judge(self, runs: Sequence[RunState]) -> None:
        """Runs that a tuner's pruner gives up leave; their checkpoints stay, for a grid that wants them whole."""
        ended = self.judge([run.folder for run in runs]) if self.judge is not None and runs else set()
        for run in runs:
            if run.folder.id in ended:
                run.active = False
                self._event(run, "pruned", step=run.step)
                self._finished(run, "pruned")

    def _evaluate_task(self, name: str, runs: Sequence[RunState]) -> None:
        task = runs[0].spec.eval.tasks[name]
        alike = all(run.spec.eval.tasks[name] == task for run in runs)
        check(alike, f"eval.tasks.{name}", "several", "one choice of this evaluation within a pack")
        on_items = task.split != TEXT
        members = [self._items(run, task, run in runs) for run in self.runs] if on_items else []
        kept = kept_on_disk(self.runs, runs, name, self._flag.pause)
        outcomes = task.run(self.base, self.adapted, members, kept)
        for run in runs:
            if (outcome := outcomes[run.index]) is not None:
                self._record_outcome(run, name, task.split, outcome)

    def _items(self, run: RunState, task: Evaluation, asked: bool) -> Items:
        if not asked:
            return Items(run.spec.dataset, (), ())
        return items_of(run.spec, self.base, task.split, task.max_items, self.cache)[0]

    def _record_outcome(self, run: RunState, name: str, split: str, outcome: Outcome) -> None:
        if bad := {k: v for k, v in outcome.metrics.items() if not math.isfinite(v)}:
            found = ", ".join(f"{metric} {value}" for metric, value in bad.items())
            self._fail(run, "diverged", Diverged(f"{found} in {name} at step {run.step}"))
            return
        run.claim.fence()
        lines.write(run.folder.items(name), ({**record, "step": run.step} for record in outcome.records))
        record = {"kind": "eval", "step": run.step, "task": name, "split": split}
        self._record(run, {**record, "metrics": outcome.metrics, "items": len(outcome.records)})

    def _end(self, runs: Sequence[RunState]) -> None:
        """Last evaluation, adapter, result; the checkpoint goes when the result is there."""
        for run in runs:
            self._checkpoint(run)
        self._evaluate([run for run in runs if run.evaluated < run.step])
        for run in runs:
            if not run.active:  # its evaluation was no number
                continue
            run.claim.fence()
            self.adapted.save(run.index, run.folder.adapter)
            self._time(run)
            atomic.write_json(run.folder.result, self._result(run))
            run.active = False
            self._event(run, "done", step=run.step)
            checkpoint.remove(run.folder.checkpoint)
            self._finished(run, "done")

    def _result(self, run: RunState) -> dict[str, Any]:
        records = self.adapted.records[run.index]
        return {
            "schema": SCHEMA,
            "id": run.folder.id,
            "step": run.step,
            "metrics": final_metrics(run.folder, run.step),
            "trainable_parameters": sum(record.parameters for record in records.values()),
            "modules": {name: record._asdict() for name, record in records.items()},
            "left_out": left_out(run.spec, self.base, self.cache),
        }

    def _fail(self, run: RunState, kind: FailureClass, error: BaseException) -> None:
        run.active = False
        run.claim.fence()
        write_failure(run.folder, kind, error, run.step)
        self._event(run, "failed", step=run.step, **{"class": kind})
        self._finished(run, "failed")

    def _checkpoint(self, run: RunState) -> None:
        run.claim.fence()
        checkpoint.save(run.folder.checkpoint, run.state(), run.counters())

    def _record(self, run: RunState, record: Mapping[str, Any]) -> None:
        lines.append(run.folder.metrics, [dict(record)])
        for observer in self.observers:
            observer.recorded(run.folder, record)

    def _time(self, run: RunState) -> None:
        wall, spent = time.monotonic() - self._began_s, self.spent[run]
        record = {"step": run.step, "wall_s": wall, "tokens": spent.tokens}
        record["tokens_per_s"] = spent.tokens / self._training_s if self._training_s else 0.0  # evaluations apart
        record |= {"peak_rss_gib": peak_rss_gib(), "pack": len(self.runs)}
        if spent.probe_tokens:  # within wall_s, and within the time that tokens_per_s divides by
            record |= {"probe_s": spent.probe_s, "probe_tokens": spent.probe_tokens}
        lines.append(run.folder.timing, [record])
        for observer in self.observers:
            observer.timed(run.folder, record)

    def _event(self, run: RunState, state: str, **more: Any) -> None:
        lines.append(run.folder.events, [{"time_s": time.time(), "state": state, **more}])

    def _finished(self, run: RunState, state: State) -> None:
        for observer in self.observers:
            observer.finished(run.folder, state)


def _kept(run: RunState, kind: str) -> int:
    """The last step whose records of a kind the checkpoint vouches for."""
    return {"eval": run.evaluated, "ranks": run.reallocated}.get(kind, run.step)


def _evaluation_due(run: RunState) -> bool:
    every = run.spec.eval.every
    if run.step == 0:
        return run.spec.eval.at_start
    return every > 0 and run.step % every == 0 and run.step < run.spec.train.max_steps


def final_metrics(folder: RunFolder, step: int) -> dict[str, float]:
    """The last evaluation's metrics and the last training loss; where two tasks give one name, the later one's task
    stands in front of it."""
    out: dict[str, float] = {}
    for record in lines.read(folder.metrics):
        if record["kind"] == "train":
            out["train_loss_nats"] = record["loss_nats"]
        elif record["kind"] == "eval" and record["step"] == step:
            for metric, value in record["metrics"].items():
                name = metric_name(record["split"], metric)
                out[f"{record['task']}_{name}" if name in out else name] = value
    return out


def write_failure(folder: RunFolder, kind: FailureClass, error: BaseException, step: int) -> None:
    """Say what ended a run, in words and with the traceback."""
    trace = "".join(traceback.format_exception(error))
    record = {"schema": SCHEMA, "id": folder.id, "class": kind, "message": str(error), "step": step}
    atomic.write_json(folder.failure, {**record, "traceback": trace})
