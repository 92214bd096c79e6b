"""What a plan says of jobs, memory, disk and time, beside what runs really took."""

import json
from pathlib import Path

import pytest

from ablora.cli import main
from ablora.config import ask
from ablora.evals.answer_loss import AnswerLoss
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, create
from ablora.study.cost import KINDS, _weighed
from ablora.study.disk import Disk, disk_of, looks
from ablora.study.past import Past, pace_of
from ablora.study.plan import Plan, make

METHODS = ("lora", "pissa", "goat", "full")
SHORT = [
    f"method={','.join(METHODS)}",
    "train=quick",
    "train.max_steps=4",
    "tracker=off",
    "eval.at_start=false",
    "eval.tasks.answer_loss.max_items=40",
    "eval.tasks.validation_answer_loss.max_items=20",
    "eval.tasks.generation.max_items=4",
    "eval.tasks.generation.max_new_tokens=8",
    "eval.tasks.routing.max_items=2",
    "eval.tasks.forgetting.chunk_tokens=32",
    "eval.tasks.forgetting.max_chunks=8",
]
QUICK = ["train=quick", "tracker=off"]
FACTOR = 1.5
"""By which the bytes of a run may be told wrong."""


def plan_of(*arguments: str) -> Plan:
    return make(ask(list(arguments), multirun=True).cells)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Roots, Plan]:
    """Four runs that were really trained; their checkpoints are still there."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("ABLORA_RUNS", raising=False)
        patch.setenv("ABLORA_CACHE", str(folder / "cache"))
        patch.setattr("ablora.train.checkpoint.remove", lambda folder: None)
        assert main(["run", "-m", *SHORT, "study=s"]) == 0
        return Roots.from_environment(), plan_of(*SHORT)


def sizes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def told(plan: Plan, run: str) -> Disk:
    spec = plan.specs[run]
    return disk_of(spec, plan.parameters[run], plan.items[spec.dataset])


def test_disk_is_told_within_a_factor_and_files_exactly(finished):
    roots, plan = finished
    assert {spec.method.name for spec in plan.specs.values()} == set(METHODS)
    for run, spec in plan.specs.items():
        found, disk = sizes(roots.runs / run), told(plan, run)
        slots = {name: size for name, size in found.items() if name.startswith("checkpoint/")}
        rest = {name: size for name, size in found.items() if name not in slots}
        assert len(rest) == disk.files, (spec.method.name, sorted(rest))
        assert 1 / FACTOR < disk.bytes / sum(rest.values()) < FACTOR, spec.method.name
        assert len(slots) == 2
        assert 0.9 < disk.checkpoint_bytes / sum(slots.values()) < 1.01, spec.method.name


def test_time_is_told_by_runs_that_were_timed(finished, monkeypatch, capsys):
    roots, plan = finished
    more = plan_of(*SHORT, "seed=0,1", "train.max_steps=4,8")
    missing = more.specs.keys() - plan.specs.keys()
    hours = Past(roots, more).hours(missing)
    assert (hours.timed, hours.unknown) == (12, 0)
    (device,) = hours.by_device
    assert device.startswith("cpu")
    longer = Past(roots, more).hours([run for run in missing if more.specs[run].train.max_steps == 8])
    shorter = Past(roots, more).hours([run for run in missing if more.specs[run].train.max_steps == 4])
    assert longer.by_device[device] + shorter.by_device[device] == pytest.approx(hours.by_device[device])
    other = plan_of(*SHORT, "rank=16")
    assert (found := Past(roots, other).hours([*other.specs])).unknown == 3, "full has no rank, and was timed"
    assert found.timed == 1
    monkeypatch.setenv("ABLORA_RUNS", str(roots.runs))
    assert main(["plan", "-m", *SHORT, "seed=0,1"]) == 0
    said = capsys.readouterr().out
    assert "time: about" in said
    assert "processor-hours (cpu" in said
    assert "for 4 runs, by runs like them\n" in said


def test_a_pace_is_the_share_of_its_pack(roots):
    """Two runs trained for 40 s in 10 steps, and were evaluated twice in the other 20 s."""
    plan = plan_of(*QUICK, "train.max_steps=10")
    (spec,) = plan.specs.values()
    folder = create(roots, spec)
    last = {"step": 10, "wall_s": 60.0, "tokens": 400, "tokens_per_s": 10.0, "pack": 1}
    records = [{**last, "step": 5, "wall_s": 40.0, "tokens": 200, "pack": 2}, last]
    folder.timing.write_text("".join(json.dumps(record) + "\n" for record in records))
    folder.env.write_text(json.dumps({"starts": [{"device": "NVIDIA X", "threads": 8}]}))
    assert pace_of(folder) is None, "not done yet"
    folder.result.write_text("{}")
    pace = pace_of(folder)
    assert pace is not None
    assert (pace.step_s, pace.look_s) == (2.0, 5.0)
    assert looks(spec) == 2
    more = plan_of(*QUICK, "train.max_steps=100", "seed=1")
    assert Past(roots, more).hours([*more.specs]).by_device == {"NVIDIA X": (100 * 2.0 + 2 * 5.0) / 3600}


def test_what_is_done_under_an_older_revision_is_named(roots, fake, monkeypatch, capsys):
    assert main(["run", "-m", *QUICK, "method=lora,pissa", "seed=0", "study=s"]) == 0
    older = sorted(path.name for path in roots.runs.iterdir())
    monkeypatch.setattr(AnswerLoss, "revision", AnswerLoss.revision + 1)
    capsys.readouterr()
    assert main(["plan", "-m", *QUICK, "method=lora,pissa", "seed=0,1"]) == 0
    said = capsys.readouterr().out
    assert "runs: 4 runs (4 planned)" in said
    line = next(line for line in said.splitlines() if "older revision" in line)
    assert line.startswith("  2 of them done under an older revision of code, data or weights (")
    assert all(run in line for run in older)
    (roots.runs / older[0] / "result.json").unlink()
    assert main(["plan", "-m", *QUICK, "method=lora,pissa", "seed=0,1"]) == 0
    assert "  1 of them done" in capsys.readouterr().out


def test_memory_is_told_where_it_was_weighed(roots, capsys):
    assert main(["plan", *QUICK]) == 0
    assert "memory: not weighed: the base is small" in capsys.readouterr().out
    assert main(["plan", *QUICK, "memory.limit_gib=20"]) == 0
    said = capsys.readouterr().out
    assert "GiB at most in a process, as predicted" in said
    from ablora.train.memory import predict

    (spec,) = plan_of(*QUICK).specs.values()
    assert f"memory: {predict([spec]).peak_bytes / 2**30:.2f} GiB" in said


def test_few_kinds_are_weighed_for_a_plan_alone_and_the_largest_first():
    plan = plan_of(*QUICK, "method=lora,pissa,milora,rslora,dora", "seed=0,1", "train.batch_size=4,8")
    by_method: dict[str, list[str]] = {}
    for run, spec in plan.specs.items():
        by_method.setdefault(f"{spec.method.name} {spec.train.batch_size}", []).append(run)
    packs = [*by_method.values()]
    alone = _weighed(plan.specs, packs, by_packing=False)
    assert all(plan.specs[run].train.batch_size == 8 for run in alone[0])
    assert len({plan.specs[run].method.name for pack in alone for run in pack}) == KINDS
    assert len(_weighed(plan.specs, packs, by_packing=True)) == len(packs), "packing has predicted them all"
    assert _weighed(plan.specs, [[*plan.specs]], by_packing=False) == []


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (["cluster=inline"], "none: this process runs one pack after another"),
        (["cluster=local", "cluster.workers=3"], "3 worker processes on this machine"),
        (["cluster=slurm"], "4 tasks of SLURM, in one array unless the site's are shorter"),
        (["cluster=slurm", "cluster.packs_per_task=3"], "2 tasks of SLURM"),
        (
            ["cluster=slurm"],
            "4 tasks of SLURM, in one array unless the site's are shorter (no SLURM answers here), after 1 "
            "that fills the caches",
        ),
        (
            ["cluster=slurm", "cluster.prepare=false"],
            "4 tasks of SLURM, in one array unless the site's are shorter (no SLURM answers here)\n",
        ),
    ],
)
def test_jobs_are_told(roots, capsys, monkeypatch, cluster, said):
    monkeypatch.setenv("PATH", "")
    assert main(["plan", "-m", *QUICK, "seed=range(4)", "pack=1", *cluster]) == 0
    assert f"jobs: {said}" in capsys.readouterr().out


def test_nothing_is_told_of_a_study_that_is_done(roots, fake, capsys):
    assert main(["run", *QUICK]) == 0
    capsys.readouterr()
    assert main(["plan", *QUICK]) == 0
    said = capsys.readouterr().out
    assert "to run: 0 runs" in said
    assert not any(line.startswith(("jobs", "memory", "disk", "time")) for line in said.splitlines())


def test_folders_that_are_no_runs_are_passed_over(roots):
    plan = plan_of(*QUICK)
    (roots.runs / "torn").mkdir(parents=True)
    (roots.runs / "torn" / "spec.json").write_text("{")
    (roots.runs / "odd").mkdir()
    (roots.runs / "odd" / "spec.json").write_text('{"spec": {"train": 3}}')
    RunFolder(roots.runs / "odd").timing.write_text("{}\n")
    past = Past(roots, plan)
    assert past.stale([*plan.specs]) == {}
    assert past.hours([*plan.specs]).unknown == 1
