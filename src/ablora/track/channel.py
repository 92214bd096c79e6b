"""The trainer's end of the worker: start it, send, wait for an answer, kill it. Every call ends within a bound."""

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ablora.track.surroundings import environment

SEND_S, LEAVE_S = 5.0, 5.0


class Broken(RuntimeError):  # noqa: N818 -- what happened to the worker
    """The worker died, or did not answer in time."""


class Channel:
    """A running worker. It costs the trainer one fork; wandb is imported on the other side."""

    def __init__(self, cache: Path):
        command = [sys.executable, "-m", "ablora.track.worker"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.path.abspath(os.sep),  # wandb reads settings from, and may write to, the working directory
            env=environment(cache),
            start_new_session=True,  # Ctrl-C is for the trainer, and there is no terminal to ask on
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self._hung_up = False
        """Then the number `_to` is free, and the next pipe of this process may have it: nothing is sent there."""
        self._heard = b""
        self.news: list[dict[str, Any]] = []
        """Messages of the worker that answer nothing: trouble, mostly."""
        atexit.register(self.close)

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: dict[str, Any]) -> None:
        if self._hung_up:
            raise Broken(self.last_words())
        rest = json.dumps(message).encode() + b"\n"
        until = time.monotonic() + SEND_S
        while rest:
            if not select.select([], [self._to], [], max(until - time.monotonic(), 0))[1]:
                raise Broken(f"the tracker took no message for {SEND_S:g} s")
            try:
                rest = rest[os.write(self._to, rest) :]
            except OSError as error:
                raise Broken(self.last_words()) from error

    def answer(self, run: str, patience_s: float) -> dict[str, Any]:
        """The answer to the `finish` of a run."""
        until = time.monotonic() + patience_s
        while (left := until - time.monotonic()) > 0:
            for message in self.listen(left):
                if message.get("run") == run:
                    return message
        raise Broken(f"the tracker did not answer for {patience_s:g} s")

    def listen(self, wait_s: float = 0.0) -> list[dict[str, Any]]:
        """What came in; news are kept aside."""
        if not select.select([self._from], [], [], wait_s)[0]:
            return []
        if not (chunk := os.read(self._from, 1 << 16)):
            raise Broken(self.last_words())
        return self._take(chunk)

    def _take(self, chunk: bytes) -> list[dict[str, Any]]:
        *lines, self._heard = (self._heard + chunk).split(b"\n")
        messages = [json.loads(line) for line in lines]
        self.news += [message for message in messages if "run" not in message]
        return [message for message in messages if "run" in message]

    def last_words(self) -> str:
        """Why the worker ended, as far as it could say."""
        with contextlib.suppress(BlockingIOError):
            self._take(os.read(self._from, 1 << 16))
        said = [text for message in self.news for key, text in message.items() if key in ("broken", "unusable")]
        return said[-1] if said else f"the tracker's process ended (exit code {self._process.poll()})"

    def close(self) -> None:
        """End of input: the worker closes what is open and goes; after `LEAVE_S` it is killed."""
        atexit.unregister(self.close)
        self._hang_up()
        try:
            self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """wandb's service first: it ends with its parent by itself, but not while it is stopped or stuck."""
        atexit.unregister(self.close)
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        found = children.read_text().split() if self.alive() and children.exists() else []
        for pid in [*map(int, found), *([self.pid] if self.alive() else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._hang_up()

    def _hang_up(self) -> None:
        """What the worker said last stays readable; its end of the other pipe goes with the process."""
        self._hung_up = True
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
