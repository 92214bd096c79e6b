"""Run folders that no trainer made: files as the run folder's contract says, numbers from a seeded formula."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from synthetic_beside import Recorded, forgetting, routing

from ablora.store import atomic, lines
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, folder_of

BEST_LR = {"lora": 1e-3, "rslora": 5e-4, "pissa": 5e-4, "milora": 1e-3, "random_svd": 1e-3, "goat": 5e-4}
FINAL = {
    "lora": 1.02,
    "rslora": 1.0,
    "pissa": 0.94,
    "milora": 0.9,
    "random_svd": 1.05,
    "molora_topk": 0.97,
    "goat": 0.91,
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """One synthetic run; `state` is done, diverged, bug, planned or stale."""

    method: str = "lora"
    lr: float = 1e-3
    seed: int = 0
    dataset: str = "arithmetic"
    rank: int | None = 8
    init: str = "ZeroB"
    state: str = "done"
    steps: int = 40
    num_items: int = 20
    forgets: bool = False
    """Whether the run measured forgetting."""
    experts: int = 0
    """Of a mixture that recorded its routing, top 2; 0 for none."""
    labels: tuple[tuple[str, Any], ...] = ()


def tree(made: Made) -> dict[str, Any]:
    axes = {
        "init": {"_target_": f"ablora.method.init.{made.init}"},
        "scaling": {"_target_": "ablora.method.scaling.AlphaOverR", "alpha": 16.0},
        "structure": {"_target_": "ablora.method.structure.Pair"},
        "update": {"_target_": "ablora.method.update.Plain"},
    }
    return {
        "method": {"_target_": "ablora.method.LowRank", "name": made.method, **axes},
        "model": {"_target_": "ablora.models.base.Embedded", "name": "pico", "dtype": "float32"},
        "dataset": {"_target_": "ablora.data.arithmetic.Arithmetic", "name": made.dataset},
        "train": {"lr": made.lr, "max_steps": made.steps, "batch_size": 16, "max_tokens": 512},
        "eval": {"tasks": {}, "every": made.steps // 4, "at_start": True},
        "adapter": {"targets": "all-linear", "dropout": 0.0, "compute_dtype": "float32"},
        "rank": made.rank,
        "seed": made.seed,
    }


def id_of(made: Made) -> str:
    text = json.dumps([tree(made), made.state == "stale"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_study(roots: Roots, name: str, runs: Iterable[Made]) -> list[str]:
    """The study's manifest and the folders of its runs; returns the ids, one per cell."""
    runs = list(runs)
    seen: set[str] = set()
    cells = []
    for made in runs:
        run = id_of(made)
        labels = {"method": made.method, "train.lr": made.lr, "seed": made.seed, "dataset": made.dataset}
        labels |= {"rank": made.rank} if made.rank is not None else {}
        cell = {"id": run, "labels": labels | dict(made.labels), "method": made.method, "pack": 0, "why": "grid"}
        cells.append(cell | ({"duplicate_of": run} if run in seen else {}))
        if run not in seen:
            write_run(folder_of(roots, run), made)
        seen.add(run)
    path = roots.studies / name / "manifest.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines.write(path, cells)
    return [id_of(made) for made in runs]


def stale(folder: RunFolder) -> bool:
    """The synthetic stand-in for RunFolder.is_stale, which would build the specification."""
    return (folder.path / "STALE").exists()


def write_run(folder: RunFolder, made: Made) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    atomic.write_json(folder.spec, {"schema": 1, "id": folder.id, "spec": tree(made)})
    if made.state == "planned":
        return
    if made.state == "stale":
        (folder.path / "STALE").touch()
    rng = np.random.default_rng([made.seed, int(folder.id, 16)])
    metrics, last = _records(made, rng)
    recorded = _beside(made) if made.state not in ("diverged", "bug") else {}
    metrics = sorted([*metrics, *(line for own in recorded.values() for line in own.lines)], key=lambda r: r["step"])
    lines.write(folder.timing, [
        {"step": step, "wall_s": 0.1 * step, "tokens": 800 * step, "tokens_per_s": 8000.0} for step in (1, 2, 3)
    ])  # fmt: skip
    if made.state in ("diverged", "bug"):
        failure = {"schema": 1, "id": folder.id, "class": made.state, "message": "", "traceback": "", "step": last}
        atomic.write_json(folder.failure, failure)
        lines.write(folder.metrics, metrics)
        return
    for task, own in recorded.items():
        folder.items(task).parent.mkdir(exist_ok=True)
        lines.write(folder.items(task), own.items)
    result = _finish(folder, made, rng, [own.lines[-1]["metrics"] for own in recorded.values()])
    last_loss = next(record for record in reversed(metrics) if record.get("task") == "answer_loss")
    last_loss["metrics"] = {"answer_loss_nats": result["answer_loss_nats"]}  # a result is its last evaluation
    lines.write(folder.metrics, metrics)


