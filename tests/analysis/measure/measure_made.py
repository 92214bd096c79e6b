"""Weights, factors and run folders for the tests of measures."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ablora.method.attach import attach
from ablora.method.export import merged_weights, save_adapter
from ablora.method.member import Member
from ablora.models.base import load
from ablora.spec import RunSpec
from ablora.spectra.library import Library
from ablora.store import atomic, lines
from ablora.store.roots import Roots
from ablora.store.run_folder import RunFolder, create
from tiny import calibrated, disturb, made_up


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spread(out_features: int, in_features: int, seed: int = 0) -> Tensor:
    """A matrix whose singular values lie well apart, so that every prefix of its vectors is well defined."""
    h = min(out_features, in_features)
    u = torch.linalg.qr(gaussian(out_features, h, seed=seed))[0]
    v = torch.linalg.qr(gaussian(in_features, h, seed=seed + 1))[0]
    return (u * (1.2 ** -torch.arange(h, dtype=torch.float64))) @ v.mT


def write_run(roots: Roots, spec: RunSpec, size: float = 1e-2) -> tuple[RunFolder, dict[str, Tensor]]:
    """A finished run whose adapter was moved at random, and the dense update of each module in float64 (none for a
    mixture, which has no single weight)."""
    folder = create(roots, spec)
    base = load(spec.model)
    seen = calibrated(base.model, spec.method, spec.adapter, made_up(0))
    member = Member(spec.method, spec.rank or 0, spec.adapter, spec.seed, seen)
    adapted = attach(base.model, [member], Library(roots.cache))
    disturb(adapted, size=size)
    save_adapter(adapted, 0, folder.adapter)
    dense = {}
    if spec.method.structure.experts == 1:
        weights = {name: layer.base.weight.double() for name, layer in adapted.modules.items()}
        dense = {name: weight.double() - weights[name] for name, weight in merged_weights(adapted, 0).items()}
    adapted.detach()
    result: dict[str, Any] = {"schema": 1, "id": folder.id, "step": 1, "metrics": {"answer_loss_nats": 1.0}}
    atomic.write_json(folder.result, {**result, "trainable_parameters": 1, "modules": {}})
    return folder, dense


def write_study(roots: Roots, name: str, folders: dict[str, tuple[RunFolder, RunSpec]]) -> None:
    """A manifest of runs, labelled by method and seed."""
    cells = [
        {"id": f.id, "labels": {"method": s.method.name, "seed": s.seed}, "method": s.method.name, "pack": 0,
         "why": "grid"}
        for f, s in folders.values()
    ]  # fmt: skip
    path: Path = roots.studies / name / "manifest.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines.write(path, cells)
