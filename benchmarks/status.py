"""Time of `ablora status` on a study of 1,000 runs: done, failed, lost, stopped and never begun ones.

    python benchmarks/status.py --rounds 5

The study is made by the product's own functions, the results are synthetic. Each command is a process of its own; the
last line is JSON, medians over the rounds in seconds of wall time, and of processor time.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ablora.config import ask
from ablora.store import atomic, lines
from ablora.store.claims import whoami
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, create
from ablora.study.manifest import study_folder
from ablora.study.plan import make

PROGRAM = "import sys; from ablora.cli import main; sys.exit(main(sys.argv[1:]))"
RATES = ",".join(f"{i}e-4" for i in range(1, 11))
GRID = ("method=lora,rslora,pissa,milora,molora_topk", "rank=8,16", f"train.lr={RATES}", "seed=range(10)")
COMMANDS = {"study": ("status", "s"), "counts": ("status",), "check_stale": ("status", "s", "--check-stale")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ABLORA_RUNS"] = str(Path(folder) / "runs")
        runs = study_of(Roots.from_environment())
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
        for _ in range(rounds):
            for name, command in COMMANDS.items():
                found[name].append(timed(command, folder))
    medians = {f"{name}_{unit}": round(statistics.median(times[i] for times in found[name]), 2)
               for name in COMMANDS for i, unit in enumerate(("wall_s", "cpu_s"))}  # fmt: skip
    print(json.dumps({"runs": runs, "rounds": rounds, **medians}))


def study_of(roots: Roots) -> int:
    """A study of which every tenth run failed, is lost, was stopped, or was never begun, and the others are done."""
    question = ask(GRID, multirun=True)
    plan = make(question.cells)
    for number, spec in enumerate(plan.specs.values()):
        if number % 10 != 9:
            left(create(roots, spec), number % 10)
    study_folder(roots, "s").write(plan.rows, question.arguments, question.execution.to_tree())
    return len(plan.specs)


def left(folder: RunFolder, kind: int) -> None:
    """A run as a process has left it, with 200 steps on record."""
    lines.append(folder.metrics, ({"kind": "train", "step": step, "loss_nats": 1 / step} for step in range(1, 201)))
    (folder.path / "claim.0.json").write_text(json.dumps(whoami() | {"boot": "an earlier one"}))
    if kind == 0:
        return  # lost
    (folder.path / "claim.0.released").touch()
    if kind == 1:
        failure = {"schema": 1, "id": folder.id, "class": "bug", "message": "", "traceback": "", "step": 200}
        atomic.write_json(folder.failure, failure)
    elif kind > 2:  # 2 was stopped
        metrics = {"answer_loss_nats": 1.0}
        atomic.write_json(folder.result, {"schema": 1, "id": folder.id, "step": 200, "metrics": metrics})


def timed(command: tuple[str, ...], folder: str) -> tuple[float, float]:
    """Wall and processor time of one command."""
    before = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *command], cwd=folder, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    return time.perf_counter() - before, used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
