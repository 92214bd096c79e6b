"""The process in which wandb lives: `python -m ablora.track.worker`, one for all runs of a training process.

Why a process: with its service stopped, wandb 0.31 hangs in log, finish and at interpreter exit, and with its service
killed it ends the interpreter with a traceback (both tried). Here the worst that can happen is that this process is
killed; the run folder has everything, and the next worker starts from it. It also leaves the trainer's environment,
working directory and any `wandb.run` of a notebook alone.

It reads one JSON message per line (start, finish) and answers each finish with one line. Metrics do not pass through
here: the worker follows metrics.jsonl. When its input ends, the runs that are still open may go on another day.
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ablora.store.run_folder import RunFolder
from ablora.track.login import choose
from ablora.track.mirror import Mirror

POLL_S = 2.0
BROKEN, UNUSABLE = 3, 4
"""Exit codes: wandb's service failed (a new worker may do better); wandb cannot be used here at all."""


class Station:
    """The open mirrors. A failure of the disk ends one mirror. Any other failure of wandb ends this process: its
    service keeps a failed run's id "in use", so there is no second try in the same one."""

    def __init__(self, wandb: Any, say: Callable[[dict[str, Any]], None]):
        self._wandb, self._say = wandb, say
        self._open: dict[str, Mirror] = {}

    def start(self, message: dict[str, Any]) -> None:
        folder, card = RunFolder(Path(message["path"])), message["card"]
        mode, complaint = choose(card["mode"])
        mirror = self._open[folder.id] = Mirror(self._wandb, folder, card)
        mirror.trouble += message["trouble"]
        if complaint:
            self._trouble(mirror, complaint)
        self._attempt(mirror, lambda: mirror.open(mode == "online"))

    def poll(self) -> None:
        for mirror in list(self._open.values()):
            if mirror.mode != "none":
                self._attempt(mirror, mirror.follow)

    def finish(self, message: dict[str, Any]) -> None:
        mirror = self._open.pop(message["run"])
        if mirror.mode != "none":
            self._attempt(mirror, lambda: mirror.close(message["state"]))
        self._say({"run": message["run"], "mode": mirror.mode, "rows": mirror.rows})

    def leave(self) -> None:
        """The trainer went away without ending these runs: stopped by a signal, preempted, or killed."""
        for run in list(self._open):
            self.finish({"run": run, "state": "preempted"})

    def busy(self) -> bool:
        return bool(self._open)

    def _attempt(self, mirror: Mirror, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._silence(mirror, error)
            if not _of_the_disk(error):
                self._say({"broken": _brief(error)})
                os._exit(BROKEN)  # not sys.exit: wandb's own exit hooks may hang on a dead service

    def _silence(self, mirror: Mirror, error: Exception) -> None:
        mirror.mode = "none"
        mirror.trouble.append(f"not tracked: {_brief(error)}")
        mirror.note("silent")
        if _of_the_disk(error):
            self._say({"trouble": mirror.trouble[-1], "of": mirror.folder.id})

    def _trouble(self, mirror: Mirror, text: str) -> None:
        mirror.trouble.append(text)
        self._say({"trouble": text, "of": mirror.folder.id})


def _of_the_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)


def _brief(error: Exception) -> str:
    """Class and first line: enough to act on. wandb's messages name hosts and paths; keys are not among them."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:300]


def main() -> int:
    """Obey the commands that come on standard input until it ends; answer on standard output."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # they are the trainer's business; the end of the input is ours
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what wandb prints must not be taken for an answer

    def say(message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody may be listening any more
            print(json.dumps(message), file=answers, flush=True)

    inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_read, args=(sys.stdin, inbox), daemon=True).start()
    try:
        import wandb
    except Exception as error:
        say({"unusable": _brief(error)})
        return UNUSABLE
    wandb.setup(wandb.Settings(silent=True, quiet=True))
    return _serve(Station(wandb, say), inbox)


def _read(source: IO[str], inbox: "queue.Queue[dict[str, Any] | None]") -> None:
    for line in source:
        inbox.put(json.loads(line))
    inbox.put(None)


def _serve(station: Station, inbox: "queue.Queue[dict[str, Any] | None]") -> int:
    while True:
        try:
            message = inbox.get(timeout=POLL_S if station.busy() else None)
        except queue.Empty:
            station.poll()
            continue
        if message is None:
            station.leave()
            return 0
        station.start(message) if message["op"] == "start" else station.finish(message)


if __name__ == "__main__":
    sys.exit(main())