def _beside(made: Made) -> dict[str, Recorded]:
    forgot = {"forgetting": forgetting(made.method, made.lr, made.seed, made.steps)} if made.forgets else {}
    return forgot | ({"routing": routing(made.method, made.seed, made.steps, made.experts)} if made.experts else {})


def final_loss(made: Made) -> float:
    """A parabola over log10 lr around the method's best rate, nats per token."""
    best = np.log10(BEST_LR.get(made.method, 1e-3))
    return FINAL.get(made.method, 1.0) + 0.35 * float(np.log10(made.lr) - best) ** 2


def _records(made: Made, rng: np.random.Generator) -> tuple[list[dict[str, Any]], int]:
    last = made.steps // 3 if made.state == "diverged" else made.steps
    every, end = max(1, made.steps // 4), final_loss(made)
    out: list[dict[str, Any]] = []
    for step in range(last + 1):
        level = end + 1.6 * np.exp(-6 * step / made.steps) + (0.02 * rng.normal())
        if step > 0:
            if made.state == "diverged":
                level += np.exp(0.6 * (step - last + 8))
            noise = 0.12 * rng.normal()
            out.append({"kind": "train", "step": step, "loss_nats": float(level + noise), "lr": made.lr,
                        "grad_norm": float(rng.uniform(0.2, 1)), "answer_tokens": 300 * step})  # fmt: skip
        if step % every == 0:
            out.append({"kind": "eval", "step": step, "task": "answer_loss", "split": "test",
                        "metrics": {"answer_loss_nats": float(level + 0.1)}, "items": made.num_items})  # fmt: skip
            out.append({"kind": "eval", "step": step, "task": "validation_answer_loss", "split": "validation",
                        "metrics": {"answer_loss_nats": float(level + 0.2)}, "items": made.num_items})  # fmt: skip
    return out, last


def _finish(folder: RunFolder, made: Made, rng: np.random.Generator, more: Iterable[Mapping[str, float]]) -> dict:
    # Item difficulties and lengths belong to the items, so every run shares them; the seed moves the run's level.
    world = np.random.default_rng(7)
    difficulty, tokens = world.normal(0, 0.4, made.num_items), world.integers(2, 9, made.num_items)
    seed_effect = 0.03 * np.random.default_rng(1000 + made.seed).normal()
    level = final_loss(made) + 0.1 + seed_effect + 0.012 * rng.normal()
    loss = np.maximum(0.01, level + difficulty + 0.05 * rng.normal(size=made.num_items)) * tokens
    right = rng.random(made.num_items) < np.clip(1.45 - level, 0.02, 0.95)
    names = [f"test-{i:03d}" for i in range(made.num_items)]
    folder.items("answer_loss").parent.mkdir(exist_ok=True)
    lines.write(folder.items("answer_loss"), [
        {"item": n, "step": made.steps, "loss_nats": float(v), "answer_tokens": int(t)}
        for n, v, t in zip(names, loss, tokens)
    ])  # fmt: skip
    lines.write(folder.items("generation"), [
        {"item": n, "step": made.steps, "prediction": "1", "target": "1", "text": "1", "correct": bool(c)}
        for n, c in zip(names, right)
    ])  # fmt: skip
    folder.adapter.mkdir(exist_ok=True)
    (folder.adapter / "ablora_adapter.safetensors").write_bytes(b"0" * 4096)
    metrics = {"answer_loss_nats": float(loss.sum() / tokens.sum()), "exact_match": float(right.mean()),
               "train_loss_nats": final_loss(made)}  # fmt: skip
    for found in more:
        metrics |= found
    modules: Mapping[str, Any] = {"q_proj": {"scaling": 2.0, "rank": made.rank, "parameters": 1024}}
    atomic.write_json(folder.result, {"schema": 1, "id": folder.id, "step": made.steps, "metrics": metrics,
                                      "trainable_parameters": 1024 * (made.rank or 1), "modules": modules,
                                      "left_out": {"train": 0}})  # fmt: skip
    return metrics
