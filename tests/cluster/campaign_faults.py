"""The faults of the campaign: each strikes a round once, says whom and what it saw, and what has to come of it."""

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ablora.dispatch import scheduler
from ablora.dispatch.scheduler import NoAnswer
from ablora.store import claims
from cluster import campaign_task
from cluster.campaign_oracle import failures_of
from cluster.campaign_round import SLURM, Round, quiet

SKEW_S = 600
OVERTAKEN = "another fault came first"
NODE_PATIENCE_S = 60
TURN_S = 0.002
"""So short that a run that failed by a full disk may find room for saying so."""


@dataclass
class Fault:
    """One that struck."""

    kind: str
    victims: list[int]
    """Seeds."""
    saw: str
    check: Callable[[], str] = lambda: ""
    """At the end of the round: what did not come of it as it should; empty where all did."""
    came: Callable[[], str] = lambda: ""
    """At the end of the round: what came of it."""
    at_s: float = 0.0


Strike = Callable[[Round], "Fault | None"]
"""None: there is nobody that it could strike now."""


def _said(ok: bool, text: str) -> str:
    return "" if ok else text


def _one(round_: Round, most_deaths: int = 4, able: Callable[[int], bool] = lambda seed: True) -> int | None:
    """A run at its steps; five deaths without a word are the most that the same command takes up again."""
    found = [s for s in round_.training() if claims.deaths(round_.folder(s)) <= most_deaths and able(s)
             and s not in round_.spared]  # fmt: skip
    return round_.rng.choice(found) if found else None


def _went_on(round_: Round, seed: int, generation: int) -> str:
    """After a stop or a death: another life took the run over, unless it ended with the one that was hit."""
    folder = round_.folder(seed)
    return _said(claims.latest(folder) > generation or folder.result.exists(), f"run {seed} was not taken up again")


def _same_task(round_: Round, seed: int, owner: dict) -> str:
    """SLURM requeued the task: a later life has its name and a higher count, or another fault came before that."""
    folder = round_.folder(seed)
    later = [claims.owner_of(folder, g) for g in range(owner["generation"] + 1, claims.latest(folder) + 1)]
    if not later or later[0].get("slurm") != owner["slurm"]:
        return _went_on(round_, seed, owner["generation"])
    return _said(later[0]["restart"] > owner["restart"], f"run {seed}: the same life of its task again")


def _came(round_: Round, owners: dict[int, dict]) -> str:
    """How the victims went on, counted."""
    told: Counter[str] = Counter()
    for seed, owner in owners.items():
        folder = round_.folder(seed)
        later = [claims.owner_of(folder, g) for g in range(owner["generation"] + 1, claims.latest(folder) + 1)]
        if not later or "slurm" not in later[0]:  # a claim without a task is that of the one that wrote a failure down
            told["ended with it" if folder.result.exists() else "not taken up"] += not later
            told["failed first"] += bool(later)
        else:
            told["its task again" if later[0]["slurm"] == owner["slurm"] else "in another task"] += 1
    return ", ".join(f"{count} {word}" for word, count in sorted(told.items()) if count)


def worker_killed(round_: Round) -> Fault | None:
    if (seed := _one(round_, 2)) is None or (owner := round_.owner(seed)) is None:
        return None
    os.kill(owner["pid"], signal.SIGKILL)
    saw = f"step {len(round_.lab.steps(seed))}"
    return Fault("worker_killed", [seed], saw, lambda: _went_on(round_, seed, owner["generation"]),
                 lambda: _came(round_, {seed: owner}))  # fmt: skip


def controller_killed(round_: Round) -> Fault | None:
    """One that watches, or one that has a run more to send, at any moment of that; the other half of the time its
    sbatch lives on."""
    watching = round_.watchers()
    if watching and round_.rng.random() < 0.4:
        victim = round_.rng.choice(watching)
        os.killpg(victim.pid, signal.SIGKILL)
        return Fault("controller_killed", [], "watching")
    seed = round_.grow()
    before = {record.name for record in round_.lab.records()}
    victim = round_.fork()
    time.sleep(round_.rng.uniform(0.02, 3.5))
    if round_.rng.random() < 0.5:
        os.killpg(victim.pid, signal.SIGKILL)
    else:
        os.kill(victim.pid, signal.SIGKILL)
    phases = [record.phase for record in round_.lab.records() if record.name not in before]
    round_.pause(0.5)
    round_.again()
    return Fault("controller_killed", [seed], f"sending: {', '.join(phases) or 'nothing on disk yet'}")


