"""A small sweep end to end: eight LoRA-family runs by PEFT and transformers' Trainer, and by ablora as a pack.

    python benchmarks/sweep.py [--steps 100] [--batch 16] [--data FOLDER|arithmetic] [--only WAYS] [--quick]

The same grid on the embedded base: four methods at two rates and seeds, equal starts, equal batches in equal order,
equal recipe; the losses are compared step by step. Wall time is a process's whole life, imports included. PEFT has its
tokens ready in a file; ours reads and encodes the data set itself, and writes records, checkpoint, adapter and result
as in use.

    trainer, 2 processes    one process per run, two at a time with one thread each, as users do
    trainer, 2 threads      one process per run, one after another
    trainer, one process    all runs one after another in one process of two threads
    pack, 2 threads         ours, one pack of eight
    pack, 2 processes       ours, two packs of four, one thread each
    parts                   one thread, a LoRA and a PiSSA run: Trainer, plain loop, + logits at labels only,
                            + no padding, ours alone, ours packed (all runs)

The last line is one JSON object: `wall_ratio_vs_processes` (the faster of PEFT's ways with a process per run, over our
faster way), `step_ratio` (the same of the time between first and last step, summed over runs),
`wall_ratio_1000_steps` (from start-up as measured and 1000 times the step as measured), `loss_max_rel_diff`. On a
busy machine wall time is mostly waiting: `cpu_ratio_vs_processes`, `step_cpu_ratio` and `cpu_ratio_1000_steps` are the
same of the processors' time, taken from the ways of one thread per process (a waiting thread of two may spin).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from methods import folder_for, machine

GRID = [
    (method, lr, seed) for method in ("lora", "rslora", "lora_plus", "pissa") for lr, seed in ((5e-4, 0), (2e-3, 1))
]
RANK, WARMUP = 8, 10
SHARED = Path(os.environ.get("ABLORA_SHARED") or Path(__file__).parents[2] / "shared")


class Job(NamedTuple):
    """A process: which runs it trains, and with how many threads."""

    runs: tuple[int, ...]
    threads: int


class Way(NamedTuple):
    """A way through the whole grid: waves of processes that run at once."""

    arm: str
    waves: list[list[Job]]


class Done(NamedTuple):
    """What a way took."""

    wall_s: float
    step_s: float
    """Time of one step of all runs: between first and last step of each process, summed over waves."""
    cpu_s: float
    """Of all processes."""
    step_cpu_s: float
    losses: dict[int, list[float]]


def data_override(given: str | None) -> list[str]:
    """GSM8K where its files are, else the embedded arithmetic."""
    folder = SHARED / "data" / "math" if given is None else Path(given)
    if given != "arithmetic" and (folder / "gsm8k_train.jsonl").exists():
        return ["dataset=gsm8k", f"dataset.path={folder}"]
    return ["dataset=arithmetic"]


def specifications(asked: Sequence[str], steps: int, batch: int) -> list[Any]:
    """The grid as the command line composes it, without evaluations."""
    from ablora.config.compose import SPEC_KEYS, Composer, resolve
    from ablora.config.loader import open_loader
    from ablora.spec import EvalSpec, RunSpec
    from ablora.tree import build

    common = [*asked, f"train.max_steps={steps}", f"train.batch_size={batch}", f"rank={RANK}",
              f"train.warmup_steps={min(WARMUP, steps)}", f"train.checkpoint_every={steps}"]  # fmt: skip
    out = []
    with open_loader() as loader:
        composer = Composer(loader)
        for method, lr, seed in GRID:
            tree = resolve(composer.base([f"method={method}", f"train.lr={lr}", f"seed={seed}", *common]))
            spec = build({key: tree[key] for key in SPEC_KEYS}, RunSpec)
            out.append(replace(spec, eval=EvalSpec(tasks={}, at_start=False)))
    return out


def lay_down(folder: Path, specs: Sequence[Any]) -> dict[str, Any]:
    """What PEFT's side needs: tokens, orders, and the starting A of every run whose start is drawn."""
    import torch
    from safetensors.torch import save_file

    from ablora.method.adapt import adapt
    from ablora.models.base import load
    from ablora.train.data import train_data

    base = load(specs[0].model)
    data = [train_data(spec, base) for spec in specs]
    steps, batch = specs[0].train.max_steps, specs[0].train.batch_size
    items = data[0].items
    orders = [[own._index(position) for position in range(steps * batch)] for own in data]
    lengths = torch.tensor([len(item.input_ids) for item in items])
    flat, starts = [t for item in items for t in item.input_ids], [item.answer_start for item in items]
    tokens = {"ids": torch.tensor(flat), "starts": torch.tensor(starts), "orders": torch.tensor(orders)}
    tokens["lengths"] = lengths
    save_file(tokens, folder / "tokens.safetensors")
    adapted = adapt(base.model, specs, [None] * len(specs), folder / "cache")
    runs = []
    for i, (method, lr, seed) in enumerate(GRID):
        start = {name[:-2]: p.detach() for name, p in adapted.parameters(i).items() if name.endswith(".A")}
        file = folder / f"start_{i}.safetensors"
        save_file(start, file)
        runs.append({"method": method, "lr": lr, "seed": seed, "start": None if method == "pissa" else str(file)})
    adapted.detach()
    shares = _padding(lengths, torch.tensor(orders), batch)
    return {"base": str(specs[0].model.folder), "tokens": str(folder / "tokens.safetensors"), "steps": steps,
            "batch": batch, "warmup": specs[0].train.warmup_steps, "rank": RANK, "runs": runs, **shares}  # fmt: skip


