"""Adapters that ablora trained, read from run folders."""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ablora.method.export import EXACT
from ablora.method.full import Full
from ablora.method.full_moe import FullMoE
from ablora.method.init._base import DataDriven, Site
from ablora.method.seeds import generator
from ablora.method.structure._base import Shape, inward_rank
from ablora.method.structure._gates import by_direction
from ablora.method.structure.adalora import Adalora
from ablora.method.structure.alora import Alora
from ablora.method.structure.dora import Dora
from ablora.method.structure.experts import Experts
from ablora.method.structure.pair import Pair
from ablora.spec import BadInput, RunSpec, check, run_id
from ablora.store import lines
from ablora.store.atomic import Corrupted, read_json
from ablora.store.run_folder import RunFolder
from ablora.store.tensor_file import TensorFile, open_checked, require_names, require_shape
from ablora.tree import build
from ablora_analysis.measure import dense
from ablora_analysis.measure.adapters import EXPECTED, WHOLE, Adapter, NotMeasured, Part, require_module
from ablora_analysis.measure.base_weights import BaseWeights
from ablora_analysis.measure.from_whole import open_experts, open_whole, require_experts
from ablora_analysis.measure.update import Factors, Update, expected, experts, pair

STRUCTURES = (Pair, Experts, Adalora, Alora, Dora)
START = ("A0", "B0")
FACTORS = ("magnitude", "A", "B", "E", "scale", "gate", *START, "members", "heads", "mean_gates")
Gates = Mapping[str, Float[Tensor, " experts"]]
_log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """What is needed of a run's specification; the data it was trained on need not be here."""

    method: Any
    dtype: torch.dtype
    seed: int


def open_run(folder: RunFolder, base: Path | None = None) -> Adapter:
    """A finished run's adapter, checked against its specification and its base (`base`: where that is now)."""
    tree = folder.read_tree()
    if base is not None and "path" in tree["model"]:
        tree = {**tree, "model": {**tree["model"], "path": str(base)}}
    run = _trained(folder, tree)
    weights = BaseWeights(_confirmed(folder, tree, base), run.dtype)
    file = open_checked(folder.adapter / EXACT)
    if isinstance(run.method, Full):
        return open_whole(folder.id, file, weights, _targets(tree))
    if isinstance(run.method, FullMoE):
        modules = require_experts(file, weights, run.method.structure.experts)
        gates = _mean_gates(folder, run, modules)
        return open_experts(folder.id, file, weights, modules, gates, _content(file, gates))
    ranks = _require_complete(run, file, weights)
    gates = _mean_gates(folder, run, ranks)
    return Adapter(
        id=folder.id,
        base=weights,
        ranks=ranks,
        content=_content(file, gates),
        parts=partial(_parts, file, run, weights, gates),
        start=partial(_start, file, run, weights),
    )


def _trained(folder: RunFolder, tree: Mapping[str, Any]) -> Trained:
    legal = f"a low-rank method of structure {' or '.join(kind.__name__ for kind in STRUCTURES)}"
    try:
        method = build(tree["method"])
        structure = type(getattr(method, "structure", None))
    except BadInput as error:
        raise error.under(f"{folder.spec}: method") from None
    if structure not in STRUCTURES and not isinstance(method, Full | FullMoE):
        kind = type(method) if structure is type(None) else structure
        raise NotMeasured(f"{folder.spec}: method", f"{getattr(method, 'name', None)} ({kind.__name__})", legal)
    return Trained(method, getattr(torch, tree["model"]["dtype"]), tree["seed"])


def _targets(tree: Mapping[str, Any]) -> str | tuple[str, ...]:
    own = tree["adapter"]["targets"]
    return own if isinstance(own, str) else tuple(own)


def _confirmed(folder: RunFolder, tree: Mapping[str, Any], base: Path | None) -> Path:
    """The base's folder, when the run's id says that its content is the one that the run was trained on."""
    try:
        own = build(tree["model"]).folder
    except BadInput as error:
        raise error.under(f"{folder.spec}: model (or --base)") from None
    if base is not None and base.resolve() != own.resolve():
        same = BaseWeights(base).fingerprint == BaseWeights(own).fingerprint
        check(same, "base", str(base), f"the base of run {folder.id}, {own}")
    try:
        now = run_id(build(tree, RunSpec))
    except (ValueError, OSError) as error:
        _log.warning("run %s: that %s is its base could not be confirmed (%s)", folder.id, own, error)
        return own
    legal = (
        f"the base that the run was trained on: today the run's specification has the id {now}, so its base, its data "
        "or a revision of the code has changed since"
    )
    check(now == folder.id, f"{folder.path}: base", str(own), legal)
    return own


def _require_complete(run: Trained, file: TensorFile, base: BaseWeights) -> dict[str, int]:
    """Ranks by module. Every tensor of every recorded module is there, of the shape that rank and base make necessary,
    and no other; a module that got rank 0 has none, and is no part of the adapter."""
    path = file.path.with_suffix(".json")
    if not path.exists():
        raise Corrupted(str(path), None, "the records of the adapter's modules; train the run again")
    try:
        recorded = {module: int(record["rank"]) for module, record in read_json(path)["modules"].items()}
    except (KeyError, TypeError) as error:
        raise Corrupted(str(path), str(error), "records of modules with their rank") from error
    ranks = {module: rank for module, rank in recorded.items() if rank > 0}
    # the rows of ranks that moved away are there still
    there = {module: rank for module, rank in recorded.items() if rank > 0 or f"{module}.gate" in file.shapes}
    wanted = {name: size for module, rank in there.items() for name, size in _sizes(run, file, base, module, rank)}
    require_names(file, wanted)
    for name, size in wanted.items():
        require_shape(file, name, size, f"as its rank and the base {base.folder} say")
    return ranks


