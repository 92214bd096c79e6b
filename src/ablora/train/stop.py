"""Being asked to stop: Ctrl-C, SIGTERM and SIGUSR2 set a flag, the loop looks at it between steps.

SIGUSR2 is how SLURM says that time is running out or that a job will be preempted (`sbatch --signal`)."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


class Stopped(RuntimeError):  # noqa: N818 -- what happened
    """The process was asked to stop; every run of the pack has a checkpoint of the step it had reached."""

    def __init__(self, reason: int):
        self.signal = signal.Signals(reason)
        super().__init__(f"stopped by {self.signal.name}; the same command goes on from the checkpoint")


class StopFlag:
    """Set by a signal, read by the loop."""

    def __init__(self) -> None:
        self.reason: int | None = None

    def set(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C does not wait
        if self.reason is None:  # the first word counts: SIGUSR2 asks for a requeue, and SLURM sends SIGTERM after it
            self.reason = number

    def pause(self) -> None:
        """Raise `Stopped` if the process was asked to stop; between two steps of something that leaves no trace."""
        if self.reason is not None:
            raise Stopped(self.reason)


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """Handlers for the time of the block; none where the block is not in the main thread, which alone may set them."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.signal(number, flag.set) for number in STOPPING}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