def requeued(round_: Round) -> Fault | None:
    if (seed := _one(round_)) is None or (owner := round_.owner(seed)) is None:
        return None
    if subprocess.run(["scontrol", "requeue", owner["slurm"]], capture_output=True).returncode:
        return None
    return Fault("requeued", [seed], owner["slurm"], lambda: _same_task(round_, seed, owner),
                 lambda: _came(round_, {seed: owner}))  # fmt: skip


def _node(round_: Round) -> tuple[str, dict[int, dict]] | None:
    """A node at work, and who is there."""
    owners = {seed: owner for seed in round_.training() if (owner := round_.owner(seed)) is not None}
    nodes = sorted({owner["host"] for owner in owners.values()} - round_.away)
    if not nodes:
        return None
    node = round_.rng.choice(nodes)
    return node, {seed: owner for seed, owner in owners.items() if owner["host"] == node}


def preempted(round_: Round) -> Fault | None:
    """A job of the partition above takes a whole node."""
    if (found := _node(round_)) is None:
        return None
    node, owners = found
    job = quiet("sbatch", "--parsable", "--job-name=campaign-high", "--partition=high", f"--nodelist={node}",
                "--cpus-per-task=4", "--mem=50", "--output=/dev/null", "--wrap=sleep 2").strip()  # fmt: skip
    ended = job and round_.until(lambda: not quiet("squeue", "-h", "-o", "%j", "-j", job), 60)
    if not ended:
        quiet("scancel", job)
        return None
    return Fault("preempted", sorted(owners), node, lambda: _any_same_task(round_, owners),
                 lambda: _came(round_, owners))  # fmt: skip


def _any_same_task(round_: Round, owners: dict[int, dict]) -> str:
    return "; ".join(filter(None, (_same_task(round_, seed, owner) for seed, owner in owners.items())))


def time_ended(round_: Round) -> Fault | None:
    """Its time is cut to less than two minutes, so that the signal comes at SLURM's next look at times."""
    seed = _one(round_, able=lambda seed: campaign_task.length(seed) is None)
    if seed is None or (owner := round_.owner(seed)) is None:
        return None
    try:
        round_.lab.end_time(owner["slurm"])
    except subprocess.CalledProcessError:
        return None
    folder, generation, end = round_.folder(seed), owner["generation"], time.monotonic() + 150
    released = folder.path / f"claim.{generation}.released"
    fault = Fault("time_ended", [seed], "nothing heard", lambda: _same_task(round_, seed, owner),
                  lambda: _came(round_, {seed: owner}))  # fmt: skip

    def is_heard() -> bool:
        over = claims.latest(folder) > generation or round_.is_over(seed)
        if not (released.exists() or over or time.monotonic() > end):
            return False
        fault.saw = "checkpoint" if released.exists() else OVERTAKEN if over else fault.saw
        round_.spared.discard(seed)
        return True

    round_.spared.add(seed)
    round_.timers.append((0.0, is_heard))
    return fault


def cancelled(round_: Round) -> Fault | None:
    """A task that trains, or one that waits. None where it was ending and SLURM does not call it cancelled, nor where
    nobody was on its node to end it: its process went on to the result."""
    tasks = {name: task.state for name, task in round_.lab.queued().items()}
    training = round_.training()
    able = [s for s in sorted(round_.ids) if s not in round_.spared and round_.records(s) and not round_.is_over(s)
            and (s in training or tasks.get(round_.lab.task(s)) == "PENDING")]  # fmt: skip
    if not able:
        return None
    seed = round_.rng.choice(able)
    folder, lives, task = round_.folder(seed), round_.lives(seed), round_.lab.task(seed)
    quiet("scancel", task)
    round_.pause(1)
    round_.until(lambda: folder.result.exists() or round_.state(seed) == "failed", 60)
    if folder.result.exists() or (tasks.get(task) != "PENDING" and not _slurm_says(task, "CANCELLED")):
        round_.may[folder.id] |= {"cancelled"}  # on a node that is being lost it may take effect much later
        return None
    round_.caused[folder.id]["cancelled"] += 1
    saw = f"{'training' if seed in training else 'waiting'}, after {lives} lives"
    return Fault("cancelled", [seed], saw, lambda: _has_failure(round_, seed, "cancelled"),
                 lambda: _recorded(round_, seed, "cancelled"))  # fmt: skip


