"""The run folder: every path in it, and what each file holds. It is the truth; tables and trackers are views of it.

spec.json          {"schema", "id", "spec": the tree that `ablora.tree.build` reads}
env.json           {"schema", ...}: versions, device, code; never a secret
claim.<n>.json     generation n of who runs it
events.jsonl       {"time_s", "state", ...} one line per state transition
metrics.jsonl      {"kind": "train", "step", "loss_nats", "lr", ...}, {"kind": "eval", "step", "task", ...}, or where
                   ranks move {"kind": "ranks", "step", "moved", "probe_loss_nats", and each module's rank from then};
                   a line holds nothing that a second, equal run would not repeat
timing.jsonl       {"step", "wall_s", "tokens", "tokens_per_s", "pack", ...}: what differs from machine to machine;
                   wall_s is that of the pack, whose size stands beside it
evals/<task>.jsonl one line per item of the last evaluation: {"item", "step", ...}; an item is one of the data set,
                   a chunk of a corpus, or a module; no file where the question does not apply
evals/<task>.partial.jsonl  {"step", "place", "value"}: what an evaluation under way has found, item by item
checkpoint/        two slots; gone when the run is done
adapter/           the final factors
result.json        {"schema", "id", "step", "metrics": {...}, "trainable_parameters", "modules"}: written last
failure.json       {"schema", "id", "class", "message", "traceback", "step"}
track.json, uploaded.json, wandb/   the tracker's notes and its offline log: views, safe to delete
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ablora.spec import RunSpec, run_id
from ablora.store import atomic
from ablora.store.roots import Roots
from ablora.tree import build, to_tree

SCHEMA = 1
"""Raised when a file's meaning changes; frozen folders of each released schema are read by the tests."""

FailureClass = Literal[
    "diverged", "out_of_memory", "timeout", "node_failure", "preempted", "cancelled", "disk_full", "bad_input", "bug"
]
State = Literal["planned", "queued", "running", "pruned", "done", "failed", "stale", "lost"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run; making one touches nothing on disk."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "spec.json"

    @property
    def env(self) -> Path:
        return self.path / "env.json"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def timing(self) -> Path:
        return self.path / "timing.jsonl"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def failure(self) -> Path:
        return self.path / "failure.json"

    def partial(self, task: str) -> Path:
        return self.path / "evals" / f"{task}.partial.jsonl"

    def items(self, task: str) -> Path:
        return self.path / "evals" / f"{task}.jsonl"

    @property
    def set_aside(self) -> list[Path]:
        """The failures after which the run was tried again."""
        return sorted(self.path.glob("failure.*.json"))

    def set_failure_aside(self) -> None:
        """Keep failure.json as failure.<n>.json, so that the run is tried again."""
        self.failure.rename(self.path / f"failure.{len(self.set_aside)}.json")

    def read_result(self) -> dict[str, Any]:
        """The result; a folder whose result names another run was moved or copied by hand and is refused."""
        value = atomic.read_json(self.result)
        if not isinstance(value, dict) or value.get("id") != self.id or "metrics" not in value:
            found = value.get("id") if isinstance(value, dict) else value
            raise atomic.Corrupted(str(self.result), found, f"a result with id {self.id} and its metrics")
        return value

    def read_failure(self) -> dict[str, Any]:
        return atomic.read_json(self.failure)

    def read_tree(self) -> dict[str, Any]:
        """The specification as the plain tree that was written."""
        value = atomic.read_json(self.spec)
        if not isinstance(value, dict) or not isinstance(value.get("spec"), dict):
            raise atomic.Corrupted(str(self.spec), type(value).__name__, "a specification with id and spec")
        return value["spec"]

    def read_spec(self) -> RunSpec:
        return build(self.read_tree(), RunSpec)

    def is_stale(self) -> bool:
        """Whether today's code gives this specification another id: a revision was raised, or content changed."""
        return run_id(self.read_spec()) != self.id


def folder_of(roots: Roots, run: str) -> RunFolder:
    return RunFolder(roots.runs / run)


def create(roots: Roots, spec: RunSpec) -> RunFolder:
    """The folder of a specification, made if it is absent; equal specifications meet in one."""
    folder = folder_of(roots, run_id(spec))
    if not folder.spec.exists():
        atomic.write_json(folder.spec, {"schema": SCHEMA, "id": folder.id, "spec": to_tree(spec)})
    return folder


TEXT = "text"
"""Stands for a split in records of an evaluation that reads a corpus and not the run's data set."""


def metric_name(split: str, metric: str) -> str:
    """A metric of the test split, or of a corpus, keeps its name; another's has the split in front:
    validation_answer_loss_nats."""
    return metric if split in ("test", TEXT) else f"{split}_{metric}"
