"""Studies whose s varies, with an optimum that is planted: folders as the run folder's contract says."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from ablora.store import atomic, lines
from ablora.store.roots import Roots
from ablora.store.run_folder import folder_of
from ablora_analysis import table
from ablora_analysis.figures import arms
from ablora_analysis.figures.study import Study

SHAPES = {"q_proj": (64, 64), "down_proj": (64, 256)}
"""(out, in) of the two modules."""
METRIC = "validation_answer_loss_nats"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run at s; its loss rises with the square of the octaves from `best_s`, and likewise of the rate's from the
    best one there, which falls as s rises."""

    s: float
    lr: float = 1e-3
    method: str = "lora"
    rank: int = 8
    experts: int = 1
    seed: int = 0
    best_s: float = 4.0
    noise: float = 0.0
    state: str = "done"
    why: str = "tune"
    searched: tuple[tuple[str, Any], ...] = ()

    @property
    def loss(self) -> float:
        octaves = math.log2(self.s / self.best_s)
        rate = math.log2(self.lr / 1e-3) + 0.5 * octaves
        return 1 + 0.05 * octaves**2 + 0.04 * rate**2 + self.noise


def spec(trial: Trial) -> dict[str, Any]:
    scaling = "ablora.method.scaling."
    own = (
        {"_target_": f"{scaling}alpha_over_r.AlphaOverR", "alpha": trial.s * trial.rank}
        if trial.experts == 1
        else {"_target_": f"{scaling}goat.GoatScaling", "eta": _eta(trial)}
    )
    structure: dict[str, Any] = {"_target_": "ablora.method.structure.pair.Pair"}
    if trial.experts > 1:
        balance = {
            "_target_": "ablora.method.structure.balance.Balance",
            "coefficient": 0.0,
            "convention": "normalised",
        }
        structure = {"_target_": "ablora.method.structure.experts.Experts", "experts": trial.experts, "top_k": 2,
                     "balance": balance}  # fmt: skip
    method = {
        "_target_": "ablora.method.lowrank.LowRank", "name": trial.method, "scaling": own, "structure": structure,
        "init": {"_target_": "ablora.method.init.zero_b.ZeroB"},
        "update": {"_target_": "ablora.method.update.plain.Plain"},
    }  # fmt: skip
    return {
        "method": method, "model": {"name": "pico"}, "dataset": {"name": "arithmetic"}, "rank": trial.rank,
        "train": {"lr": trial.lr, "max_steps": 8}, "seed": trial.seed,
    }  # fmt: skip


def _eta(trial: Trial) -> float:
    """So that the geometric mean over the modules is s."""
    per_eta = [3 * size / (trial.rank // trial.experts) for _, size in SHAPES.values()]
    return trial.s**2 / math.exp(sum(map(math.log, per_eta)) / len(per_eta))


def by_module(trial: Trial) -> dict[str, float]:
    if trial.experts == 1:
        return dict.fromkeys(SHAPES, trial.s)
    rank = trial.rank // trial.experts
    return {name: math.sqrt(3 * size * _eta(trial) / rank) for name, (_, size) in SHAPES.items()}


def write_study(roots: Roots, name: str, trials: Iterable[Trial]) -> None:
    cells = []
    for trial in trials:
        run = hashlib.sha256(json.dumps([spec(trial), trial.state], sort_keys=True).encode()).hexdigest()[:12]
        key = "method.scaling.alpha" if trial.experts == 1 else "method.scaling.eta"
        value = trial.s * trial.rank if trial.experts == 1 else _eta(trial)
        labels = {"method": trial.method, "rank": trial.rank, "train.lr": trial.lr, "seed": trial.seed, key: value}
        labels |= dict(trial.searched)
        cells.append({"id": run, "labels": labels, "method": trial.method, "pack": 0, "why": trial.why})
        _write_run(roots, run, trial)
    path = roots.studies / name / "manifest.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines.write(path, cells)


def _write_run(roots: Roots, run: str, trial: Trial) -> None:
    folder = folder_of(roots, run)
    folder.path.mkdir(parents=True, exist_ok=True)
    atomic.write_json(folder.spec, {"schema": 1, "id": run, "spec": spec(trial)})
    if trial.state != "done":
        atomic.write_json(folder.failure, {"schema": 1, "id": run, "class": trial.state, "message": "", "step": 3})
        return
    folder.adapter.mkdir(exist_ok=True)
    tensors = {f"model.{name}.A": np.zeros((trial.rank, shape[1]), "f4") for name, shape in SHAPES.items()}
    tensors |= {f"model.{name}.B": np.zeros((trial.rank, shape[0]), "f4") for name, shape in SHAPES.items()}
    save_file(tensors, folder.adapter / "ablora_adapter.safetensors")
    modules = {f"model.{name}": {"scaling": s, "rank": trial.rank} for name, s in by_module(trial).items()}
    atomic.write_json(folder.result, {"schema": 1, "id": run, "step": 8, "metrics": {METRIC: trial.loss},
                                      "trainable_parameters": 1, "modules": modules})  # fmt: skip


def study_of(roots: Roots, trials: Iterable[Trial]) -> Study:
    write_study(roots, "s", trials)
    return read_study(roots)


def read_study(roots: Roots) -> Study:
    """The study s as the figures read it."""
    rows, _ = table.read_rows(roots, "s", lambda _: False)
    prepared: pd.DataFrame = arms.prepare(table.cells(roots, "s", rows))
    folder = roots.studies / "s"
    return Study(roots, "s", folder / "figures", prepared, arms.choose(prepared), {"study": "s"}, folder / "measures")


def search(best_s: float, seed: int = 0, number: int = 20, noise: float = 0.02, **fields: Any) -> list[Trial]:
    """Half at random over nine octaves of s and four of the rate, half near the best, as a sampler goes on."""
    rng = np.random.default_rng(seed)
    s = np.exp2(rng.uniform(-3, 6, number))
    lr = 1e-3 * np.exp2(rng.uniform(-2, 2, number))
    near = number // 2
    s[near:] = best_s * np.exp2(rng.normal(0, 1, number - near))
    lr[near:] = 1e-3 * np.exp2(rng.normal(0, 0.7, number - near))
    errors = noise * rng.normal(size=number)
    return [Trial(s=float(a), lr=float(b), best_s=best_s, noise=float(e), **fields) for a, b, e in zip(s, lr, errors)]
