"""Observers of a run that mirror it in W&B, or do nothing."""

import functools
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ablora.spec import RunSpec
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, State
from ablora.track.channel import Broken, Channel
from ablora.track.config import TrackerConfig
from ablora.track.describe import card
from ablora.track.mirror import FINISH_S, INIT_S, known_to_server, note

log = logging.getLogger("ablora.track")

PATIENCE_S = 2 * INIT_S + FINISH_S + 9.0
"""For the end of a run: W&B's own bounds (a timed-out init takes up to 10 s more) and the offline log after them."""

T = TypeVar("T")


class Off:
    """Tracks nothing."""

    def started(self, folder: RunFolder, spec: RunSpec, step: int) -> None: ...

    def recorded(self, folder: RunFolder, record: Mapping[str, Any]) -> None: ...

    def timed(self, folder: RunFolder, record: Mapping[str, Any]) -> None: ...

    def finished(self, folder: RunFolder, state: State) -> None: ...

    def close(self) -> None: ...


def _never_raises(method: Callable[..., None]) -> Callable[..., None]:
    """Training does not stop for a view of it: what goes wrong is said once, and tracking ends."""

    @functools.wraps(method)
    def guarded(self: "Wandb", *args: Any) -> None:
        if self.silent:
            return
        try:
            method(self, *args)
        except Exception as error:
            self.give_up(f"{type(error).__name__}: {error}")

    return guarded


class Wandb:
    """Tells the worker which runs start and end; their numbers it reads from the run folders itself."""

    def __init__(self, config: TrackerConfig, study: str | None, roots: Roots, patience_s: float = PATIENCE_S):
        self._config, self._study, self._roots = config, study, roots
        self._patience_s, self._init_s = patience_s, INIT_S
        self._channel: Channel | None = None
        self._open: dict[str, tuple[RunFolder, dict[str, Any]]] = {}
        self._told: set[str] = set()
        """Those of the open runs that the present worker knows: told of one twice, wandb refuses it as "in use"."""
        self._restarts_left = 2
        self._trouble: list[str] = []
        self._warned = False
        self.silent = False

    @_never_raises
    def started(self, folder: RunFolder, spec: RunSpec, step: int) -> None:
        """Says so and returns; whether the run was resumed makes no difference, it is mirrored from its first line."""
        told = card(folder, spec, self._config, self._study, self._roots)
        self.follow(folder, told)

    @_never_raises
    def recorded(self, folder: RunFolder, record: Mapping[str, Any]) -> None:
        """The worker reads the line itself; here it is only seen whether there is still a worker."""
        self._insist(self._require_alive)

    def timed(self, folder: RunFolder, record: Mapping[str, Any]) -> None: ...

    @_never_raises
    def finished(self, folder: RunFolder, state: State) -> None:
        """Waits, within a bound, until the mirror has the last line and how it ended."""
        if folder.id in self._open:
            self.settle(folder, state)

    def follow(self, folder: RunFolder, told: dict[str, Any]) -> None:
        self._open[folder.id] = (folder, told)
        self._told.discard(folder.id)
        self._insist(self._send_starts)

    def settle(self, folder: RunFolder, state: str) -> dict[str, Any]:
        answer = self._insist(lambda: self._ask_finish(folder, state))
        self._open.pop(folder.id, None)
        return answer

    def close(self) -> None:
        """End the worker (else it ends with this process); runs without an end stay open in W&B."""
        if self._channel is not None:
            self._channel.close()
            self._hear()
            self._channel = None

    def give_up(self, reason: str) -> None:
        """Go on untracked. The worker is dead by then, so this process may write what it would have."""
        self.silent = True
        if self._channel is not None:
            self._channel.kill()
            self._hear()
        facts = {"mode": "none", "state": "silent", "ended": None, "rows": 0, "trouble": [*self._trouble, reason]}
        for folder, told in self._open.values():
            note(folder, told, {**facts, "on_server": known_to_server(folder)})
        self._warn(f"runs go on untracked: {reason}")

    def _require_alive(self) -> None:
        if self._channel is not None and not self._channel.alive():
            raise Broken(self._channel.last_words())

    def _send_starts(self) -> None:
        """One run at its start; after a restart all that are open."""
        for run, (folder, told) in self._open.items():
            if run not in self._told:
                self._send_start(folder, told)
                self._told.add(run)

    def _send_start(self, folder: RunFolder, told: dict[str, Any]) -> None:
        if self._channel is None:
            self._channel = Channel(self._roots.cache)
        told = {**told, "mode": "offline"} if self._trouble else told
        self._channel.send(
            {
                "op": "start",
                "path": str(folder.path),
                "card": {**told, "init_s": self._init_s},
                "trouble": self._trouble,
            }
        )
        self._channel.listen()
        self._hear()

    def _ask_finish(self, folder: RunFolder, state: str) -> dict[str, Any]:
        assert self._channel is not None
        self._channel.send({"op": "finish", "run": folder.id, "state": state})
        answer = self._channel.answer(folder.id, self._patience_s)
        self._hear()
        return answer

    def _insist(self, act: Callable[[], T]) -> T:
        """Do it; if the worker is lost, once more with a new one, offline, that reads the open runs from disk."""
        try:
            return act()
        except Broken as error:
            if not self._restarts_left:
                raise
            self._restarts_left -= 1
            self._trouble.append(f"tracked offline from here on: {error}")
            self._warn(self._trouble[-1])
            if self._channel is not None:
                self._channel.kill()
                self._channel = None
            self._told.clear()
            self._send_starts()
            return act()

    def _hear(self) -> None:
        assert self._channel is not None
        for message in self._channel.news:
            if "trouble" in message:
                self._warn(f"run {message['of']}: {message['trouble']}")
        self._channel.news.clear()

    def _warn(self, text: str) -> None:
        """Aloud once per process, quietly after that; track.json in each run folder has the rest."""
        log.log(logging.INFO if self._warned else logging.WARNING, "W&B: %s", text)
        self._warned = True


def make(config: TrackerConfig, study: str | None, roots: Roots) -> Off | Wandb:
    """The observer that the configuration asks for; make one per process and give it all runs."""
    if config.kind == "off" or (config.mode == "auto" and os.environ.get("WANDB_MODE", "").lower() == "disabled"):
        return Off()
    if importlib.util.find_spec("wandb") is None:
        log.warning("W&B: runs go on untracked: wandb is not installed; `pip install 'ablora[wandb]'` brings it")
        return Off()
    return Wandb(config, study, roots)
