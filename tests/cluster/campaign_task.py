"""The training of the fault campaign: steps of a tenth of a second, a checkpoint every ten, and a journal of its lives.

Beside the runs' folder: lives/<run>.jsonl, appended to by every process that trains the run, so that the order of its
lines is the order of what was done, whatever the clocks say; orders/<run>, what the run shall do wrong next; and `go`,
at which the runs end that go on until they are told.
"""

import importlib.abc
import importlib.machinery
import itertools
import os
import random
import sys
import time
import types
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EVERY = 10
"""Steps between checkpoints: after a death at most so many are made again."""
STEP_S = 0.1
SKEW = "ABLORA_CAMPAIGN_SKEW_S"


def work_in_task(job: Any, sent: Mapping[str, int], threads: int, short_s: float | None) -> None:
    """Ours, with the training below; pickled by reference."""
    skew_clock(float(os.environ.get(SKEW, 0)))
    sys.meta_path.insert(0, NoTransformers())
    from ablora.dispatch import job as jobs
    from ablora.dispatch.task import work_in_task as real

    jobs.execute = execute
    real(job, sent, threads, short_s)


def skew_clock(seconds: float) -> None:
    """From here on this process's clock is so far off. Not by libfaketime: with its 0.9.10 `time.sleep` of Python 3.11
    raises (Invalid argument), or a wait with a time limit does not end."""
    real = time.time
    time.time = lambda: real() + seconds


class NoTransformers(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty classes in place of transformers: this training needs none of it, and its import was 7 of the 10 s that a
    task took to start."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        found = name.partition(".")[0] == "transformers"
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def length(seed: int) -> int | None:
    """The steps of a run; None for one that goes on until there is `go`."""
    return None if seed % 3 else random.Random(seed).randint(50, 400)


def execute(pack: Sequence[Any], claims: Sequence[Any], roots: Any, *_: Any, **__: Any) -> None:
    """Has the contract of `ablora.train.execute.execute`."""
    from ablora.train.stop import stop_flag

    for folder, claim in zip(pack, claims):
        life = Life(folder, claim, roots.runs.parent)
        with stop_flag() as flag:
            life.train(flag)


class Life:
    """One process's training of one run."""

    def __init__(self, folder: Any, claim: Any, place: Path):
        self.folder, self.claim, self.place = folder, claim, place
        self.name = uuid.uuid4().hex[:8]
        self.seed = folder.read_tree()["seed"]
        self.saved = folder.path / "saved.json"

    def note(self, **what: Any) -> None:
        from ablora.store import lines

        lines.append(self.place / "lives" / f"{self.folder.id}.jsonl", [{"life": self.name, **what}])

    def train(self, flag: Any) -> None:
        from ablora.store import atomic, lines
        from ablora.train.stop import Stopped

        begun = atomic.read_json(self.saved)["step"] if self.saved.exists() else 0
        self.claim.fence()
        self.note(start=begun, claim=self.claim.generation, pid=os.getpid(), time_s=time.time())
        lines.keep(self.folder.metrics, lambda record: record["step"] <= begun)
        for step in itertools.count(begun + 1):
            self.claim.fence()
            lines.append(self.folder.metrics, [{"kind": "train", "step": step, "loss_nats": 1 / step, "lr": 0.01}])
            self.note(step=step)
            time.sleep(STEP_S)
            if step % EVERY == 0:
                self.save(step)
            if flag.reason is not None:
                self.save(step)
                self.note(stop=step)
                raise Stopped(flag.reason)
            if self.go_wrong(step):
                return
            if self.is_last(step):
                return self.finish(step)

    def save(self, step: int) -> None:
        from ablora.store import atomic

        self.claim.fence()
        atomic.write_json(self.saved, {"step": step})

    def is_last(self, step: int) -> bool:
        steps = length(self.seed)
        return (self.place / "go").exists() if steps is None else step >= steps

    def finish(self, step: int) -> None:
        from ablora.store import atomic

        self.claim.fence()
        metrics = {"answer_loss_nats": 1.0, "validation_answer_loss_nats": 1.0}
        result = {"schema": 1, "id": self.folder.id, "step": step, "metrics": metrics, "life": self.name}
        atomic.write_json(self.folder.result, result)
        self.note(finish=step)

    def go_wrong(self, step: int) -> bool:
        """Do what was ordered, once; whether the run is over with that."""
        order = self.place / "orders" / self.folder.id
        if not order.exists():
            return False
        kind = order.read_text()
        order.unlink()
        self.note(wrong=kind)
        match kind:
            case "bug":
                raise ZeroDivisionError("division by zero")
            case "diverged":
                self.diverge(step)
            case "out_of_memory":
                eaten = bytearray(4 << 30)
                eaten[::4096] = b"x" * len(eaten[::4096])
        return True

    def diverge(self, step: int) -> None:
        from ablora.store import atomic

        failure = {"schema": 1, "id": self.folder.id, "class": "diverged", "message": "loss is nan", "step": step}
        atomic.write_json(self.folder.failure, {**failure, "traceback": ""})
