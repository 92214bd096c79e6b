"""Synthetic runs: folders as the trainer writes them, and the observer told what the trainer tells it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from track_values import Method, Model, Numbers, Task

import wandb_log
from ablora.spec import AdapterSpec, EvalSpec, RunSpec, TrainSpec
from ablora.store import atomic, lines
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, create

KEY = "0123456789abcdef0123456789abcdef01234567"


def spec_of(seed: int = 0, method: str = "milora", lr: float = 1e-3) -> RunSpec:
    return RunSpec(
        method=Method(method), model=Model(), dataset=Numbers(), train=TrainSpec(lr=lr, max_steps=20, batch_size=4),
        eval=EvalSpec(tasks={"answer_loss": Task()}), adapter=AdapterSpec(), rank=8, seed=seed,
    )  # fmt: skip


@dataclass
class Trainer:
    """Writes what the trainer writes, in its order, and tells the observer after each line."""

    roots: Roots
    observer: Any
    spec: RunSpec
    offset: float = 0.0

    @property
    def folder(self) -> RunFolder:
        return create(self.roots, self.spec)

    def start(self, step: int = 0) -> "Trainer":
        lines.keep(self.folder.metrics, lambda record: record["step"] <= step)
        lines.keep(self.folder.timing, lambda record: record["step"] <= step)
        self.observer.started(self.folder, self.spec, step)
        if step == 0:
            self.evaluate(0)
        return self

    def _write(self, path: Path, tell: Any, record: dict[str, Any]) -> None:
        lines.append(path, [record])
        tell(self.folder, record)

    def step(self, first: int, last: int) -> "Trainer":
        for step in range(first, last + 1):
            train = {"kind": "train", "step": step, "loss_nats": self.offset + 1 / step, "lr": 1e-3, "balance": None}
            self._write(self.folder.metrics, self.observer.recorded, train)
            time = {"step": step, "wall_s": 0.5 * step, "tokens": 64 * step, "tokens_per_s": 128.0}
            self._write(self.folder.timing, self.observer.timed, time)
        return self

    def evaluate(self, step: int) -> "Trainer":
        record = {"kind": "eval", "step": step, "task": "answer_loss", "split": "test", "items": 10}
        record["metrics"] = {"answer_loss_nats": self.offset + 2.0}
        self._write(self.folder.metrics, self.observer.recorded, record)
        return self

    def end(self) -> "Trainer":
        metrics = {"answer_loss_nats": self.offset + 2.0, "train_loss_nats": self.offset + 0.1}
        value = {"schema": 1, "id": self.folder.id, "step": 20, "metrics": metrics, "trainable_parameters": 4096}
        atomic.write_json(self.folder.result, value)
        self.observer.finished(self.folder, "done")
        return self

    def fail(self, kind: str) -> "Trainer":
        value = {"schema": 1, "id": self.folder.id, "class": kind, "message": "m", "traceback": "", "step": 3}
        atomic.write_json(self.folder.failure, value)
        self.observer.finished(self.folder, "failed")
        return self

    def log(self) -> wandb_log.Log:
        """The one offline log of the run, read back."""
        (path,) = (self.folder.path / "wandb").glob("offline-run-*/*.wandb")
        return wandb_log.read(path)


def steps_of(log: wandb_log.Log) -> list[int]:
    return [row["step"] for row in log.rows if "train/loss_nats" in row]


def whole_run(roots: Roots, observer: Any, seed: int = 0, **more: Any) -> Trainer:
    spec = replace(spec_of(seed), **more)
    return Trainer(roots, observer, spec).start().step(1, 20).evaluate(20).end()