def _padding(lengths: Any, orders: Any, batch: int) -> dict[str, float]:
    """Real tokens of a step, and how many a batch padded to its longest has."""
    own = lengths[orders].unflatten(1, (-1, batch)).double()
    return {"tokens_per_step": own.sum(-1).mean().item(),
            "padded_tokens_per_step": (batch * own.amax(-1)).mean().item()}  # fmt: skip


def measure(folder: Path, plan: Mapping[str, Any], specs: Sequence[Any], way: Way) -> Done:
    """Run one way in a folder of its own, with caches of its own (ours decomposes again)."""
    from ablora.store.roots import Roots
    from ablora.store.run_folder import create

    scratch = folder / f"scratch_{time.monotonic_ns()}"
    roots = Roots(scratch / "runs", scratch / "studies", scratch / "cache")
    runs = [{**run, "id": create(roots, spec).id} for run, spec in zip(plan["runs"], specs)]
    file = scratch / "plan.json"
    file.write_text(json.dumps({**plan, "scratch": str(scratch), "runs": runs}))
    wall_s = step_s = cpu_s = step_cpu_s = 0.0
    losses: dict[int, list[float]] = {}
    queue = [list(wave) for wave in way.waves]
    for number, wave in enumerate(queue):
        outs = [scratch / f"out_{number}_{i}.json" for i in range(len(wave))]
        began = time.monotonic()
        processes = [_start(way.arm, file, out, job) for out, job in zip(outs, wave)]
        for process in processes:
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu_s += used.ru_utime + used.ru_stime
            if process.returncode:
                raise SystemExit(f"{way.arm} failed: {process.args}")
        wall_s += time.monotonic() - began
        found = [json.loads(out.read_text()) for out in outs]
        packed = way.arm == "pack"
        step_s += max(_step(record, "steps", packed) for record in found)
        step_cpu_s += sum(_step(record, "cpu", packed) for record in found)
        for record in found:
            losses |= {int(run): own["losses"] for run, own in record["runs"].items()}
    return Done(wall_s, step_s, cpu_s, step_cpu_s, losses)


def _start(arm: str, plan: Path, out: Path, job: Job) -> subprocess.Popen:
    program = Path(__file__).with_name("sweep_arms.py")
    runs = ",".join(map(str, job.runs))
    command = [sys.executable, str(program), arm, str(plan), str(out), "--runs", runs, "--threads", str(job.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads), "TOKENIZERS_PARALLELISM": "false",
                   "PYTHONWARNINGS": "ignore"}  # fmt: skip
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def _step(record: Mapping[str, Any], clock: str, packed: bool) -> float:
    """One step of all runs of a process, from a clock's times between its first step and its last."""
    own = [(run[clock][-1] - run[clock][0]) / (len(run[clock]) - 1) for run in record["runs"].values()]
    return max(own) if packed else sum(own)


