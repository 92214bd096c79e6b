"""The fault campaign: rounds of faults on the test cluster until there were enough, each judged; it can be resumed.

    make test-chaos SEED=1 | python -m cluster.campaign --seed 1 --log LOG [--faults 200 --each 10 --minutes 90]

The log has a line for each fault and one for each round, written when a round is over; the same command goes on after
the last whole round. Exit code: 0 if nothing was wrong, 1 if anything was (the rounds' folders are kept), 3 if the time
was over before there were enough faults.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ablora.store import lines
from cluster.campaign_faults import CHEAP, FAULTS, OVERTAKEN, Fault
from cluster.campaign_oracle import KINDS
from cluster.campaign_round import Round
from slurm_lab import TESTS

MORE = 6
"""Faults of a round beside one of each class."""
TRY_S = 40


def play(seed: int, number: int, base: Path) -> list[dict[str, Any]]:
    """One round, and its lines for the log."""
    round_ = Round(seed, number, base)
    struck: list[Fault] = []
    keep = True
    try:
        round_.again()
        round_.until(lambda: len(round_.training()) >= 4)
        for kind in schedule(round_):
            strike(round_, kind, struck)
            round_.pause(round_.rng.uniform(0, 2))
        round_.finish()
        keep = bool(round_.judge()) or any(fault.check() for fault in struck)
        return [*(line_of(number, fault, round_) for fault in struck), summary(number, round_, struck)]
    finally:
        round_.close(keep)


def schedule(round_: Round) -> list[str]:
    """One fault of each class and some more, in random order."""
    kinds = [*classes(round_.has_disk), *round_.rng.choices(CHEAP, k=MORE)]
    round_.rng.shuffle(kinds)
    return kinds


def classes(has_disk: bool) -> list[str]:
    return [kind for kind in FAULTS if has_disk or kind != "disk_full"]


def strike(round_: Round, kind: str, struck: list[Fault]) -> None:
    """Inject a fault as soon as it can be; one that finds nobody in time is left out."""
    end = time.monotonic() + TRY_S
    while time.monotonic() < end:
        round_.watch()
        round_.replenish()
        at_s = time.monotonic() - round_.began
        if (fault := FAULTS[kind](round_)) is not None:
            fault.at_s = at_s
            struck.append(fault)
            print(f"  {at_s:6.1f} s  {kind:20} runs {fault.victims}: {fault.saw}", flush=True)
            return
        round_.pause(1)
    print(f"  {kind}: nobody to strike", flush=True)


def line_of(number: int, fault: Fault, round_: Round) -> dict[str, Any]:
    said = fault.check()
    states = {seed: [standing.state for standing in round_.history[seed]] for seed in fault.victims}
    return {"round": number, "fault": fault.kind, "at_s": round(fault.at_s, 1), "victims": fault.victims,
            "saw": fault.saw, "came": fault.came(), "states": states, "wrong": said}  # fmt: skip


def summary(number: int, round_: Round, struck: list[Fault]) -> dict[str, Any]:
    wrong = Counter(violation.kind for violation in round_.wrong)
    lives = sum(round_.lives(seed) for seed in round_.ids)
    return {"round": number, "summary": True, "seconds": round(time.monotonic() - round_.began),
            "faults": len(struck), "runs": len(round_.ids), "lives": lives,
            "has_disk": round_.has_disk, "drained_by_slurm": round_.drained, "held_by_slurm": round_.held,
            **{kind: wrong[kind] for kind in KINDS},
            "violations": [list(violation) for violation in round_.wrong]}  # fmt: skip


def whole_rounds(log: Path) -> list[dict[str, Any]]:
    """The log's lines up to its last whole round; what a round that was cut left is taken out."""
    found = list(lines.read(log))
    ends = [i for i, line in enumerate(found) if line.get("summary")]
    kept = found[: ends[-1] + 1] if ends else []
    if log.exists():
        lines.write(log, kept)
    return kept


def table(found: list[dict[str, Any]]) -> str:
    """What was injected and what was wrong, by class; violations are those of whole rounds."""
    injected = struck_by(found)
    wrong = Counter(line["fault"] for line in found if line.get("wrong"))
    rounds = [line for line in found if line.get("summary")]
    rows = [f"{kind:22}{injected[kind]:>9}{wrong[kind]:>20}" for kind in FAULTS]
    total = f"{'all':22}{sum(injected.values()):>9}{sum(wrong.values()):>20}"
    ends = ", ".join(f"{kind} {sum(line[kind] for line in rounds)}" for kind in KINDS)
    return "\n".join([f"{'class':22}{'injected':>9}{'not as expected':>20}", *rows, total, "",
                      f"{len(rounds)} rounds, {sum(line['runs'] for line in rounds)} runs, "
                      f"{sum(line['lives'] for line in rounds)} lives, {sum(line['seconds'] for line in rounds)} s; "
                      f"violations: {ends}"])  # fmt: skip


def struck_by(found: list[dict[str, Any]]) -> Counter[str]:
    """Faults by class; not those whose run was hit by another before SLURM came to them."""
    return Counter(line["fault"] for line in found if "fault" in line and line["saw"] != OVERTAKEN)


def is_enough(found: list[dict[str, Any]], faults: int, each: int) -> bool:
    injected = struck_by(found)
    had_disk = all(line.get("has_disk", True) for line in found)
    return sum(injected.values()) >= faults and all(injected[kind] >= each for kind in classes(had_disk))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--each", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=90, help="no round begins when so much time is over")
    asked = parser.parse_args()
    log, began = asked.log.absolute(), time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its tasks and its disk go with it
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(TESTS))))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    base = Path(tempfile.mkdtemp(prefix=f"ablora-campaign-{asked.seed}-"))
    found = whole_rounds(log)
    while not is_enough(found, asked.faults, asked.each):
        if time.monotonic() - began > 60 * asked.minutes:
            break
        number = sum(bool(line.get("summary")) for line in found)
        print(f"round {number}, in {base}", flush=True)
        new = play(asked.seed, number, base)
        lines.append(log, new)
        found += new
        print(f"  {new[-1]}", flush=True)
    print(table(found))
    if not all(line.get("has_disk", True) for line in found):
        print("no full disk: this machine lets no disk be mounted")
    if any(line.get("wrong") or line.get("violations") for line in found):
        return 1
    return 0 if is_enough(found, asked.faults, asked.each) else 3


if __name__ == "__main__":
    sys.exit(main())