def _slurm_says(task: str, word: str) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with suppress(NoAnswer):
            if word in scheduler.ended([task.partition("_")[0]]).get(task, ""):
                return True
        time.sleep(0.5)
    return False


def _has_failure(round_: Round, seed: int, kind: str) -> str:
    classes = [failure["class"] for failure in failures_of(round_.folder(seed))]
    return _said(kind in classes, f"run {seed}: {kind} is not recorded, but {classes}")


def _recorded(round_: Round, seed: int, kind: str) -> str:
    found = [failure for failure in failures_of(round_.folder(seed)) if failure["class"] == kind]
    return f"{kind}: {found[-1]['message']}" if found else ""


def _order(kind: str) -> Strike:
    def strike(round_: Round) -> Fault | None:
        if (seed := _one(round_)) is None:
            return None
        order = round_.place / "orders" / round_.ids[seed]
        order.write_text(kind)
        round_.until(lambda: not order.exists() or round_.folder(seed).result.exists(), 60)
        if order.exists():
            order.unlink()
            return None
        round_.caused[round_.ids[seed]][kind] += 1
        round_.until(lambda: round_.state(seed) == "failed", 60)
        saw = f"step {len(round_.lab.steps(seed))}"
        return Fault(kind, [seed], saw, lambda: _has_failure(round_, seed, kind), lambda: _recorded(round_, seed, kind))

    return strike


def node_lost(round_: Round) -> Fault | None:
    """The daemon is killed; it comes back some time after SLURM has given the node up."""
    if (found := _node(round_)) is None or round_.away:
        return None
    node, owners = found
    os.kill(int((SLURM / f"slurmd-{node}.pid").read_text()), signal.SIGKILL)
    round_.away.add(node)
    end, later = time.monotonic() + NODE_PATIENCE_S, round_.rng.uniform(0, 10)
    seen_down: list[float] = []

    def comes_back() -> bool:
        if not seen_down and "down" in quiet("sinfo", "-hN", "-n", node, "-p", "low", "-o", "%T"):
            seen_down.append(time.monotonic())
        if time.monotonic() < (seen_down[0] + later if seen_down else end):
            return False
        quiet("slurmd", "-N", node)
        round_.away.discard(node)
        return True

    def check() -> str:
        return _any_same_task(round_, owners) if seen_down else "the node was not given up"

    round_.timers.append((0.0, comes_back))
    return Fault("node_lost", sorted(owners), node, check, lambda: _came(round_, owners))


def controller_of_slurm_restarted(round_: Round) -> Fault | None:
    """Ended or killed, away for a while, in which a command may be given, and started again."""
    number = round_.rng.choice([signal.SIGKILL, signal.SIGTERM])
    pid = int((SLURM / "slurmctld.pid").read_text())
    os.kill(pid, number)
    if number == signal.SIGKILL:
        round_.unwritten |= {record.name for record in round_.lab.records()}
    code = None
    time.sleep(round_.rng.uniform(1, 6))
    if round_.rng.random() < 0.5:
        with_it_away = round_.again()
        code = with_it_away
    for controller in round_.watchers():
        controller.may_be_refused = True
    while Path(f"/proc/{pid}").exists():
        time.sleep(0.2)
    quiet("slurmctld")
    answers = round_.until(lambda: "is UP" in quiet("scontrol", "ping"), 60)
    said = "" if code is None else f", a command meanwhile: exit code {code}"
    return Fault("slurmctld_restarted", [], f"{signal.Signals(number).name}{said}",
                 lambda: _said(answers and code in (None, 0, 2, 3), "SLURM is away, or a command crashed"))  # fmt: skip