def _sizes(
    run: Trained, file: TensorFile, base: BaseWeights, module: str, rank: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What one module's tensors are named, and their shapes."""
    out_features, in_features = require_module(base, file.path, module)
    if isinstance(run.method.structure, Alora):
        rows = file.shapes.get(f"{module}.gate", (rank,))[0]
        sides = {"A": (in_features,), "B": (out_features,), "A0": (in_features,), "B0": (out_features,)}
        roles = ("A", "B", "scale", "gate", *(role for role in START if f"{module}.{role}" in file.shapes))
        yield from ((f"{module}.{role}", (rows, *sides.get(role, ()))) for role in roles)
        return
    shape = Shape(out_features, in_features, rank)
    weight = torch.empty(out_features, in_features, device="meta")  # for its shape alone
    own = run.method.structure.extra(shape, generator("shape"), weight) | run.method.structure.constants(shape, weight)
    rows = inward_rank(run.method.structure, rank)
    sizes = {"A": (rows, in_features), "B": (rank, out_features), "scale": (rank,)}
    if any(f"{module}.{role}" in file.shapes for role in START):
        sizes |= {"A0": (rows, in_features), "B0": (rows, out_features)}
    sizes |= {role: tuple(tensor.shape) for role, tensor in own.items()}
    yield from ((f"{module}.{role}", size) for role, size in sizes.items())


def _mean_gates(folder: RunFolder, run: Trained, ranks: Iterable[str]) -> Gates | None:
    """Each module's mean gates over the evaluated tokens; None where routing was not recorded."""
    path, num = folder.items("routing"), run.method.structure.experts
    if num == 1 or not path.exists():
        return None
    try:
        found = {r["item"]: torch.tensor(r["mean_gate"], dtype=torch.float64) for r in lines.read(path)}
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupted(str(path), str(error), "a line per module with its mean_gate") from error
    for module in ranks:
        gates = found.get(module)
        if gates is None or gates.shape != (num,) or not torch.isfinite(gates).all():
            value = None if gates is None else gates.tolist()
            raise Corrupted(f"{path}: {module}", value, f"mean_gate, {num} numbers")
    return found


def _content(file: TensorFile, gates: Gates | None) -> str:
    named = {module: gate.tolist() for module, gate in sorted((gates or {}).items())}
    return hashlib.sha256(f"{file.sha256} {lines.dumps(named)}".encode()).hexdigest()


def _read(file: TensorFile, module: str) -> Factors:
    named = {role: f"{module}.{role}" for role in FACTORS if f"{module}.{role}" in file.shapes}
    tensors = file.read(named.values())
    factors = by_direction({role: tensors[name] for role, name in named.items()})
    if "gate" not in factors:
        return factors
    return {role: tensor[factors["gate"] != 0] for role, tensor in factors.items()}


def _parts(file: TensorFile, run: Trained, base: BaseWeights, gates: Gates | None, module: str) -> dict[str, Part]:
    factors = _read(file, module)
    rank, structure = len(factors["A"]), run.method.structure
    if isinstance(structure, Pair | Alora):
        return {WHOLE: Part(pair(factors), rank, "")}
    if isinstance(structure, Dora):
        whole = dense.rescaled(pair(factors), base.weight(module).double(), factors["magnitude"].double())
        return {WHOLE: Part(whole, rank, "")}
    if isinstance(structure, Adalora):
        exact = {role: tensor.double() for role, tensor in factors.items()}
        into, out, _ = structure.exported(exact, exact)
        return {WHOLE: Part(Update(out.mT, into), rank, "")}
    num = structure.experts
    gate = torch.full((num,), 1 / num, dtype=torch.float64) if gates is None else gates[module]
    whole = Part(expected(factors, gate), rank, "uniform" if gates is None else "measured")
    return {EXPECTED: whole} | {f"expert {e}": Part(u, rank // num, "") for e, u in enumerate(experts(factors))}


def _start(file: TensorFile, run: Trained, base: BaseWeights, module: str) -> Float[Tensor, "rank in"] | None:
    """A0: saved where B started away from zero, else drawn again from the seed; None: it came from data, or moved."""
    if f"{module}.A0" in file.shapes:
        return file.read([f"{module}.A0"])[f"{module}.A0"]
    if isinstance(run.method.init, DataDriven) or isinstance(run.method.structure, Alora):
        return None
    rows, rank, shape = file.shapes[f"{module}.A"][0], file.shapes[f"{module}.B"][0], base.shape(module)
    assert shape is not None
    experts = run.method.structure.experts if rows == rank else 1
    site = Site(torch.empty(shape, device="meta"), rows, experts, 1.0, generator("init", run.seed, module))
    return run.method.init(site, None).A if run.method.init.indices(site) is None else None
