"""Time and memory of planning a study of 10,000 cells: `ablora plan`, in a process of its own, from an empty folder.

    python benchmarks/plan.py --rounds 3

Each round plans the study and, beside it, one cell of it: what a start of Python and its imports costs. The last
line is JSON: medians over the rounds in seconds, processor time apart (on a busy machine it is the steadier one), and
the greatest resident memory.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = "import sys; from ablora.cli import main; sys.exit(main(sys.argv[1:]))"
RATES = ",".join(f"{i}e-4" for i in range(1, 11))
GRID = ("method=lora,rslora,pissa,milora,molora_topk", "rank=8,16,24,32", f"train.lr={RATES}", "seed=range(50)")
ONE = ("method=lora", "rank=8", "train.lr=1e-4", "seed=0")
BUSY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    study, start = [], []
    for _ in range(rounds):
        study.append(planned(GRID))
        start.append(planned(ONE))
    cells = study[0]["cells"]
    medians = {
        name: round(statistics.median(found[key] for found in of), 2)
        for name, key, of in (("wall_s", "wall_s", study), ("cpu_s", "cpu_s", study),
                              ("start_wall_s", "wall_s", start), ("start_cpu_s", "cpu_s", start))
    }  # fmt: skip
    peak = max(found["peak_rss_mib"] for found in study)
    print(json.dumps({"cells": cells, "rounds": rounds, **medians, "peak_rss_mib": round(peak)}))


def planned(arguments: tuple[str, ...]) -> dict[str, float]:
    """One `ablora plan`: its wall and processor time, and its peak of resident memory."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "ABLORA_RUNS": str(Path(folder) / "runs"), **dict.fromkeys(BUSY, "1")}
        before = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "plan", "-m", *arguments],
            cwd=folder, env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - before
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    cells = int(said.partition("cells: ")[2].partition(",")[0])
    return {"cells": cells, "wall_s": wall_s, "cpu_s": used.ru_utime + used.ru_stime, "peak_rss_mib": _mib(used)}


def _mib(used: resource.struct_rusage) -> float:
    return used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
