"""`ablora doctor`: what this machine can do, each line with what to type next. Uses no network, leaves nothing behind.

ok: it works. missing: something optional is not there. problem: `ablora run` would fail, or not be safe.
"""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from ablora.store.roots import Roots

LEAST_GIB = 0.25
"""A run of the embedded base needs some 0.003 GiB while it trains, a study of a hundred is safe with this."""
CLOCK_S = 5.0
"""How far the clock of a file system may be from this machine's before it is worth a word."""
SLURM = ("sbatch", "squeue", "sacct", "scancel")


class Line(NamedTuple):
    """One thing that was looked at."""

    status: Literal["ok", "missing", "problem"]
    name: str
    found: str
    next: str = ""
    """What to type or do about it; empty where there is nothing to do."""


def examine() -> int:
    """Print every line as it is found; 0 if `ablora run` would work here, 2 otherwise."""
    problems = 0
    for check in (python, torch, machine, places, extras, wandb, slurm, first_step):
        for line in guarded(check):
            problems += line.status == "problem"
            print(f"{line.status:<8} {line.name:<12} {line.found}", flush=True)
            if line.next:
                print(f"{'':<8} {'':<12} next: {line.next}", flush=True)
    print(f"{problems} problems: see `next` above" if problems else "ablora run works here; a first one: make demo, or "
          "ablora run method=lora train=quick")  # fmt: skip
    return 2 if problems else 0


def guarded(check: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """The lines of a check; one that breaks is a problem and never hides the others."""
    try:
        yield from check()
    except Exception as error:
        yield Line("problem", check.__name__, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                   "make env in a checkout, or install ablora again")  # fmt: skip


def python() -> Iterator[Line]:
    new_enough = sys.version_info >= (3, 11)
    yield Line("ok" if new_enough else "problem", "python", f"{platform.python_version()} ({sys.executable})",
               "" if new_enough else "a Python of 3.11 or newer: make env PYTHON=python3.11")  # fmt: skip


def torch() -> Iterator[Line]:
    """Version, threads, and the GPU if there is one."""
    import torch

    yield Line("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            found, then = "this torch is built without CUDA", "a CUDA build of torch, then make env TORCH=existing"
        else:
            found, then = "torch sees none", "nvidia-smi, which tells whether the driver sees one"
        yield Line("missing", "gpu", f"{found}; runs use the CPU", f"if there is one: {then}")
        return
    for i in range(torch.cuda.device_count()):
        free, total = (n / 2**30 for n in torch.cuda.mem_get_info(i))
        bf16 = "with" if torch.cuda.is_bf16_supported(including_emulation=False) else "without"
        yield Line("ok", "gpu", f"{torch.cuda.get_device_name(i)}, {free:.0f} of {total:.0f} GiB free, {bf16} bfloat16")


def machine() -> Iterator[Line]:
    """Cores that this process may use, and memory, both also as a container limits them."""
    cores = len(os.sched_getaffinity(0))
    quota = (_first(Path("/sys/fs/cgroup/cpu.max")) or "max").split()
    limit = f", limited to {int(quota[0]) / int(quota[1]):.3g} by the container" if quota[0] != "max" else ""
    yield Line("ok", "cores", f"{cores}{limit}")
    info = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M))
    found = f"{int(info['MemAvailable']) / 2**20:.1f} of {int(info['MemTotal']) / 2**20:.1f} GiB available"
    most = _first(Path("/sys/fs/cgroup/memory.max")) or "max"
    yield Line("ok", "memory", found + (f", limited to {int(most) / 2**30:.1f} GiB" if most != "max" else ""))


