"""One round of the fault campaign: a study on the test cluster, kept going, watched and brought to its end."""

import contextlib
import os
import random
import socket
import subprocess
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import ablora.dispatch.slurm
from ablora.cli import main
from ablora.dispatch import submissions
from ablora.dispatch.scheduler import NoAnswer, Task
from ablora.store import claims
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of
from ablora.study.manifest import existing_study
from ablora.study.status import Standing, study_standings
from cluster import campaign_oracle, campaign_task
from slurm_lab import KILL_WAIT_S, STUDY, Lab

SLURM = Path(os.environ.get("ABLORA_SLURM", "/run/ablora-slurm"))
FIRST = 8
"""Runs at the beginning: as many as the cluster has processors."""
LEAD_S = 115
"""SLURM looks at times every 30 s, so that the signal comes at once where a task's time is cut to two minutes."""
OPTIONS = [f"cluster.signal_lead_s={LEAD_S}", "cluster.time=50"]
ENOUGH = 6
"""Fewer that run or wait, and there may soon be nobody to strike."""
PATIENCE_S = 240


class Controller:
    """A process with the same command, in a process group of its own."""

    def __init__(self, pid: int, said: Path):
        self.pid, self.said, self.code = pid, said, None
        self.judged = False
        self.may_be_refused = False
        """SLURM or the disk was away in its time, which it says with exit code 2."""

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def text(self) -> str:
        return self.said.read_text(errors="replace")


