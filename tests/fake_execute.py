"""A training that costs nothing, for tests of what happens around it: the seed says how a run goes."""

import itertools
import math
import os
import signal
import time
from collections.abc import Sequence

from ablora.store import atomic, lines
from ablora.store.claims import Claim, Fenced
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder
from ablora.train.execute import Judge
from ablora.train.observe import Observer
from ablora.train.stop import Stopped, stop_flag

MEMORY, DISK, BUG, DIES, SLOW, FENCED, DIVERGES, UNTIL, HUNGRY = 101, 102, 103, 104, 105, 106, 107, 108, 109
"""Seeds of runs that do not go well."""
UNTILS = (UNTIL, 111, 112, 113)
"""Seeds of runs that go on until they are told to end."""


def execute(
    pack: Sequence[RunFolder],
    claims: Sequence[Claim],
    roots: Roots,
    observers: Sequence[Observer],
    threads: int | None = None,
    most_examples: int | None = None,
    judge: Judge | None = None,
) -> None:
    """Has the contract of `ablora.train.execute.execute`; appends a line to executed.txt for every start."""
    for folder, claim in zip(pack, claims):
        with (folder.path / "executed.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        _run(folder, claim, observers, judge)


def loss_of(lr: float, seed: int = 0) -> float:
    """As if the best rate were 0.01, whatever the method; a little luck of the seed."""
    return abs(math.log10(lr) + 2) + 0.01 * (seed % 7)


def _run(folder: RunFolder, claim: Claim, observers: Sequence[Observer], judge: Judge | None) -> None:
    spec = folder.read_spec()
    lines.keep(folder.metrics, lambda record: True)  # half a line that a full disk left, as the trainer does
    begun = max((record["step"] for record in lines.read(folder.metrics)), default=0)
    for observer in observers:
        observer.started(folder, spec, begun)
    with stop_flag() as flag:
        for step in itertools.count(begun + 1):
            claim.fence()
            record = {"kind": "train", "step": step, "loss_nats": 1 / step, "lr": spec.train.lr}
            lines.append(folder.metrics, [record])
            for observer in observers:
                observer.recorded(folder, record)
            time.sleep(0.05 if spec.seed in (SLOW, *UNTILS) else 0)
            if flag.reason is not None:
                raise Stopped(flag.reason)
            if step == 2 and _go_wrong(folder, spec.seed, begun):
                return
            if _is_last(folder, spec.seed, step):
                break
            if spec.eval.every and step % spec.eval.every == 0:
                _evaluate(folder, spec.train.lr, spec.seed, step)
                if judge is not None and folder.id in judge([folder]):
                    for observer in observers:
                        observer.finished(folder, "pruned")
                    return
    claim.fence()
    loss = loss_of(spec.train.lr, spec.seed if spec.seed < MEMORY else 0)
    metrics = {"answer_loss_nats": 1.0, "validation_answer_loss_nats": loss}
    atomic.write_json(folder.result, {"schema": 1, "id": folder.id, "step": 3, "metrics": metrics})
    for observer in observers:
        observer.finished(folder, "done")


def _evaluate(folder: RunFolder, lr: float, seed: int, step: int) -> None:
    record = {"kind": "eval", "step": step, "task": "validation_answer_loss", "split": "validation"}
    lines.append(folder.metrics, [{**record, "metrics": {"answer_loss_nats": loss_of(lr, seed) + 1 / step}}])


def _is_last(folder: RunFolder, seed: int, step: int) -> bool:
    """Step 3; SLOW makes 599, and UNTILS go on until there is a file `go` among the runs."""
    if seed in UNTILS:
        return (folder.path.parent / "go").exists()
    return step >= (599 if seed == SLOW else 3)


def _go_wrong(folder: RunFolder, seed: int, begun: int) -> bool:
    match seed:
        case 101:
            raise MemoryError("4 GiB asked for")
        case 102:
            raise OSError(28, "No space left on device")
        case 103:
            raise ZeroDivisionError("division by zero")
        case 104 if begun == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        case 109:
            eaten = bytearray(4 << 30)
            eaten[::4096] = b"x" * len(eaten[::4096])
        case 106:
            raise Fenced(f"run {folder.id}: claim 0 was taken over")
        case 107:
            failure = {"schema": 1, "id": folder.id, "class": "diverged", "message": "loss is nan", "step": 2}
            atomic.write_json(folder.failure, {**failure, "traceback": ""})
            return True
    return False
