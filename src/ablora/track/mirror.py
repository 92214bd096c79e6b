"""One run folder, mirrored by one W&B run: opened, followed, closed; always made from what is on disk.

A row's place in W&B (its `_step`) is the number of its line in metrics.jsonl, so a row cannot be there twice; the axis
that people see is `step`, the optimizer step.
"""

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ablora.store import atomic
from ablora.store.run_folder import RunFolder
from ablora.track import describe
from ablora.track.tail import Tail

SCHEMA = 1
INIT_S, FINISH_S = 8.0, 20.0
"""How long W&B may take to answer at the start, and to upload the rest at the end, before the run goes on offline."""


class Mirror:
    """A folder's view in W&B. Any method may raise whatever wandb raises; the folder itself is never at risk."""

    def __init__(self, wandb: ModuleType, folder: RunFolder, card: dict[str, Any]):
        self.wandb, self.folder, self.card = wandb, folder, card
        self.mode = "none"
        self.trouble: list[str] = []
        self.on_server = False
        self._run: Any = None
        self._clear()

    def open(self, online: bool) -> None:
        """A new W&B run of the same id. What an earlier attempt left on disk is a view, and is removed: offline,
        wandb ignores `resume`, so a second log beside the first would hold the early steps twice."""
        self.on_server = known_to_server(self.folder)
        remove_views(self.folder)
        require_writable(view_folder(self.folder))
        self._clear()
        self.mode, mode = "none", "online" if online else "offline"
        card, init_s = self.card, self.card.get("init_s", INIT_S)
        self._run = self.wandb.init(
            id=card["id"], name=card["name"], group=card["group"], tags=card["tags"], job_type=card["job_type"],
            config=card["config"], project=card["project"], entity=card["entity"], dir=str(self.folder.path),
            mode=mode, resume="allow" if online else None, reinit="create_new", settings=settings(self.wandb, init_s),
        )  # fmt: skip
        if self._run.id != card["id"]:
            raise RuntimeError(f"wandb gave the run the id {self._run.id} in place of {card['id']}")
        self.mode, self._there = mode, int(self._run.step) if online else 0
        self.on_server |= online
        self._run.define_metric("step", hidden=True)
        for prefix in ("train/*", "eval/*", "ranks/*", "timing/*"):
            self._run.define_metric(prefix, step_metric="step")
        self.note("open")

    def _clear(self) -> None:
        self._metrics, self._timing = Tail(self.folder.metrics), Tail(self.folder.timing)
        self._waiting: list[dict[str, float]] = []
        self._times: dict[int, dict[str, float]] = {}
        self.rows = 0
        self._there = 0

    def follow(self, final: bool = False) -> None:
        """Log the new lines. The newest waits for its timing, which is written after it."""
        self._waiting += [describe.row(record) for record in self._metrics.new()]
        self._times |= {record["step"]: describe.timing_row(record) for record in self._timing.new()}
        ready = len(self._waiting) if final else len(self._waiting) - 1
        for row in self._waiting[: max(ready, 0)]:
            row |= self._times.pop(int(row["step"]), {})
            if self.rows >= self._there:  # online, the server has the earlier ones
                self._run.log(row, step=self.rows, commit=True)
            self.rows += 1
        del self._waiting[: max(ready, 0)]

    def close(self, state: str) -> None:
        """The last rows, the summary and how it ended; `state` other than done and failed: it may go on later."""
        self.follow(final=True)
        self._run.summary.update(summary(self.folder, state))
        if state not in ("done", "failed"):
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if state == "done" else 1)
        self.note("closed" if state in ("done", "failed") else "open", state)

    def note(self, state: str, ended: str | None = None) -> None:
        """track.json: where the mirror is and what went wrong, for `ablora sync` and for people."""
        facts = {"mode": self.mode, "state": state, "ended": ended, "rows": self.rows, "trouble": self.trouble}
        note(self.folder, self.card, {**facts, "on_server": self.on_server})


def summary(folder: RunFolder, state: str) -> dict[str, Any]:
    """The final numbers as the result has them, or the class of the failure."""
    if state == "done" and folder.result.exists():
        result = folder.read_result()
        return {**result["metrics"], "trainable_parameters": result.get("trainable_parameters")}
    if state == "failed" and folder.failure.exists():
        return {"failure_class": folder.read_failure()["class"]}
    return {}


def view_folder(folder: RunFolder) -> Path:
    return folder.path / "wandb"


def note_path(folder: RunFolder) -> Path:
    return folder.path / "track.json"


def uploaded_path(folder: RunFolder) -> Path:
    return folder.path / "uploaded.json"


def known_to_server(folder: RunFolder) -> bool:
    """Whether an attempt at this run has reached W&B. `wandb sync` appends a log to what is there (0.31, tried), so
    such a run is sent by a client that asks first (`Mirror.open` with `online`)."""
    with contextlib.suppress(OSError, atomic.Corrupted):
        return uploaded_path(folder).exists() or bool(atomic.read_json(note_path(folder)).get("on_server"))
    return False


def remove_views(folder: RunFolder) -> None:
    """Take away wandb's copies of the run, and the mark that they were uploaded: a new one is about to be made."""
    for pattern in ("offline-run-*", "run-*"):
        for path in view_folder(folder).glob(pattern):
            shutil.rmtree(path)
    uploaded_path(folder).unlink(missing_ok=True)


def require_writable(path: Path) -> None:
    """Raise an OSError here: wandb would go on in a temporary folder, where nobody finds it."""
    path.mkdir(exist_ok=True)
    probe = path / ".probe"
    probe.touch()
    probe.unlink()


def note(folder: RunFolder, card: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write track.json; a folder that takes no file has been reported already."""
    value = {"schema": SCHEMA, "id": folder.id, **facts, "project": card["project"], "entity": card["entity"]}
    with contextlib.suppress(OSError):
        atomic.write_json(note_path(folder), value)


def settings(wandb: ModuleType, init_s: float = INIT_S) -> Any:
    """Bounded, silent, and nothing taken from the machine: no console, code, git, packages, arguments or statistics."""
    wanted: dict[str, Any] = {
        "console": "off", "save_code": False, "disable_git": True, "disable_code": True, "disable_job_creation": True,
        "x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True, "x_save_requirements": False,
        "x_disable_viewer": True, "label_disable": True, "sagemaker_disable": True, "silent": True, "quiet": True,
        "symlink": False, "use_dot_wandb": False, "login_timeout": 1.0, "init_timeout": init_s,
        "finish_timeout": FINISH_S, "finish_timeout_raises": True,
    }  # fmt: skip
    known = set(wandb.Settings.model_fields)  # an older wandb lacks some, and refuses what it does not know
    return wandb.Settings(**{key: value for key, value in wanted.items() if key in known})