def places() -> Iterator[Line]:
    """The folders of runs, studies and caches: writable, with room, and with the three things that claims rely on."""
    roots = Roots.from_environment()
    for name, variable, root in (
        ("runs", "ABLORA_RUNS", roots.runs),
        ("studies", "ABLORA_RUNS", roots.studies),
        ("cache", "ABLORA_CACHE", roots.cache),
    ):
        made = _missing_parents(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            yield _tried(name, variable, root)
        except OSError as error:
            yield Line("problem", name, f"{root}: {error.strerror}", f"export {variable}=FOLDER that you can write to")
        finally:
            for folder in made:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


def _tried(name: str, variable: str, root: Path) -> Line:
    elsewhere = f"export {variable}=FOLDER on another file system"
    with tempfile.TemporaryDirectory(dir=root, prefix=".doctor-") as folder:
        if broken := broken_promises(Path(folder)):
            return Line("problem", name, f"{root}: {', '.join(broken)}", elsewhere)
        apart = (Path(folder) / "b").stat().st_mtime - time.time()
    free = shutil.disk_usage(root).free / 2**30
    if free < LEAST_GIB:
        return Line("problem", name, f"{root}: {free:.2f} GiB free", f"make room, ablora clean STUDY, or {elsewhere}")
    if abs(apart) > CLOCK_S:
        return Line("problem", name, f"{root}: its clock is {apart:+.0f} s from this machine's", "set the clock (NTP)")
    return Line("ok", name, f"{root}: {free:.1f} GiB free; writes, links, renames and locks; clock {apart:+.1f} s")


HOLDS = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def broken_promises(folder: Path) -> list[str]:
    """What this file system does not do of what the run folder needs; each is really tried in the empty `folder`."""
    import fcntl

    a, b = folder / "a", folder / "b"
    a.write_text("new")
    b.write_text("old")
    out = []
    try:
        os.link(a, folder / "linked")
        try:
            os.link(a, folder / "linked")
            out.append("two processes could claim one run (link replaces)")
        except FileExistsError:
            pass
    except OSError as error:
        out.append(f"no hard links ({error.strerror}), which claims are made of")
    a.rename(b)
    if b.read_text() != "new":
        out.append("rename does not replace")
    with b.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            return [*out, f"no locks ({error.strerror}), which caches need"]
        # In another process: over NFS a lock belongs to the process and not to the open file.
        if subprocess.run([sys.executable, "-ISc", HOLDS, str(b)], capture_output=True).returncode == 0:
            out.append("locks do not exclude")
    return out


def extras() -> Iterator[Line]:
    """What the optional extras of this installation would bring, and which of it is there."""
    wanted: dict[str, list[str]] = {}
    for requirement in metadata.requires("ablora") or ():
        match = re.match(r"([\w.-]+).*extra == ['\"]([\w-]+)['\"]", requirement)
        if match and match[2] != "dev":
            wanted.setdefault(match[2], []).append(match[1])
    for extra, packages in wanted.items():
        absent = [package for package in packages if not _is_installed(package)]
        if absent:
            yield Line("missing", extra, ", ".join(absent), _install(extra))
        else:
            yield Line("ok", extra, ", ".join(f"{package} {metadata.version(package)}" for package in packages))


def wandb() -> Iterator[Line]:
    """Whether runs would be mirrored online; a key is looked for and never shown."""
    from ablora.track.login import choose, has_login, host

    if importlib.util.find_spec("wandb") is None:
        return  # its extra is missing, which has been said
    mode, _ = choose("auto")
    if has_login():
        yield Line("ok", "W&B", f"a login for {host()}; runs are tracked {mode}")
    else:
        yield Line("missing", "W&B", f"no login for {host()}; runs are tracked {mode}", "wandb login, then ablora sync")


def slurm() -> Iterator[Line]:
    absent = [command for command in SLURM if shutil.which(command) is None]
    if absent:
        yield Line("missing", "slurm", f"no {', '.join(absent)}; cluster=inline and cluster=local need none")
    else:
        yield Line("ok", "slurm", ", ".join(SLURM))


def first_step() -> Iterator[Line]:
    """One step of a real run of the embedded base in a temporary folder, through the code that `ablora run` uses."""
    from ablora.config import ask
    from ablora.store.claims import take
    from ablora.store.run_folder import create
    from ablora.study.plan import make
    from ablora.train.execute import execute

    began = time.monotonic()
    small = ["train.max_steps=1", "train.warmup_steps=0", "train.batch_size=2", "eval.at_start=false"]
    (cell,) = ask(["method=lora", *small], multirun=False).cells
    tasks = {"answer_loss": {**cell.tree["eval"]["tasks"]["answer_loss"], "max_items": 2}}
    plan = make([replace(cell, tree={**cell.tree, "eval": {**cell.tree["eval"], "tasks": tasks}})])
    with tempfile.TemporaryDirectory(prefix="ablora-doctor-") as place:
        roots = Roots(Path(place, "runs"), Path(place, "studies"), Path(place, "cache"))
        (spec,) = plan.specs.values()
        folder = create(roots, spec)
        claim = take(folder)
        assert claim is not None
        ready = time.monotonic()
        execute([folder], [claim], roots, [], 1)
        loss = folder.read_result()["metrics"]["answer_loss_nats"]
    took = time.monotonic() - ready
    yield Line("ok", "first step", f"the embedded base, one step and its end in {took:.1f} s (planned in "
               f"{ready - began:.1f} s); loss {loss:.3f} nats")  # fmt: skip


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _install(extra: str) -> str:
    root = Path(__file__).parents[2]
    what = f"--editable '{root}[{extra}]'" if (root / "pyproject.toml").exists() else f"'ablora[{extra}]'"
    return f"{sys.executable} -m pip install {what}"


def _first(path: Path) -> str | None:
    """The file's text without its ends; None where there is no such file."""
    return path.read_text().strip() if path.exists() else None


def _missing_parents(root: Path) -> list[Path]:
    """The folder and those above it that do not exist, deepest first."""
    return [folder for folder in (root, *root.parents) if not folder.exists()]