def worst(a: Mapping[int, Sequence[float]], b: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """By run, the largest relative difference of two ways' losses over the steps."""
    return {run: max(abs(x - y) / abs(y) for x, y in zip(a[run], b[run], strict=True)) for run in a}


def ways(runs: int) -> dict[str, Way]:
    """The whole grid, by name."""
    every, half = tuple(range(runs)), runs // 2
    pairs = [[Job((run,), 1) for run in every[i : i + 2]] for i in range(0, runs, 2)]
    return {
        "trainer, 2 processes": Way("trainer", pairs),
        "trainer, 2 threads": Way("trainer", [[Job((run,), 2)] for run in every]),
        "trainer, one process": Way("trainer", [[Job(every, 2)]]),
        "pack, 2 threads": Way("pack", [[Job(every, 2)]]),
        "pack, 2 processes": Way("pack", [[Job(every[:half], 1), Job(every[half:], 1)]]),
    }


PARTS = {"Trainer": "trainer", "plain loop": "loop", "+ logits at labels only": "labels", "+ no padding": "rows"}


def parts(runs: int) -> dict[str, Way]:
    """Where the step's gain comes from: one process of one thread, over one LoRA and one PiSSA run."""
    two = (0, runs - 1)
    out = {name: Way(arm, [[Job(two, 1)]]) for name, arm in PARTS.items()}
    out["ours, one run at a time"] = Way("pack", [[Job((run,), 1)] for run in two])
    return out | {"ours, packed (all runs)": Way("pack", [[Job(tuple(range(runs)), 1)]])}


HEAD = f"{'way':<28}{'wall s':>9}{'without steps':>14}{'ms/step and run':>16}{'CPU s':>9}{'without steps':>14}{'ms':>9}"


def report(found: Mapping[str, list[Done]], steps: int, names: Mapping[str, Way]) -> dict[str, dict[str, float]]:
    """Medians over rounds, printed as they stand."""
    rows = {}
    for name, done in found.items():
        count = len({run for wave in names[name].waves for job in wave for run in job.runs})
        wall, step, cpu, step_cpu = (statistics.median(d[i] for d in done) for i in range(4))
        rows[name] = {"wall_s": wall, "step_ms_per_run": 1e3 * step / count, "start_s": wall - step * steps,
                      "cpu_s": cpu, "step_cpu_ms_per_run": 1e3 * step_cpu / count,
                      "start_cpu_s": cpu - step_cpu * steps}  # fmt: skip
        values = "{wall_s:>9.1f}{start_s:>14.1f}{step_ms_per_run:>16.1f}".format(**rows[name])
        values += "{cpu_s:>9.1f}{start_cpu_s:>14.1f}{step_cpu_ms_per_run:>9.1f}".format(**rows[name])
        print(f"{name:<28}{values}", flush=True)
    return rows


def ratios(rows: Mapping[str, Mapping[str, float]], steps: int) -> dict[str, Any]:
    """The figures of the last line, as far as the ways they need were run."""

    def of(names: Sequence[str]) -> list[Mapping[str, float]]:
        return [rows[name] for name in names if name in rows]

    def at(kind: str, row: Mapping[str, float], count: int) -> float:
        return row[f"start_{kind}s"] + count * row[f"step_{kind}ms_per_run"] * len(GRID) / 1e3

    out: dict[str, Any] = {"steps": steps}
    theirs, ours = of(["trainer, 2 processes", "trainer, 2 threads"]), of(["pack, 2 threads", "pack, 2 processes"])
    if theirs and ours:
        a, b = (min(side, key=lambda row: row["wall_s"]) for side in (theirs, ours))
        out |= {"wall_ratio_vs_processes": a["wall_s"] / b["wall_s"],
                "step_ratio": a["step_ms_per_run"] / b["step_ms_per_run"],
                "wall_ratio_1000_steps": min(at("", r, 1000) for r in theirs) / min(at("", r, 1000) for r in ours),
                "1000_steps_are": "start-up and step as measured, extrapolated"}  # fmt: skip
    if ours and "trainer, one process" in rows:
        out["wall_ratio_vs_one_process"] = rows["trainer, one process"]["wall_s"] / min(r["wall_s"] for r in ours)
    if "trainer, 2 processes" in rows and "pack, 2 processes" in rows:
        a, b = rows["trainer, 2 processes"], rows["pack, 2 processes"]
        out |= {"cpu_ratio_vs_processes": a["cpu_s"] / b["cpu_s"],
                "step_cpu_ratio": a["step_cpu_ms_per_run"] / b["step_cpu_ms_per_run"],
                "cpu_ratio_1000_steps": at("cpu_", a, 1000) / at("cpu_", b, 1000)}  # fmt: skip
    return out


def agreement(found: Mapping[str, list[Done]]) -> dict[str, Any]:
    """The largest relative difference of our losses from the Trainer's, over runs and steps."""
    done = {name: rounds[0].losses for name, rounds in found.items()}
    theirs = [losses for name, losses in done.items() if name.startswith("trainer")]
    ours = [losses for name, losses in done.items() if name.startswith("pack")]
    if not theirs or not ours:
        return {}
    by_run = worst(ours[0], theirs[0])
    named = {f"{m} lr={lr} seed={s}": by_run[i] for i, (m, lr, s) in enumerate(GRID)}
    return {"loss_max_rel_diff": max(by_run.values()), "loss_max_rel_diff_by_run": named}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--data", help="a folder with GSM8K's files, or `arithmetic`; else ../shared/data/math, if it is there"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three steps of two examples: does it run at all?")
    parser.add_argument("--no-parts", action="store_true")
    parser.add_argument("--only", help="some ways by name, separated by semicolons")
    given = parser.parse_args()
    steps, batch = (3, 2) if given.quick else (given.steps, given.batch)
    with folder_for(None) as folder:
        asked = data_override(given.data)
        specs = specifications(asked, steps, batch)
        plan = lay_down(folder, specs)
        grid, split = ways(len(GRID)), {} if given.no_parts else parts(len(GRID))
        names = grid | split
        if given.only:
            names = {name.strip(): names[name.strip()] for name in given.only.split(";")}
        found: dict[str, list[Done]] = {name: [] for name in names}
        for turn in range(given.rounds):
            for name in list(names)[:: -1 if turn % 2 else 1]:
                found[name].append(measure(folder, plan, specs, names[name]))
                print(f"# {name}: {found[name][-1].wall_s:.1f} s", file=sys.stderr, flush=True)
    print(HEAD)
    rows = report(found, steps, names)
    figures = ratios(rows, steps) | agreement(found)
    setting = {"data": asked[:1], "batch": batch, "rank": RANK, "rounds": given.rounds}
    setting |= {key: plan[key] for key in ("tokens_per_step", "padded_tokens_per_step")}
    print(json.dumps({"machine": machine(2), "setting": setting, "rows": rows, **figures}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