def disk_full(round_: Round) -> Fault | None:
    """The runs' disk for some seconds: wholly, where no failure can be written down either; or by turns, as where
    others write and delete. Afterwards the runs that failed by it are asked for again."""
    if not (victims := round_.training()):
        return None
    for controller in round_.watchers():
        controller.may_be_refused = True
    for run in round_.ids.values():
        round_.may[run] |= {"disk_full"}
    by_turns, seconds = round_.rng.random() < 0.6, round_.rng.uniform(3, 8)
    _fill(round_.place / "runs" / ".filler", seconds, by_turns)
    round_.pause(6)
    hit = [s for s in victims if round_.failure(s) == "disk_full"]
    died = [s for s in victims if s not in hit and not round_.is_over(s) and round_.owner(s) is None]
    round_.again()
    if hit:
        round_.retry("disk_full")
    how = "by turns" if by_turns else "wholly"
    saw = f"{how} for {seconds:.0f} s: {len(hit)} disk_full, {len(died)} without a word, of {len(victims)}"
    return Fault("disk_full", victims, saw)


def _fill(filler: Path, seconds: float, by_turns: bool) -> None:
    end = time.monotonic() + seconds
    with filler.open("wb", buffering=0) as file:
        while time.monotonic() < end:
            with suppress(OSError):
                while file.write(bytes(1 << 16)):
                    pass
            time.sleep(TURN_S)
            if by_turns:
                file.seek(file.truncate(max(0, file.tell() - (1 << 17))))
                time.sleep(TURN_S)
    filler.unlink()


def two_controllers(round_: Round) -> Fault | None:
    """Both have the same run to send."""
    seed = round_.grow()
    first, second = round_.fork(), round_.fork()
    round_.until(lambda: all("study s:" in c.text() or c.poll() is not None for c in (first, second)), 90)
    round_.learn()
    round_.until(lambda: seed in round_.ids and round_.records(seed), 60)
    round_.pause(4)
    sent = len(round_.records(seed))
    return Fault("two_controllers", [seed], f"{sent} arrays", lambda: _said(sent == 1, f"{sent} arrays for run {seed}"))


def clock_skewed(round_: Round) -> Fault | None:
    """Ten minutes ahead or behind: the controller that sends a run, or the task that trains it."""
    seed, at_s = round_.grow(), time.time()
    skew = round_.rng.choice([SKEW_S, -SKEW_S])
    if round_.rng.random() < 0.5:
        controller = round_.fork("cluster.wait=false", skew_s=skew)
        round_.until(lambda: controller.poll() is not None, 120)
        who, code = "controller", controller.code
    else:
        export = f"'export {campaign_task.SKEW}={skew}'"
        code = round_.command(*round_.arguments("cluster.wait=false", f"cluster.setup=[{export}]"))
        who = "task"
    round_.learn()
    records = round_.records(seed) if seed in round_.ids else []
    sent = [record.made_s - at_s for record in records]

    def check() -> str:
        """It was sent once, and the clock was off indeed; that of a sender is raised over its records' newest."""
        if len(sent) != 1 or code not in (0, 3):
            return f"run {seed}: {len(sent)} arrays, exit code {code}"
        first = next(line["time_s"] for line in round_.journal(seed) if "start" in line) - at_s
        is_skewed = abs(first) > SKEW_S / 2 if who == "task" else skew < 0 or sent[0] > SKEW_S / 2
        again = round_.caused[round_.ids[seed]]["cancelled"] > 0
        return _said(is_skewed or again, f"{who}: no skew seen ({sent[0]:.0f} s, {first:.0f} s)")

    return Fault("clock_skewed", [seed], f"{who} {skew:+d} s", check)


FAULTS: dict[str, Strike] = {
    "worker_killed": worker_killed,
    "controller_killed": controller_killed,
    "requeued": requeued,
    "preempted": preempted,
    "time_ended": time_ended,
    "cancelled": cancelled,
    "node_lost": node_lost,
    "out_of_memory": _order("out_of_memory"),
    "bug": _order("bug"),
    "diverged": _order("diverged"),
    "slurmctld_restarted": controller_of_slurm_restarted,
    "disk_full": disk_full,
    "two_controllers": two_controllers,
    "clock_skewed": clock_skewed,
}
CHEAP = ("worker_killed", "controller_killed", "requeued", "cancelled", "bug", "diverged")
"""Those that a round has more of: they take seconds."""
