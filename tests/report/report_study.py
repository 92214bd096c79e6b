"""Studies for the report: synthetic runs with environments, generated texts, failures, measures and a plan."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from synthetic import Made, id_of, write_study
from synthetic_measures import measures, write_measures

from ablora.data.arithmetic import Arithmetic
from ablora.store import atomic, lines
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of

PLACE = {
    "time_s": 1.7e9, "python": "3.11.2", "platform": "Linux", "packages": {"ablora": "0.1.0", "torch": "2.13.0"},
    "code_sha256": "ab" * 32, "device": "cpu (x86_64)", "threads": 2, "slurm_job": None,
}  # fmt: skip
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><script>alert(3)</script>",
    "{{7*7}} ${alert(4)} $title",
    "line\u2028separator\u2029here \x00 \u202eright to left",
    '<a href="javascript:alert(5)">javascript:alert(5)</a>',
    "<!-- <script> -->",
    "'; alert(6); '",
    "<svg onload=alert(7)><style>*{display:none}</style>",
)
"""Texts that a page which shows them wrongly would run, load, or be broken by."""


def grid(methods: Sequence[str], lrs: Sequence[float] = (5e-4, 1e-3, 2e-3), seeds: int = 3, **more: Any) -> list[Made]:
    return [Made(method=m, lr=lr, seed=s, **more) for m in methods for lr in lrs for s in range(seeds)]


def realistic() -> list[Made]:
    """Six methods, three rates, three seeds, two data sets; some runs diverged, failed, are stale or not there."""
    methods = ("lora", "rslora", "pissa", "milora", "molora_topk", "goat")
    runs = [made for dataset in ("arithmetic", "svamp") for made in grid(methods, dataset=dataset, steps=120)]
    states = {("pissa", 2e-3, 0): "diverged", ("goat", 2e-3, 1): "diverged", ("goat", 2e-3, 2): "diverged",
              ("lora", 2e-3, 2): "bug", ("milora", 2e-3, 1): "stale", ("rslora", 2e-3, 0): "planned"}  # fmt: skip
    return [replace(made, state=states.get((made.method, made.lr, made.seed), "done")) for made in runs]


def write(roots: Roots, name: str, runs: Sequence[Made], measured: Sequence[Made] = ()) -> list[str]:
    """The study with everything that a report reads."""
    ids = write_study(roots, name, runs)
    prompts = Arithmetic().load().test
    for made in {id_of(made): made for made in runs}.values():
        folder = folder_of(roots, id_of(made))
        if made.state == "planned":
            continue
        atomic.write_json(folder.env, {"schema": 1, "starts": [PLACE]})
        lines.write(folder.timing, [{**record, "peak_rss_gib": 1.25} for record in lines.read(folder.timing)])
        if folder.failure.exists():
            atomic.write_json(folder.failure, {**folder.read_failure(), **_failure(made)})
        generated = folder.items("generation")
        if generated.exists():
            lines.write(generated, [_said(record, example) for record, example in zip(lines.read(generated), prompts)])
    overrides = ["+sweeps=demo", f"study={name}", "train.max_steps=120", "eval.tasks=[a b]"]
    atomic.write_json(roots.studies / name / "plan.json", {"schema": 1, "name": name, "overrides": overrides})
    if measured:
        write_measures(roots, name, measures(measured, layers=3, kinds=("q_proj", "down_proj")))
    return ids


def _failure(made: Made) -> dict[str, str]:
    if made.state == "diverged":
        return {"message": "the loss is nan at step 27", "traceback": "Traceback ...\nDiverged: the loss is nan"}
    trace = 'Traceback (most recent call last):\n  File "loop.py", line 81, in train_step\nRuntimeError: shapes (8, 64)'
    return {"message": "shapes (8, 64) and (32, 8) do not fit\nsee above", "traceback": trace}


def _said(record: dict[str, Any], example: Any) -> dict[str, Any]:
    text = f"{example.answer}" if record["correct"] else "2*3=6\n#### 6"
    prediction = example.target if record["correct"] else "6"
    return {**record, "item": example.item, "prediction": prediction, "target": example.target, "text": text}


def poison(roots: Roots, name: str, ids: Sequence[str]) -> None:
    """Hostile texts in every place that a model, a data set, an error or a user can write to."""
    for run, text in zip(ids, HOSTILE):
        folder = folder_of(roots, run)
        raw = [{"item": f"{t} {i}", "step": 1, "prediction": t, "target": t, "text": t, "correct": False}
               for i, t in enumerate(HOSTILE)]  # fmt: skip
        folder.items("generation").write_text("".join(json.dumps(record) + "\n" for record in raw))
        tree = atomic.read_json(folder.spec)
        tree["spec"]["adapter"]["targets"] = text
        folder.spec.write_text(json.dumps(tree))
        folder.env.write_text(json.dumps({"schema": 1, "starts": [{**PLACE, "device": text, text: text}]}))
        metrics = [{**record, f"{text}_nats": 1.0} for record in lines.read(folder.metrics)]
        folder.metrics.write_text("".join(json.dumps(record) + "\n" for record in metrics))
    manifest = roots.studies / name / "manifest.jsonl"
    cells = list(lines.read(manifest))
    for cell in cells:
        text = HOSTILE[ids.index(cell["id"]) % len(HOSTILE)]
        cell["method"] = text
        cell["labels"] |= {"note": text}
    manifest.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    plan = {"schema": 1, "overrides": [*HOSTILE, "+sweeps=../../../etc/passwd"]}
    (roots.studies / name / "plan.json").write_text(json.dumps(plan))