class Round:
    """A study `s` in a folder of its own, whose runs are on a small disk of their own."""

    def __init__(self, seed: int, number: int, base: Path):
        self.rng = random.Random(f"{seed}/{number}")
        self.place = base / f"round{number}"
        for name in ("runs", "lives", "orders", "said"):
            (self.place / name).mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(self.place / "runs")]
        self.has_disk = subprocess.run(mount, check=False).returncode == 0
        """Not where mounting is refused; there no disk is filled."""
        os.environ |= {"ABLORA_RUNS": str(self.place / "runs"), "ABLORA_CACHE": str(base / "cache")}
        os.environ["SLURM_CONF"] = str(SLURM / "slurm.conf")  # a site's own SLURM is nobody's place for faults
        subprocess.run([Path(__file__).parent / "up.sh"], check=True, capture_output=True)  # a round may have been cut
        os.chdir(self.place)
        ablora.dispatch.slurm.work_in_task = campaign_task.work_in_task
        self.lab = Lab(Roots.from_environment())
        self.seeds = list(range(FIRST))
        self.began = time.monotonic()
        self.controllers: list[Controller] = []
        self.wrong: list[campaign_oracle.Violation] = []
        self.ids: dict[int, str] = {}
        self.results: dict[str, bytes] = {}
        self.caused: dict[str, Counter[str]] = defaultdict(Counter)
        self.may: dict[str, frozenset[str]] = defaultdict(frozenset)
        self.failed_at: dict[str, int] = {}
        """Lives that a run had when its failure was first seen."""
        self.history: dict[int, list[Standing]] = defaultdict(list)
        self.pending: dict[tuple[str, int], float] = {}
        self.timers: list[tuple[float, Callable[[], bool]]] = []
        self.away: set[str] = set()
        """Nodes whose daemon is dead."""
        self.spared: set[int] = set()
        """Runs for which a fault is on its way."""
        self.doubled: set[str] = set()
        self.unwritten: set[str] = set()
        """Arrays of which a slurmctld that was killed may have forgotten that they began or were cancelled."""
        self.drained = self.held = 0
        self.replenished = 0.0

    # What is asked for

    def arguments(self, *more: str) -> list[str]:
        return ["run", "-m", *STUDY, *OPTIONS, f"seed={','.join(map(str, self.seeds))}", *more]

    def grow(self) -> int:
        """A run more."""
        self.seeds.append(len(self.seeds))
        return self.seeds[-1]

    def command(self, *arguments: str) -> int:
        """A command of ablora in this process, which sends and does not wait."""
        with self._heard("commands") as file:
            print("$", *arguments, file=file, flush=True)
            try:
                return main(list(arguments))
            except Exception:
                traceback.print_exc(file=file)
                self.violate("state", "-", f"{arguments[0]} raised, see said/commands")
                return 1

    def again(self) -> int:
        code = self.command(*self.arguments("cluster.wait=false"))
        self.learn()
        return code

    def fork(self, *more: str, skew_s: float = 0) -> Controller:
        """A controller that watches, whose clock may be off; forked, as an import took longer than all that it does."""
        said = self.place / "said" / f"controller{len(self.controllers)}"
        said.touch()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setsid()
                campaign_task.skew_clock(skew_s)
                with self._heard(said.name):
                    code = main(self.arguments(*more))
            except BaseException:
                said.write_text(said.read_text() + traceback.format_exc())
            finally:
                os._exit(code)
        self.controllers.append(made := Controller(pid, said))
        return made

    @contextlib.contextmanager
    def _heard(self, name: str) -> Iterator[object]:
        said = (self.place / "said" / name).open("a", buffering=1)
        with said as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            yield file

    # What there is

    def learn(self) -> None:
        """The ids of the runs, by seed."""
        for path in (self.place / "runs").glob("*/spec.json"):
            if path.parent.name not in self.ids.values():
                self.ids[RunFolder(path.parent).read_tree()["seed"]] = path.parent.name

    def folder(self, seed: int) -> RunFolder:
        return folder_of(self.lab.roots, self.ids[seed])

    def is_over(self, seed: int) -> bool:
        return self.folder(seed).result.exists() or self.folder(seed).failure.exists()

    def state(self, seed: int) -> str:
        """As the last look found it."""
        return self.history[seed][-1].state if self.history[seed] else ""

    def owner(self, seed: int) -> dict | None:
        """Who trains a run now, if that process lives."""
        folder = self.folder(seed)
        generation = claims.latest(folder)
        if generation < 0 or (folder.path / f"claim.{generation}.released").exists() or self.is_over(seed):
            return None
        owner = claims.owner_of(folder, generation) | {"generation": generation}
        return owner if claims.alive_here({**owner, "host": socket.gethostname()}) else None

    def training(self) -> list[int]:
        """Runs at whose steps a process is."""
        return [s for s in sorted(self.ids) if self.owner(s) is not None and self.lives(s) and self.journal(s)]

    def journal(self, seed: int) -> list[dict]:
        return campaign_oracle.journal_of(self.place, self.ids[seed])

    def lives(self, seed: int) -> int:
        return sum("start" in line for line in self.journal(seed))

    def records(self, seed: int) -> list[submissions.Submission]:
        """The arrays that a run was sent with, but for those that were given up."""
        found = submissions.read(self.lab.study)
        return [r for r in found if r.phase != "abandoned" and any(self.ids.get(seed) in runs for runs in r.tasks)]

    def violate(self, kind: str, run: str, text: str) -> None:
        self.wrong.append(campaign_oracle.Violation(kind, run, text))

    # Keeping it going

    def tick(self) -> None:
        """Look at everything once."""
        try:
            tasks = self.lab.queued()
        except NoAnswer:
            tasks = {}
        self._hasten(tasks)
        self._require_one(tasks)
        self._look()
        self._reap()
        now = time.monotonic()
        due = [timer for timer in self.timers if timer[0] <= now]
        self.timers = [timer for timer in self.timers if timer not in due]
        self.timers += [(now + 1, does) for _, does in due if not does()]
        time.sleep(0.3)

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tick()

    def until(self, holds: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
        end = time.monotonic() + patience_s
        while not holds():
            if time.monotonic() > end:
                return False
            self.tick()
        return True

    def _hasten(self, tasks: dict[str, Task]) -> None:
        """Requeued tasks wait for two minutes: they go on when what has their number is dead on its node. Their time
        may have been cut. A node that SLURM drained is resumed, and a task released that it holds as it could not
        launch it: seen after the loss of a node."""
        for name, task in tasks.items():
            if task.state == "PENDING" and "launch failed" in task.reason:
                self.held += 1
                quiet("scontrol", "release", name)
            if task.state == "PENDING" and task.reason == "BeginTime":
                since = self.pending.setdefault((name, task.restart), time.monotonic())
                if time.monotonic() - since > KILL_WAIT_S + 2:
                    quiet("scontrol", "update", f"JobId={name}", "TimeLimit=50", "StartTime=now")
        for line in quiet("sinfo", "-hN", "-p", "low", "-o", "%N %T").splitlines():
            node, state = line.split()
            if "drain" in state:
                self.drained += 1
                quiet("scontrol", "update", f"nodename={node}", "state=resume")

    def _require_one(self, tasks: dict[str, Task]) -> None:
        """Whatever happened, SLURM has no run in two tasks; by the arrays' names, as a slurmctld that was killed gives
        a number that it has forgotten to the next array. It may also begin again what it had begun, and take for
        running what was cancelled: of such arrays the journal alone tells that nobody trained beside another."""
        found: dict[str, set[str]] = defaultdict(set)
        for record in submissions.read(self.lab.study):
            known = record.phase != "abandoned" and record.name not in self.unwritten
            for i, runs in enumerate(record.tasks if known else ()):
                task = tasks.get(str(record.task(i)))
                for run in runs if task is not None and task.name == record.name else ():
                    found[run].add(str(record.task(i)))
        for run, names in found.items():
            if len(names) > 1 and run not in self.doubled:
                self.doubled.add(run)
                self.violate("twice", run, f"in the tasks {sorted(names)} at once")

    def _look(self) -> None:
        for seed, run in self.ids.items():
            folder = self.folder(seed)
            if run not in self.results and folder.result.exists():
                self.results[run] = folder.result.read_bytes()
            if run not in self.failed_at and folder.failure.exists():
                self.failed_at[run] = self.lives(seed)
        if (self.lab.study / "manifest.jsonl").exists():
            with self._heard("looks"):
                found = study_standings(self.lab.roots, existing_study(self.lab.roots, "s"))
            for seed, run in self.ids.items():
                told = self.history[seed]
                if run in found and (not told or told[-1].state != found[run].state):
                    told.append(found[run])

    def _reap(self) -> None:
        for controller in self.controllers:
            if not controller.judged and (code := controller.poll()) is not None:
                controller.judged = True
                refused = code == 2 and controller.may_be_refused
                if code not in (0, 3, -9) and not refused:
                    self.violate("state", "-", f"{controller.said.name} ended with {code}: {controller.text()[-300:]}")

    def watchers(self) -> list[Controller]:
        return [controller for controller in self.controllers if controller.poll() is None]

    def watch(self) -> None:
        """At least one controller, when there is anything to watch."""
        if not self.watchers() and not all(map(self.is_over, self.ids)):
            controller = self.fork()
            self.until(lambda: "study s:" in controller.text() or controller.poll() is not None, 60)

    def replenish(self) -> None:
        """Enough runs that can be struck: those that failed are asked for, a class at a time; or there is one more."""
        going = [seed for seed in self.ids if self.state(seed) in ("running", "queued")]
        if len(going) >= ENOUGH or time.monotonic() < self.replenished + 5:
            return
        self.replenished = time.monotonic()
        classes = sorted({self.failure(seed) for seed in self.ids} - {""})
        if not classes:
            self.grow()
        self.again()
        if classes:
            self.retry(self.rng.choice(classes))

    # Its end

    def finish(self) -> None:
        """Everything that goes on by itself, then each class of failure when it is asked for, then all is done."""
        self.until(lambda: not self.timers)
        (self.place / "go").touch()
        self._settle()
        if not self.until(lambda: not self.watchers(), 60):
            self.violate("state", "-", "a controller watches though every run is over")
        classes = {self.failure(seed) for seed in self.ids} - {""}
        for kind in self.rng.sample(sorted(classes), len(classes)):
            self.retry(kind)
        self._settle()
        self._look()

    def _settle(self) -> None:
        """The same command again until every run is over; it sends none twice, so that a lost one needs the next."""
        sent = -60.0
        end = time.monotonic() + PATIENCE_S
        while not all(map(self.is_over, self.ids)) and time.monotonic() < end:
            states = {self.state(seed) for seed in self.ids if not self.is_over(seed)}
            if states & {"lost", "planned", "failed"} and time.monotonic() - sent > 5:
                self.again()
                sent = time.monotonic()
            self.tick()
        self.again()

    def failure(self, seed: int) -> str:
        """The class that is written down for a run that is not done; empty without one."""
        folder = self.folder(seed)
        return "" if folder.result.exists() or not folder.failure.exists() else str(folder.read_failure()["class"])

    def retry(self, kind: str) -> None:
        """`ablora retry s --only KIND` sends those runs and no others, which waited for it. One whose task SLURM still
        has is sent by the next command."""
        before = {seed: self.failure(seed) for seed in self.ids}
        sent = {record.name for record in submissions.read(self.lab.study)}
        wanted = {seed for seed, found in before.items() if found == kind}
        for seed in wanted:
            if self.lives(seed) != self.failed_at.pop(self.ids[seed], self.lives(seed)):
                self.violate("state", self.ids[seed], f"{kind}: trained again before it was asked for")
        code = self.command("retry", "s", "--only", kind)
        new = [record for record in submissions.read(self.lab.study) if record.name not in sent]
        ids = {run for record in new for runs in record.tasks for run in runs}
        if any(self.failure(seed) == kind for seed in wanted) or code not in (0, 3):
            self.violate("state", "-", f"retry --only {kind} left some of {sorted(wanted)}, exit code {code}")
        others = {seed for seed in self.ids if before[seed] not in ("", kind)}
        if any(self.failure(seed) != before[seed] or self.ids[seed] in ids for seed in others):
            self.violate("state", "-", f"retry --only {kind} touched a failure of another class")

    def judge(self) -> list[campaign_oracle.Violation]:
        for seed, run in self.ids.items():
            found = campaign_oracle.judge(self.folder(seed), self.journal(seed), self.results.get(run),
                                          self.caused[run], self.may[run])  # fmt: skip
            self.wrong += found
        if len(self.ids) != len(self.seeds):
            self.violate("lost", "-", f"{len(self.ids)} run folders for {len(self.seeds)} runs")
        return self.wrong

    def close(self, keep: bool) -> None:
        """End what is left, and take the disk away; a round with a violation keeps its files."""
        for controller in self.watchers():
            os.killpg(controller.pid, 9)
            os.waitpid(controller.pid, 0)
        self.lab.end()
        quiet("scancel", "--name=campaign-high")
        os.chdir("/")
        runs = self.place / "runs"
        if keep:
            quiet("cp", "-a", str(runs), str(self.place / "runs-kept"))
        if self.has_disk:
            subprocess.run(["umount", "--lazy", runs], check=False)
        if not keep:
            quiet("rm", "-rf", str(self.place))


def quiet(*command: str) -> str:
    """What a command says; nothing where it fails, as SLURM may be away."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
